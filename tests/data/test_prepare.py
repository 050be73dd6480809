import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from huggingface_hub import DatasetCard
from PIL import Image

from transformers_sem.cli.prepare import build_parser, run
from transformers_sem.data import prepare as preparing
from transformers_sem.data.benchmarks import get_benchmark
from transformers_sem.data.nyud_v2 import NYUDv2, find_source
from transformers_sem.data.prepare import prepare, verify, write_shard
from transformers_sem.data.row_format import encode_map
from transformers_sem.hub import upload as hub
from transformers_sem.utils.files import locked
from transformers_sem.utils.processes import process_pool

from .nyud_v2_forms import write_tiny_folder


IDS = {"train": [f"{index:04d}" for index in range(1, 8)], "val": ["0010", "0011"]}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A tiny NYUDv2 folder, and shards of three frames."""
    monkeypatch.setattr(preparing, "FRAMES_PER_SHARD", 3)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return write_tiny_folder(tmp_path / "data" / "NYUDv2", IDS)


def assert_equal_rows(rows, expected) -> None:
    for row, expected_row in zip(rows, expected, strict=True):
        assert list(row) == list(expected_row)
        for column, value in expected_row.items():
            if isinstance(value, Image.Image):
                np.testing.assert_array_equal(np.asarray(row[column]), np.asarray(value), err_msg=column)
            else:
                assert row[column] == value


def build(root: Path, tmp_path: Path) -> datasets.DatasetDict:
    builder = NYUDv2(data_dir=str(root), cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    return builder.as_dataset()


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, pytest.param(process_pool, marks=pytest.mark.slow)])
def test_a_prepared_folder_gives_the_rows_of_the_builder(root, tmp_path, monkeypatch, pool):
    monkeypatch.setattr(preparing, "process_pool", pool)
    output = tmp_path / "prepared"
    assert prepare(find_source(root), output, num_processes=2) == []
    expected = build(root, tmp_path)
    rows = datasets.load_dataset(str(output))
    streamed = datasets.load_dataset(str(output), streaming=True)
    loaded = get_benchmark("nyud_v2").load(str(output))
    assert list(rows) == list(streamed) == list(loaded) == ["train", "validation"]
    for split, expected_rows in expected.items():
        for other in (rows[split], streamed[split], loaded[split]):
            assert other.features == expected_rows.features
            assert_equal_rows(other, expected_rows)
    assert [path.name for path in tmp_path.iterdir() if "prepared" in path.name] == ["prepared"]
    assert len([*(output / "data").iterdir()]) == 4


def test_the_card_says_what_is_in_the_folder(root, tmp_path):
    for path in (root / "edge").iterdir():
        path.unlink()
    (root / "edge").rmdir()
    prepare(find_source(root), tmp_path / "prepared", num_processes=1)
    card = DatasetCard.load(tmp_path / "prepared" / "README.md")
    assert card.data.pretty_name == "NYUDv2"
    assert "| train | 7 | 795 |" in card.text and "| validation | 2 | 654 |" in card.text
    boundary = next(line for line in card.text.split("\n") if line.startswith("| `boundary`"))
    assert "**derived**: computed from the map of 40 classes, gaps filled" in boundary
    assert card.text.count("**derived**") == 1
    assert "broken: none" in card.text
    assert str(tmp_path) not in card.content


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def test_broken_frames_are_named_and_the_rest_is_kept(root, tmp_path):
    cut(root / "depth" / "0002.npy")
    (root / "normals" / "0002.png").unlink()
    Image.open(root / "images" / "0010.png").save(root / "images" / "0010.png", "JPEG")
    output = tmp_path / "prepared"
    problems = prepare(find_source(root), output, num_processes=1)
    assert [
        path for path in ("0002.npy", "normals/0002.png", "0010.png") if not any(path in line for line in problems)
    ] == []
    assert len(problems) == 3 and all("Restore the file, or take" in line for line in problems)
    assert not output.exists()
    written = {path.name[:11]: path for path in (tmp_path / "unfinished_prepared" / "data").iterdir()}
    assert sorted(written) == ["train-00001", "train-00002"]
    times = {name: path.stat().st_mtime_ns for name, path in written.items()}
    write_tiny_folder(tmp_path / "again", IDS)
    for name in ("depth/0002.npy", "normals/0002.png", "images/0010.png"):
        (root / name).write_bytes((tmp_path / "again" / name).read_bytes())
    assert prepare(find_source(root), output, num_processes=1) == []
    assert not (tmp_path / "unfinished_prepared").exists()
    kept = {path.name[:11]: path.stat().st_mtime_ns for path in (output / "data").iterdir()}
    assert {name: kept[name] for name in times} == times
    assert_equal_rows(datasets.load_dataset(str(output))["train"], build(root, tmp_path)["train"])


def test_broken_frames_can_be_left_out(root, tmp_path):
    cut(root / "depth" / "0002.npy")
    output = tmp_path / "prepared"
    assert len(prepare(find_source(root), output, num_processes=1, skip_broken=True)) == 1
    rows = datasets.load_dataset(str(output))
    assert rows["train"]["id"][:] == ["0001", "0003", "0004", "0005", "0006", "0007"]
    card = (output / "README.md").read_text()
    assert "| train | 6 | 795 |" in card and "broken: `0002` (train)." in card
    assert prepare(find_source(root), output, num_processes=1, skip_broken=True) == []
    with pytest.raises(ValueError, match="must be a new folder, and .*prepared holds something else"):
        prepare(find_source(root), output, num_processes=1)


def test_all_frames_of_a_shard_can_be_left_out(root, tmp_path):
    for name in ("0001", "0002", "0003"):
        cut(root / "depth" / f"{name}.npy")
    prepare(find_source(root), tmp_path / "prepared", num_processes=1, skip_broken=True)
    rows = datasets.load_dataset(str(tmp_path / "prepared"))
    assert rows["train"]["id"][:] == ["0004", "0005", "0006", "0007"]
    assert rows["train"].features == find_source(root).features


def test_every_split_needs_a_frame(root, tmp_path):
    for name in ("0010", "0011"):
        cut(root / "depth" / f"{name}.npy")
    with pytest.raises(ValueError, match="all of validation are broken"):
        prepare(find_source(root), tmp_path / "prepared", num_processes=1, skip_broken=True)
    assert not (tmp_path / "prepared").exists()


def test_files_of_others_are_not_removed(root, tmp_path):
    (tmp_path / "unfinished_prepared").mkdir()
    (tmp_path / "unfinished_prepared" / "thesis.txt").write_text("mine")
    prepare(find_source(root), tmp_path / "prepared", num_processes=1)
    assert (tmp_path / "prepared" / "thesis.txt").read_text() == "mine"


def test_a_finished_folder_is_left_as_it_is(root, tmp_path):
    output = tmp_path / "prepared"
    prepare(find_source(root), output, num_processes=1)
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    prepare(find_source(root), output, num_processes=1)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == times


def test_changed_files_are_prepared_again(root, tmp_path):
    output = tmp_path / "prepared"
    cut(root / "depth" / "0010.npy")
    prepare(find_source(root), output, num_processes=1)
    depth = np.load(root / "depth" / "0001.npy")
    np.save(root / "depth" / "0001.npy", depth / 2)
    (root / "gt_sets" / "val.txt").write_text("0011\n")
    prepare(find_source(root), output, num_processes=1)
    rows = datasets.load_dataset(str(output))
    np.testing.assert_array_equal(np.nan_to_num(np.asarray(rows["train"][0]["depth"])), depth / 2)
    assert rows["validation"]["id"][:] == ["0011"]
    assert len([*(output / "data").iterdir()]) == 4


def test_truncated_shard_is_written_again(root, tmp_path):
    cut(root / "depth" / "0010.npy")
    prepare(find_source(root), tmp_path / "prepared", num_processes=1)
    shard = next((tmp_path / "unfinished_prepared" / "data").glob("train-00001*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    prepare(find_source(root), tmp_path / "prepared", num_processes=1, skip_broken=True)
    assert datasets.load_dataset(str(tmp_path / "prepared"))["train"]["id"][:] == IDS["train"]


def test_empty_output_folder(root, tmp_path, monkeypatch):
    (tmp_path / "prepared").mkdir()
    monkeypatch.chdir(tmp_path / "prepared")
    prepare(find_source(root), Path("."), num_processes=1)
    assert (tmp_path / "prepared" / "README.md").is_file()


@pytest.mark.parametrize(
    "hostile",
    [
        {"image": {"bytes": None, "path": "private.png"}},
        {"image": {"bytes": None, "path": "http://127.0.0.1:9/private.png"}},
        {"semseg": {"bytes": None, "path": "private.png"}},
        {"more": [{"bytes": None, "path": "private.png"}]},
    ],
    ids=["file", "address", "label", "more"],
)
def test_a_prepared_folder_opens_no_other_files(tmp_path, hostile):
    image = {"bytes": encode_map(np.zeros((4, 5, 3), np.uint8)), "path": None}
    row = {"id": "0", "image": image, "semseg": None, "more": None}
    rows = [{**row, **change} for change in ({}, hostile)]  # labels may be missing
    features = datasets.Features(
        {"id": datasets.Value("string"), "image": datasets.Image(), "semseg": datasets.Image()}
        | ({"more": datasets.List(datasets.Image())} if "more" in hostile else {})
    )
    (tmp_path / "data").mkdir()
    for split, part in (("train", rows), ("validation", [{**row, "id": "1"}])):
        write_shard(tmp_path / "data" / f"{split}-0.parquet", part, features)
    (column,) = hostile
    with pytest.raises(ValueError, match=f"holds its images; the column '{column}' of .* names files in other places"):
        get_benchmark("nyud_v2").load(str(tmp_path))


def test_the_card_of_a_prepared_folder_chooses_no_files(root, tmp_path):
    output = tmp_path / "prepared"
    prepare(find_source(root), output, num_processes=1)
    files = [{"split": split, "path": "/private.csv"} for split in ("train", "validation")]
    DatasetCard(f"---\nconfigs: {json.dumps([{'config_name': 'default', 'data_files': files}])}\n---\n").save(
        output / "README.md"
    )
    assert_equal_rows(get_benchmark("nyud_v2").load(str(output))["train"], build(root, tmp_path)["train"])


def test_a_damaged_page_is_found(root, tmp_path):
    """A level of a map may change without making the file unreadable."""
    prepare(find_source(root), tmp_path / "prepared", num_processes=1)
    shard = next((tmp_path / "prepared" / "data").glob("train-00000*"))
    group = pyarrow.parquet.read_metadata(shard).row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    (depth,) = (column for column in columns if column.path_in_schema == "depth.bytes")
    content = bytearray(shard.read_bytes())
    content[depth.data_page_offset + depth.total_compressed_size // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="Cannot read .*prepared: .*checksum.*Prepare it again"):
        get_benchmark("nyud_v2").load(str(tmp_path / "prepared"))


def test_a_prepared_folder_is_cached_once(root, tmp_path):
    prepare(find_source(root), tmp_path / "prepared", num_processes=1)
    first, second = (get_benchmark("nyud_v2").load(str(tmp_path / "prepared"))["train"] for _ in range(2))
    assert first.cache_files == second.cache_files


def test_a_name_that_cannot_be_loaded(root, tmp_path):
    with pytest.raises(ValueError, match="choose another name than .*nyu"):
        prepare(find_source(root), tmp_path / "nyu[2]", num_processes=1)
    assert not (tmp_path / "unfinished_nyu[2]").exists()


def test_a_foreign_folder_is_not_touched(root, tmp_path):
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="Remove it, or choose another"):
        prepare(find_source(root), tmp_path / "prepared", num_processes=1)
    assert (tmp_path / "prepared" / "thesis.txt").read_text() == "mine"


def test_full_disk(root, tmp_path, monkeypatch):
    """Whatever was written of a shard is removed, and the same command goes on."""
    output, unfinished = tmp_path / "prepared", tmp_path / "unfinished_prepared"
    write_table = pyarrow.parquet.write_table

    def fail(table, path, **options):
        if "train-00001" in str(path):
            Path(path).write_bytes(b"PAR1")
            raise OSError(28, "No space left on device")
        write_table(table, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pyarrow.parquet, "write_table", fail)
        with pytest.raises(
            OSError, match="Cannot write .*train-00001.*No space left on device. Free some space, and run"
        ):
            prepare(find_source(root), output, num_processes=1)
    assert not output.exists()
    assert [path.name[:11] for path in unfinished.rglob("*.*")] == ["train-00000"]
    assert pyarrow.parquet.read_metadata(next(unfinished.rglob("*.parquet"))).num_rows == 3
    assert prepare(find_source(root), output, num_processes=1) == []
    assert_equal_rows(datasets.load_dataset(str(output))["train"], build(root, tmp_path)["train"])


def test_one_process_prepares_a_folder_at_a_time(root, tmp_path):
    with (
        locked(tmp_path / ".unfinished_prepared.lock", "One test"),
        pytest.raises(ValueError, match="One process"),
    ):
        prepare(find_source(root), tmp_path / "prepared", num_processes=1)
    assert prepare(find_source(root), tmp_path / "prepared", num_processes=1) == []
    assert sorted(path.name for path in (tmp_path / "prepared").iterdir()) == ["README.md", "data"]
    assert not (tmp_path / ".unfinished_prepared.lock").exists()


def test_files_of_a_killed_run_are_removed(root, tmp_path):
    folder = tmp_path / "unfinished_prepared" / "data"
    folder.mkdir(parents=True)
    (folder / "train-00000-of-00003-0123456789ab.parquet").write_bytes(b"of other files")
    (folder / "unfinished_train-00001-of-00003-0123456789ab.parquet").write_bytes(b"PAR1")
    prepare(find_source(root), tmp_path / "prepared", num_processes=1)
    assert datasets.load_dataset(str(tmp_path / "prepared"))["train"]["id"][:] == IDS["train"]


def test_verify_finds_every_broken_file_and_writes_nothing(root):
    assert verify(find_source(root), num_processes=1) == []
    broken = {
        "images/0001.png": "truncated|broken",
        "depth/0002.npy": "another unit",
        "segmentation/0003.png": "got 41",
        "normals/0004.png": "it is missing",
        "edge/0005.png": "size of its image",
        "images/0099.png": "it is missing",
    }
    cut(root / "images" / "0001.png")
    np.save(root / "depth" / "0002.npy", np.load(root / "depth" / "0002.npy") * 1000)
    Image.fromarray(np.full((10, 14), 41, np.uint8)).save(root / "segmentation" / "0003.png")
    (root / "normals" / "0004.png").unlink()
    Image.fromarray(np.zeros((9, 14), np.uint8)).save(root / "edge" / "0005.png")
    (root / "gt_sets" / "val.txt").write_text("0010\n0099\n")
    before = sorted(root.rglob("*"))
    problems = verify(find_source(root), num_processes=1)
    assert sorted(root.rglob("*")) == before
    for name, message in broken.items():
        (line,) = [line for line in problems if name in line]
        assert any(part in line for part in message.split("|")), line
        assert "Restore the file, or take" in line
    assert len(problems) == 5 + 5  # the absent frame lacks five files


def test_verify_finds_frames_of_both_splits(root):
    (root / "gt_sets" / "val.txt").write_text("0010\n0003\n")
    assert verify(find_source(root), num_processes=1) == [
        "A frame is in one split; both lists have ['0003']. Take them off one of the lists."
    ]


def parse(*arguments: object) -> argparse.Namespace:
    return build_parser().parse_args(["nyud_v2", *map(str, arguments)])


def test_command(root, tmp_path):
    output, picture = tmp_path / "prepared", tmp_path / "images" / "preview.png"
    lines = [*run(find_source, parse(root, "--output", output, "--preview", picture, "--processes", 1))]
    assert "train: 7 frames; papers have 795" in lines and f"Written: {output}" in lines
    assert datasets.load_dataset(str(output))["train"].num_rows == 7
    with Image.open(picture) as preview:
        assert preview.width > 5 * 224 and preview.height > 8 * 100
    lines = [*run(find_source, parse(root, "--verify", "--processes", 1))]
    assert lines[-1] == "Every file is intact."


def test_a_preview_leaves_out_broken_frames_too(root, tmp_path):
    cut(root / "depth" / "0001.npy")
    picture = tmp_path / "preview.png"
    arguments = (root, "--output", tmp_path / "prepared", "--preview", picture, "--processes", 1)
    lines = [*run(find_source, parse(*arguments, "--skip-broken"))]
    assert lines[-1] == f"Written: {picture}" and picture.is_file()
    with pytest.raises(ValueError, match=r"0001\.npy"):
        [*run(find_source, parse(root, "--preview", picture))]


def test_verified_and_prepared_in_one_command_no_problem_is_lost(root, tmp_path):
    cut(root / "depth" / "0002.npy")
    (root / "gt_sets" / "val.txt").write_text("0010\n0003\n")
    arguments = (root, "--verify", "--output", tmp_path / "prepared", "--skip-broken", "--processes", 1)
    for _ in range(2):  # the second time the folder is complete
        lines = [*run(find_source, parse(*arguments))]
        assert sum("0002.npy" in line for line in lines) == 1 and any("both lists" in line for line in lines)
        assert "Every file is intact." not in lines


def test_command_lists_all_problems_before_it_fails(root, tmp_path):
    cut(root / "depth" / "0002.npy")
    lines = run(find_source, parse(root, "--verify", "--processes", 1))
    heard = []
    with pytest.raises(ValueError, match="1 files cannot be used. Repair them"):
        heard.extend(lines)
    assert any("0002.npy" in line for line in heard)
    with pytest.raises(ValueError, match="All shards without broken images are written; the same command resumes"):
        [*run(find_source, parse(root, "--output", tmp_path / "prepared", "--processes", 1))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Nothing to do"),
        (["--verify", "--push-to-hub", "me/data"], "name it with --output FOLDER"),
        (["--verify", "--processes", "0"], "must be at least 1; got 0"),
        (["--preview", "a.jpg"], "writes a .png file; got a.jpg"),
    ],
)
def test_invalid_command_lines(root, arguments, message):
    with pytest.raises(ValueError, match=message):
        [*run(find_source, parse(root, *arguments))]


def test_a_refused_upload_prepares_nothing(root, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(OSError, match="No user is logged in to the Hub, so nothing is uploaded to me/rooms"):
        [*run(find_source, parse(root, "--output", tmp_path / "prepared", "--push-to-hub", "me/rooms"))]
    assert not (tmp_path / "prepared").exists()


def test_another_dataset_is_refused(root, tmp_path):
    prepare(find_source(root), tmp_path / "prepared", num_processes=1)
    with pytest.raises(ValueError, match="holds other semseg classes than PASCALContext"):
        get_benchmark("pascal_context").load(str(tmp_path / "prepared"))

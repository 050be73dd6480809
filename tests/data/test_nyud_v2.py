import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict, Image
from datasets.exceptions import DatasetGenerationError
from PIL import Image as PILImage

from transformers_sem.data.files import BrokenFrameError
from transformers_sem.data.nyud_v2 import CLASS_NAMES, NYUDv2, find_source
from transformers_sem.data.prepare import save_preview
from transformers_sem.data.row_format import FEATURES
from transformers_sem.tasks import TASKS, to_label

from .nyud_v2_forms import HEIGHT, WIDTH, write_tiny_folder


IDS = {"train": ["0003", "0001", "0010"], "val": ["0002", "0007"]}
COLUMNS = ["image", "semseg", "depth", "normal", "boundary"]
REAL_FRAMES = Path(os.environ.get("SEM_NYUD_V2_DIR", Path(__file__).resolve().parents[3] / "shared"))
EXPAND_TOOL = REAL_FRAMES / "tools" / "expand_nyud_v2.py"


@pytest.fixture(scope="module")
def unchanged_root(tmp_path_factory):
    """A tiny NYUDv2 folder."""
    return write_tiny_folder(tmp_path_factory.mktemp("data") / "NYUDv2", IDS)


@pytest.fixture
def root(unchanged_root, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(unchanged_root, tmp_path / "data" / "NYUDv2")


@pytest.fixture
def prepare(root, tmp_path):
    """Builds and reads the dataset."""

    def prepare(data_dir: Path = root.parent, **options) -> DatasetDict:
        builder = NYUDv2(data_dir=str(data_dir), cache_dir=str(tmp_path / "cache"))
        builder.download_and_prepare(**options)
        return builder.as_dataset()

    return prepare


def read_array(path: Path) -> np.ndarray:
    return np.load(path) if path.suffix == ".npy" else np.asarray(PILImage.open(path))


def assert_row_equals_files(row: dict, root: Path) -> None:
    name = row["id"]
    segmentation = read_array(root / f"segmentation/{name}.png").astype(int)
    depth = read_array(root / f"depth/{name}.npy")
    edge = read_array(root / f"edge/{name}.png")
    vectors = read_array(root / f"normals/{name}.png").transpose(2, 0, 1) / 127.5 - 1
    length = np.linalg.norm(vectors, axis=0)
    unit = np.where(length > 0.5, vectors / np.maximum(length, 0.5), np.nan)
    expected = {
        "semseg": np.where(segmentation == 0, 255, segmentation - 1),
        "depth": np.where(depth == 0, np.nan, depth)[None],
        "normal": unit,
        "boundary": edge / 255,
    }
    np.testing.assert_array_equal(np.asarray(row["image"]), read_array(root / f"images/{name}.png"))
    for task, values in expected.items():
        label = to_label(task, row[task])
        assert label.dtype == TASKS[task].dtype
        np.testing.assert_allclose(label.numpy(), values, atol=1e-6, err_msg=f"{task} of {name}")


def test_rows_hold_what_the_files_hold(prepare, root):
    dataset = prepare()
    assert {split: rows["id"][:] for split, rows in dataset.items()} == {
        "train": IDS["train"],
        "validation": IDS["val"],
    }
    for rows in dataset.values():
        for row in rows:
            assert_row_equals_files(row, root)


def test_features_follow_the_row_schema(prepare):
    features = prepare()["train"].features
    assert list(features) == ["id", *COLUMNS, "semseg_classes", "derived"]
    assert all(features[column] == FEATURES[column] for column in COLUMNS)
    assert features["semseg_classes"].feature.names == CLASS_NAMES["semseg"]


def test_classes_of_an_image(prepare):
    for row in prepare()["train"]:
        ids = set(np.unique(np.asarray(row["semseg"]))) - {255}
        assert row["semseg_classes"] == sorted(ids) and 39 in ids


def test_stored_images(prepare, root):
    rows = prepare()["train"]
    modes = {column: rows[0][column].mode for column in COLUMNS}
    assert modes == {"image": "RGB", "semseg": "L", "depth": "F", "normal": "RGB", "boundary": "L"}
    raw = rows.cast_column("image", Image(decode=False))[0]["image"]
    assert raw["bytes"] == (root / "images" / "0003.png").read_bytes()


def test_cache_does_not_need_the_files(prepare, root):
    dataset = prepare()
    for path in root.rglob("*.*"):
        path.unlink()
    assert all(row[column] is not None for row in dataset["train"] for column in COLUMNS)


def test_one_bit_edges(prepare, root):
    path = root / "edge" / "0003.png"
    expected = read_array(path)
    PILImage.fromarray(expected > 0).save(path)
    np.testing.assert_array_equal(np.asarray(prepare()["train"][0]["boundary"]), expected)


@pytest.mark.slow
def test_processes_write_the_same_rows(prepare, tmp_path):
    one = prepare()["train"]
    two = prepare(num_proc=2, download_mode="force_redownload")["train"]
    assert one["id"][:] == two["id"][:]
    assert one.cast_column("depth", Image(decode=False))[:] == two.cast_column("depth", Image(decode=False))[:]


def test_streaming(root, tmp_path):
    rows = NYUDv2(data_dir=str(root), cache_dir=str(tmp_path / "cache")).as_streaming_dataset("train")
    names = []
    for row in rows:
        assert_row_equals_files(row, root)
        names.append(row["id"])
    assert names == IDS["train"]


def test_cache_is_named_by_folder_and_lists(root, tmp_path, monkeypatch):
    def cache_dir(data_dir) -> str:
        return NYUDv2(data_dir=str(data_dir), cache_dir=str(tmp_path / "cache")).cache_dir

    first = cache_dir(root)
    assert cache_dir(root.parent) == first
    monkeypatch.chdir(root.parent)
    assert cache_dir(".") == first
    monkeypatch.chdir(tmp_path)
    copied = tmp_path / "copy"
    copied.symlink_to(root)
    assert cache_dir(copied) == first
    copied.unlink()
    root.rename(copied)
    assert cache_dir(copied) != first
    copied.rename(root)
    (root / "gt_sets" / "val.txt").write_text("0002\n")
    assert cache_dir(root) != first


def test_edited_list_is_read_again(prepare, root):
    prepare()
    (root / "gt_sets" / "val.txt").write_text("0007\n")
    assert prepare()["validation"]["id"][:] == ["0007"]


def test_replaced_file_is_read_again(prepare, root):
    prepare()
    np.save(root / "depth" / "0003.npy", np.full((HEIGHT, WIDTH), 7.0))
    assert (np.asarray(prepare()["train"][0]["depth"]) == 7).all()


def test_class_names():
    names = CLASS_NAMES["semseg"]
    assert len(set(names)) == TASKS["semseg"].num_labels == 40
    assert [names[0], names[20], names[39]] == ["wall", "clothes", "otherprop"]


def test_data_dir_is_needed():
    with pytest.raises(ValueError, match="data_dir is None; pass the folder .* that has images/"):
        NYUDv2()


def test_missing_folder(prepare, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder .*nowhere; pass the folder .* that has"):
        prepare(tmp_path / "nowhere")


def test_missing_sub_folders(prepare, tmp_path):
    (tmp_path / "other" / "images").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=r"Pass the folder .* that has .*other is no such folder and holds \['images'\]"
    ):
        prepare(tmp_path / "other")
    (tmp_path / "other" / "gt_sets").mkdir()
    with pytest.raises(FileNotFoundError, match=r"needs the folders .*other lacks \['segmentation', 'depth'\]"):
        prepare(tmp_path / "other")


def test_missing_list(prepare, root):
    (root / "gt_sets" / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match="split needs the list .*val.txt, which does not exist; write"):
        prepare()


def test_empty_list(prepare, root):
    (root / "gt_sets" / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match="split needs at least one id, and .*train.txt is empty"):
        prepare()


def test_frames_may_lack_maps_where_dataset_yaml_allows_it(prepare, root, tmp_path):
    shutil.rmtree(root / "edge")
    for path in ("normals/0003.png", "segmentation/0001.png", "depth/0001.npy"):
        (root / path).unlink()
    (root / "dataset.yaml").write_text("allow_missing: true\n")
    rows = {row["id"]: row for row in prepare()["train"]}
    missing = {name: [column for column in COLUMNS if row[column] is None] for name, row in rows.items()}
    assert missing == {"0003": ["normal"], "0001": ["semseg", "depth", "boundary"], "0010": []}
    assert rows["0003"]["derived"] == ["boundary"] and rows["0001"]["derived"] == []
    save_preview(find_source(root), tmp_path / "preview.png")
    assert (tmp_path / "preview.png").is_file()


def test_missing_files_are_counted(prepare, root):
    for path in [*(root / "depth").iterdir(), root / "edge" / "0002.png"]:
        path.unlink()
    with pytest.raises(FileNotFoundError, match="6 are missing, first .*0003.npy.*0002.npy.* Restore") as error:
        prepare()
    assert str(error.value).count(str(root)) == 5


BROKEN_FRAMES = {
    "no image": ("images/0001.png", b"<html>", "cannot identify image"),
    "cut image": ("images/0001.png", None, "truncated"),
    "cut depth": ("depth/0001.npy", None, "(reading array|cannot reshape)"),
    "gray image": (
        "images/0001.png",
        np.zeros((HEIGHT, WIDTH), np.uint8),
        r"must be 8-bit RGB .*; got uint8 \(10, 14\)",
    ),
    "class 41": (
        "segmentation/0001.png",
        np.full((HEIGHT, WIDTH), 41, np.uint8),
        "0..40, and 0 where unlabeled; got 41",
    ),
    "16 bit classes": ("segmentation/0001.png", np.full((HEIGHT, WIDTH), 300, np.uint16), "must be .* got 300"),
    "color classes": ("segmentation/0001.png", np.ones((HEIGHT, WIDTH, 3), np.uint8), r"got uint8 \(10, 14, 3\)"),
    "small classes": (
        "segmentation/0001.png",
        np.ones((HEIGHT, 7), np.uint8),
        r"size of its image, \(10, 14\) .*; got \(10, 7\)",
    ),
    "millimetres": ("depth/0001.npy", np.ones((HEIGHT, WIDTH), np.uint16), "floating point metres .* got uint16"),
    "negative depth": ("depth/0001.npy", np.full((HEIGHT, WIDTH), -1.0), "metres >= 0, .* got -1.0"),
    "small depth": ("depth/0001.npy", np.ones((HEIGHT, 7)), r"size of its image, \(10, 14\) .*; got \(10, 7\)"),
    "pickled depth": ("depth/0001.npy", np.array([None]), "allow_pickle=False"),
    "empty depth": ("depth/0001.npy", b"", "must be a .npy file"),
    "other depth": ("depth/0001.npy", b"1.5 2.5", "must be a .npy file"),
    "normals as gray": (
        "normals/0001.png",
        np.zeros((HEIGHT, WIDTH), np.uint8),
        r"must be 8-bit RGB .*; got uint8 \(10, 14\)",
    ),
    "edges 0 and 1": ("edge/0001.png", np.eye(HEIGHT, WIDTH, dtype=np.uint8), "multiply ids by 255"),
}


def break_file(path: Path, content: bytes | np.ndarray | None) -> None:
    if content is None:
        path.write_bytes(path.read_bytes()[:-40])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".npy":
        np.save(path, content)
    else:
        PILImage.fromarray(content).save(path)


def test_broken_files_are_named(root):
    source = find_source(root)
    frame = next(frame for frame in source.frames["train"] if frame["id"] == "0001")
    for case, (name, content, message) in BROKEN_FRAMES.items():
        path = root / name
        intact = path.read_bytes()
        break_file(path, content)
        with pytest.raises(BrokenFrameError) as error:
            source.read_row(frame)
        line = f"{path}.*{message}.*Restore the file, or take 0001 off the list"
        assert re.search(line, str(error.value)), (case, str(error.value))
        path.write_bytes(intact)
    source.read_row(frame)


def test_the_builder_names_a_broken_file(prepare, root):
    path = root / "depth" / "0001.npy"
    path.write_bytes(b"")
    with pytest.raises(DatasetGenerationError) as error:
        prepare()
    assert f"Cannot use {path}: it must be a .npy file" in str(error.value.__cause__)


def test_broken_file_is_named_by_processes(prepare, root):
    (root / "depth" / "0001.npy").write_bytes(b"")
    with pytest.raises(DatasetGenerationError) as error:
        prepare(num_proc=2)
    assert "0001.npy" in str(error.value.__cause__)


@pytest.mark.slow
@pytest.mark.skipif(not EXPAND_TOOL.is_file(), reason=f"no {EXPAND_TOOL}; set SEM_NYUD_V2_DIR to the real frames")
def test_real_frames(prepare, tmp_path):
    command = [sys.executable, str(EXPAND_TOOL), "--output", str(tmp_path), "--train", "3", "--val", "2"]
    subprocess.run([*command, "--workers", "1"], check=True, capture_output=True)
    dataset = prepare(tmp_path)
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 3, "validation": 2}
    for row in (row for rows in dataset.values() for row in rows):
        assert row["image"].size == (560, 425)
        assert_row_equals_files(row, tmp_path / "NYUDv2")
        normal = to_label("normal", row["normal"])
        assert torch.nanmean(normal[2]) < 0  # normals face the camera, z points forward

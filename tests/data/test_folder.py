import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Image
from datasets.exceptions import DatasetGenerationError
from PIL import Image as PILImage

from transformers_sem.data.benchmarks import get_benchmark
from transformers_sem.data.files import BrokenFrameError
from transformers_sem.data.folder import Folder, find_source
from transformers_sem.data.row_format import count_labels
from transformers_sem.data.transforms import TrainingAugmentation, row_to_tensors
from transformers_sem.losses import cross_entropy, l1
from transformers_sem.task_kinds import CLASS_IDS, TaskKind
from transformers_sem.tasks import TASKS, TaskSpec, to_label
from transformers_sem.training.plan import describe_labels


SHAPE = (12, 16)
NAMES = [f"photo_{index:02d}" for index in range(12)]
SETTINGS = """
tasks:
  semseg:
    classes: {7: road, 300: building, 0: tree}
    ignored: 9
  parsing: {classes: [background, head]}
  depth: {unit: millimetre}
  normal: {axes: right-up-backward}
  boundary:
  saliency:
"""


def make_maps(name: str) -> dict[str, np.ndarray]:
    """What the files of a frame hold."""
    rng = np.random.default_rng(int(name[-2:]))
    return {
        "images": rng.integers(0, 256, (*SHAPE, 3), dtype=np.uint8),
        "semseg": rng.choice(np.array([7, 300, 0, 9], np.uint16), SHAPE),
        "parsing": rng.choice(np.array([0, 1, 255], np.uint8), SHAPE),
        "depth": rng.choice(np.array([0, 500, 4321, 65535], np.uint16), SHAPE),
        "normal": np.where(rng.random((*SHAPE, 1)) < 0.2, 128, [[[200, 60, 20]]]).astype(np.uint8),
        "boundary": rng.integers(0, 2, SHAPE, dtype=np.uint8) * 255,
        "saliency": rng.choice(np.array([0, 127, 128, 255], np.uint8), SHAPE),
    }


@pytest.fixture(scope="module")
def unchanged_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "streets"
    for name in NAMES:
        for folder, values in make_maps(name).items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            PILImage.fromarray(values).save(root / folder / f"{name}.png")
    (root / "dataset.yaml").write_text(SETTINGS)
    return root


@pytest.fixture
def root(unchanged_root, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(unchanged_root, tmp_path / "streets")


@pytest.fixture
def prepare(root, tmp_path):
    def prepare(data_dir: Path = root):
        builder = Folder(data_dir=str(data_dir), cache_dir=str(tmp_path / "cache"))
        builder.download_and_prepare()
        return builder.as_dataset()

    return prepare


def expected_labels(name: str) -> dict[str, np.ndarray]:
    maps = make_maps(name)
    vectors = maps["normal"].transpose(2, 0, 1) / 127.5 - 1
    vectors = vectors / np.linalg.norm(vectors, axis=0) * np.array([1, -1, -1])[:, None, None]
    return {
        "semseg": np.select([maps["semseg"] == index for index in (7, 300, 0)], [0, 1, 2], 255),
        "parsing": maps["parsing"],
        "depth": np.where(maps["depth"] == 0, np.nan, maps["depth"] / 1000)[None],
        "normal": np.where((maps["normal"] == 128).all(-1), np.nan, vectors),
        "boundary": maps["boundary"] / 255,
        "saliency": maps["saliency"] > 127,
    }


def assert_row_equals_files(row: dict) -> None:
    np.testing.assert_array_equal(np.asarray(row["image"]), make_maps(row["id"])["images"])
    for task, values in expected_labels(row["id"]).items():
        np.testing.assert_allclose(to_label(task, row[task]).numpy(), values, atol=1e-6, err_msg=task)


def test_rows_hold_what_the_files_hold(prepare):
    dataset = prepare()
    assert dataset["validation"]["id"][:] == ["photo_00", "photo_10"]
    assert dataset["train"]["id"][:] == [name for name in NAMES if name not in ("photo_00", "photo_10")]
    for rows in dataset.values():
        for row in rows:
            assert_row_equals_files(row)


def test_features_name_the_classes(prepare):
    features = prepare()["train"].features
    assert features["semseg_classes"].feature.names == ["road", "building", "tree"]
    assert features["parsing_classes"].feature.names == ["background", "head"]


def test_streaming(root, tmp_path):
    for row in Folder(data_dir=str(root), cache_dir=str(tmp_path / "cache")).as_streaming_dataset("train"):
        assert_row_equals_files(row)


def test_benchmark_of_a_folder(root):
    benchmark = get_benchmark("folder", root)
    assert benchmark.task_num_labels == {
        "semseg": 3,
        "parsing": 2,
        "depth": 1,
        "normal": 3,
        "boundary": 1,
        "saliency": 2,
    }
    assert benchmark.class_names == {"semseg": ["road", "building", "tree"], "parsing": ["background", "head"]}
    rows = benchmark.load(str(root))
    labels = TrainingAugmentation(SHAPE)(*row_to_tensors(rows["train"][0], benchmark.task_num_labels))[1]
    assert list(labels) == list(benchmark.task_num_labels)


@pytest.mark.parametrize("task", expected_labels(NAMES[0]))
def test_one_task_is_enough(root, prepare, task):
    (root / "dataset.yaml").write_text(
        yaml.safe_dump({"tasks": {task: yaml.safe_load(SETTINGS)["tasks"][task]}}, sort_keys=False)
    )
    for other in set(make_maps(NAMES[0])) - {task, "images"}:
        shutil.rmtree(root / other)
    rows = prepare()["train"]
    assert [name for name, feature in rows.features.items() if isinstance(feature, Image)] == ["image", task]
    label = to_label(task, rows[0][task]).numpy()
    np.testing.assert_allclose(label, expected_labels(rows[0]["id"])[task], atol=1e-6)


def test_units(root):
    for unit, metres in [("metre", 1), ("centimetre", 0.01), ("millimetre", 0.001), ("0.002", 0.002)]:
        (root / "dataset.yaml").write_text(f"tasks: {{depth: {{unit: {unit}}}}}")
        shutil.rmtree(root / "depth")
        (root / "depth").mkdir()
        for name in NAMES:
            np.save(root / "depth" / f"{name}.npy", np.full(SHAPE, 500, np.float64))
        source = find_source(root)
        depth = source.read(source.frames["train"][0])["depth"]
        assert depth.dtype == np.float32
        np.testing.assert_allclose(depth, 500 * metres, rtol=1e-6)


def test_whole_units_of_8_bit_levels(root):
    """200 x 2 does not fit into 8 bits."""
    frame = find_source(root).frames["train"][0]
    (root / "dataset.yaml").write_text("tasks: {depth: {unit: 2}}")
    PILImage.fromarray(np.full(SHAPE, 200, np.uint8)).save(frame["depth"])
    assert (find_source(root).read(frame)["depth"] == 400).all()


def test_names_that_are_no_text_are_refused(root):
    try:
        (root / "images" / "room_\udcff.jpg").touch()
    except OSError:
        pytest.skip("the file system refuses such names")
    with pytest.raises(ValueError, match=r"text in UTF-8; .*images has \['room_.udcff.jpg'\]. Rename them"):
        find_source(root)


def test_whole_numbers_are_metres_only_where_the_unit_says_so(root):
    """Levels of an 8-bit image, and millimetres of a near scene, are small enough for metres."""
    frame = find_source(root).frames["train"][0]
    (root / "dataset.yaml").write_text("tasks: {depth: }")
    PILImage.fromarray(np.full(SHAPE, 200, np.uint8)).save(frame["depth"])
    with pytest.raises(BrokenFrameError, match="whole numbers needs a unit; got uint8: write 'unit: millimetre'"):
        find_source(root).read(frame)
    (root / "dataset.yaml").write_text("tasks: {depth: {unit: metre}}")
    assert (find_source(root).read(frame)["depth"] == 200).all()


def test_vectors_and_other_suffixes(root):
    (root / "dataset.yaml").write_text("tasks: {normal: }")
    for name in NAMES:
        codes = make_maps(name)["normal"]
        np.save(root / "normal" / f"{name}.npy", codes.astype(np.float32) / 127.5 - 1)
        (root / "normal" / f"{name}.png").unlink()
        PILImage.fromarray(make_maps(name)["images"]).save(root / "images" / f"{name}.JPG", "JPEG")
        (root / "images" / f"{name}.png").unlink()
    source = find_source(root)
    maps = source.read(source.frames["train"][0])
    assert maps["image"].startswith(b"\xff\xd8")
    np.testing.assert_array_equal(maps["normal"], make_maps("photo_01")["normal"])


def test_image_with_exif_orientation(root, prepare):
    """Maps are drawn over the photo as it is seen."""
    turned = PILImage.fromarray(make_maps("photo_01")["images"].transpose(1, 0, 2)[:, ::-1].copy())
    exif = PILImage.Exif()
    exif[0x0112] = 8  # seen after a quarter turn to the left
    turned.save(root / "images" / "photo_01.png", exif=exif)
    row = prepare()["train"][0]
    assert row["image"].size == row["semseg"].size == (16, 12)
    np.testing.assert_array_equal(np.asarray(row["image"]), make_maps("photo_01")["images"])


def test_lists(root):
    (root / "train.txt").write_text("photo_03\nphoto_01\n")
    with pytest.raises(FileNotFoundError, match="needs the list .*validation.txt"):
        find_source(root)
    (root / "validation.txt").write_text("photo_02\n")
    frames = find_source(root).frames
    assert {split: [frame["id"] for frame in part] for split, part in frames.items()} == {
        "train": ["photo_03", "photo_01"],
        "validation": ["photo_02"],
    }


def test_changed_description_is_read_again(root, prepare):
    before = np.asarray(prepare()["train"][0]["depth"])
    (root / "dataset.yaml").write_text(SETTINGS.replace("millimetre", "0.002"))
    np.testing.assert_allclose(np.asarray(prepare()["train"][0]["depth"]), 2 * before)


BROKEN_SETTINGS = {
    "tasks: [": "is not YAML",
    "tasks: {depth: {unit: metre}, depth: {unit: millimetre}}": "each key appears once.*'depth'",
    "tasks: {depth: {unit: [1]}}": r"unit of depth.*got \[1\]",
    "tasks: {depth: {unit: true}}": "unit of depth.*got True",
    "tasks: {normal: {axes: {a: 1}}}": "axes of normal.*got {'a': 1}",
    "tasks: {depth: []}": r"settings of depth are \['unit'\]; got \[\]",
    "tasks: {semseg: {classes: {yes: road, 5: tree}}}": "ids of semseg are whole numbers",
    "": "must name the tasks, .*got None",
    "semseg: {}": "must name the tasks",
    "tasks: []": "must name the tasks",
    "tasks: {albedo: }": "Unknown task 'albedo'; known tasks are .*depth",
    "tasks: {depth: {units: metre}}": r"settings of depth are \['unit'\]; got \{'units': 'metre'\}",
    "tasks: {depth: metre}": "settings of depth are",
    "tasks: {boundary: {unit: metre}}": "settings of boundary are none",
    "tasks: {depth: {unit: foot}}": "unit of depth is one of .*got 'foot'",
    "tasks: {depth: {unit: -1}}": "above 0; got -1",
    "tasks: {normal: {axes: x}}": "axes of normal are one of .*right-up-backward.*got 'x'",
    "tasks: {semseg: }": "classes of semseg are 2 to 255 distinct names.*got None",
    "tasks: {semseg: {classes: [a, a]}}": "distinct names",
    "tasks: {semseg: {classes: [yes, b]}}": "in quotes",
    "tasks: {semseg: {classes: {0: a, 0.5: b}}}": "whole numbers 0..65535",
    "tasks: {semseg: {classes: [a, b], ignored: 1}}": "none of them is the ignored one; .*ignored 1",
    f"tasks: {{semseg: {{classes: {list(map(str, range(256)))}}}}}": "2 to 255",
}


def test_broken_description(root):
    for text, message in BROKEN_SETTINGS.items():
        (root / "dataset.yaml").write_text(text)
        with pytest.raises(ValueError, match=f"(?s)Cannot use .*dataset.yaml: .*{message}"):
            find_source(root)


def test_a_mask_of_0_and_255_has_two_classes(root, prepare):
    """The usual mask: its white would be taken for pixels without a class, and nothing would be learned."""
    for path in (root / "parsing").iterdir():
        PILImage.fromarray(make_maps(path.stem)["boundary"]).save(path)
    with pytest.raises(DatasetGenerationError) as error:
        prepare()
    assert "write 'classes: {0: ..., 255: ...}' in dataset.yaml, or 'ignored: 255'" in str(error.value.__cause__)
    (root / "dataset.yaml").write_text(SETTINGS.replace("[background, head]", "{1: head, 0: background}"))
    with pytest.raises(DatasetGenerationError):  # in any order
        prepare()
    text = SETTINGS.replace("[background, head]", "{0: background, 255: head}")
    (root / "dataset.yaml").write_text(text)
    row = prepare()["train"][0]
    np.testing.assert_array_equal(np.asarray(row["parsing"]), make_maps(row["id"])["boundary"] // 255)


def test_classes_without_a_label_are_named(root, caplog):
    (root / "dataset.yaml").write_text(
        SETTINGS.replace("classes: [background, head]", "classes: [background, head, tail]")
    )
    get_benchmark("folder", root).load(str(root))
    assert "No training label of parsing has the classes ['tail']" in caplog.text
    assert "semseg" not in caplog.text


def test_images_of_formats_that_are_not_read_are_named(root):
    (root / "images" / "photo_90.webp").touch()
    (root / "images" / f"{NAMES[0]}.TIF").touch()  # an image has its file
    (root / "images" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"Images end in .jpg, .jpeg, .png; .*also has \['photo_90.webp'\]. Convert"):
        find_source(root)
    for name in ("train", "validation"):
        (root / f"{name}.txt").write_text("\n".join(NAMES))
    find_source(root)


def test_a_folder_with_equal_lists_is_refused(root):
    for name in ("train", "validation"):
        (root / f"{name}.txt").write_text("\n".join(NAMES))
    with pytest.raises(ValueError, match="validation images are also training images"):
        get_benchmark("folder", root).load(str(root))


def test_no_description(root):
    (root / "dataset.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="Pass the folder that has images/ and dataset.yaml"):
        get_benchmark("folder", root)
    with pytest.raises(ValueError, match="data_dir is None"):
        get_benchmark("folder")


def test_images_may_lack_maps_where_dataset_yaml_allows_it(root, prepare):
    for path in ("depth/photo_03.png", "semseg/photo_03.png", "normal/photo_04.png"):
        (root / path).unlink()
    with pytest.raises(FileNotFoundError, match="3 are missing.* or write `allow_missing: true` to dataset.yaml"):
        prepare()
    (root / "dataset.yaml").write_text(f"allow_missing: true\n{SETTINGS}")
    train = prepare()["train"]
    rows = {row["id"]: row for row in train}
    assert rows["photo_03"]["depth"] is rows["photo_03"]["semseg"] is rows["photo_03"]["semseg_classes"] is None
    assert rows["photo_04"]["normal"] is None
    assert_row_equals_files(rows["photo_05"])
    np.testing.assert_array_equal(np.asarray(rows["photo_03"]["boundary"]), make_maps("photo_03")["boundary"])
    _, labels = row_to_tensors(rows["photo_03"], ["depth", "boundary"])
    assert labels["depth"].isnan().all() and (labels["boundary"] != 255).all()
    counts = count_labels(train, ["semseg", "depth", "normal", "boundary"])
    assert counts == {"semseg": 9, "depth": 9, "normal": 9, "boundary": 10}
    assert describe_labels(counts, 10) == "labels      semseg 9, depth 9, normal 9, boundary 10 of 10 images"


def test_a_missing_image_is_never_allowed(root, prepare):
    (root / "images" / "photo_03.png").unlink()
    (root / "train.txt").write_text("photo_03\nphoto_04\n")
    (root / "validation.txt").write_text("photo_05\n")
    (root / "dataset.yaml").write_text(f"allow_missing: true\n{SETTINGS}")
    with pytest.raises(FileNotFoundError, match="1 are missing, first .*images/photo_03"):
        prepare()


def test_allow_missing_is_true_or_false(root):
    (root / "dataset.yaml").write_text(f"allow_missing: [depth]\n{SETTINGS}")
    with pytest.raises(ValueError, match=r"dataset.yaml: `allow_missing` is true or false; got \['depth'\]"):
        find_source(root)


def test_missing_files(root, prepare):
    (root / "depth" / "photo_03.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 are missing, first .*depth/photo_03.png"):
        prepare()
    shutil.rmtree(root / "depth")
    with pytest.raises(FileNotFoundError, match="there is no .*depth"):
        find_source(root)
    (root / "depth").mkdir()
    with pytest.raises(FileNotFoundError, match="depth needs files that end in .png, .npy; there are none"):
        find_source(root)


def test_two_files_of_one_id(root):
    shutil.copy(root / "images" / "photo_03.png", root / "images" / "photo_03.jpg")
    with pytest.raises(ValueError, match="An id has one file in a folder; .*photo_03.*Remove one"):
        find_source(root)


def test_one_image_cannot_be_split(root):
    for name in NAMES[1:]:
        (root / "images" / f"{name}.png").unlink()
    with pytest.raises(ValueError, match="an image each; .*has 1. Add more"):
        find_source(root)


BROKEN_FILES = {
    "unknown class": ("semseg", np.full(SHAPE, 3, np.uint8), r"\[7, 300, 0\], or the ignored 9; got \[3\]"),
    "colors for ids": ("semseg", np.zeros((*SHAPE, 3), np.uint8), "must be whole numbers"),
    "another size": ("parsing", np.zeros((3, 4), np.uint8), "size of its image"),
    "gray normals": ("normal", np.zeros(SHAPE, np.uint8), "must be 8-bit RGB"),
    "colors for depth": ("depth", np.zeros((*SHAPE, 3), np.uint8), "must be numbers"),
    "mask of 0 and 1": ("saliency", np.eye(*SHAPE, dtype=np.uint8), "got 0, 1: multiply ids by 255"),
    "mask with unknown pixels": (
        "saliency",
        np.resize(np.array([0, 1, 255], np.uint8), SHAPE),
        "got 0, 1, 255: multiply",
    ),
}


def test_broken_files_are_named(root):
    source = find_source(root)
    frame = next(frame for frame in source.frames["train"] if frame["id"] == "photo_03")
    for case, (task, values, message) in BROKEN_FILES.items():
        path = root / task / "photo_03.png"
        intact = path.read_bytes()
        PILImage.fromarray(values).save(path)
        with pytest.raises(BrokenFrameError) as error:
            source.read_row(frame)
        line = f"Cannot use {path}: .*{message}.*Restore the file, or take photo_03 off"
        assert re.search(line, str(error.value)), (case, str(error.value))
        path.write_bytes(intact)
    source.read_row(frame)


def test_one_error_names_the_broken_files_of_all_images(root, prepare):
    for name, size in (("photo_02", (3, 4)), ("photo_03", (5, 6))):
        PILImage.fromarray(np.zeros(size, np.uint8)).save(root / "semseg" / f"{name}.png")
    with pytest.raises(DatasetGenerationError) as error:
        prepare()
    assert all(f"semseg/{name}.png" in str(error.value.__cause__) for name in ("photo_02", "photo_03"))


def test_wrong_unit(root, prepare):
    (root / "dataset.yaml").write_text("tasks: {depth: {unit: metre}}")
    with pytest.raises(DatasetGenerationError) as error:
        prepare()
    with pytest.raises(
        ValueError, match="at most 1000 metres; got 65535 in the unit 'metre': check the unit in dataset.yaml"
    ):
        raise error.value.__cause__


def test_labels_reach_the_model_as_tensors(root, prepare):
    image, labels = row_to_tensors(prepare()["train"][0], ["semseg", "depth"])
    assert image.dtype == torch.uint8 and labels["semseg"].dtype == torch.int64


@pytest.fixture
def tasks_of_the_user(monkeypatch):
    """Classes of materials, and colors and weights in ranges of their own."""
    kind = {"values": "colors in [0, 1]", "predict": torch.sigmoid, "colorize": lambda values: values}
    albedo = TaskKind(num_channels=3, value_range=(0.0, 1.0), **kind)
    weight = TaskKind(**kind)
    for spec in (
        TaskSpec(name="material", kind=CLASS_IDS, num_labels=2, loss=cross_entropy),
        TaskSpec(name="albedo", kind=albedo, num_labels=3, loss=l1),
        TaskSpec(name="weight", kind=weight, num_labels=1, loss=l1),
    ):
        monkeypatch.setitem(TASKS, spec.name, spec)


def test_tasks_of_the_user(root, prepare, tasks_of_the_user):
    (root / "dataset.yaml").write_text("tasks: {material: {classes: [wood, glass]}, albedo: , weight: }")
    for task, values, suffix in (
        ("material", np.eye(*SHAPE, dtype=np.uint8), "png"),
        ("albedo", np.full((*SHAPE, 3), (51, 102, 204), np.uint8), "png"),
        ("weight", np.full(SHAPE, -2.5), "npy"),
    ):
        (root / task).mkdir()
        for name in NAMES:
            path = root / task / f"{name}.{suffix}"
            np.save(path, values) if suffix == "npy" else PILImage.fromarray(values).save(path)
    benchmark = get_benchmark("folder", root)
    assert benchmark.task_num_labels == {"material": 2, "albedo": 3, "weight": 1}
    assert benchmark.class_names == {"material": ["wood", "glass"]}
    _, labels = row_to_tensors(prepare()["train"][0], benchmark.tasks)
    np.testing.assert_array_equal(labels["material"], np.eye(*SHAPE))
    expected = torch.tensor([0.2, 0.4, 0.8])[:, None, None].expand(3, *SHAPE)
    torch.testing.assert_close(labels["albedo"], expected)
    assert (labels["weight"] == -2.5).all() and labels["weight"].shape == SHAPE


def test_broken_maps_of_a_task_of_the_user(root, tasks_of_the_user):
    (root / "dataset.yaml").write_text("tasks: {albedo: }")
    (root / "albedo").mkdir()
    for values, message in (
        (np.zeros(SHAPE, np.float32), r"must have the shape \(height, width, 3\); got \(12, 16\)"),
        (np.zeros((*SHAPE, 3), np.float32), "several channels must be an 8-bit image; got float32"),
    ):
        np.save(root / "albedo" / "photo_01.npy", values)
        source = find_source(root)
        with pytest.raises(BrokenFrameError, match=message):
            source.read_row(source.frames["train"][0])

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from datasets import DatasetDict, Image
from datasets.exceptions import DatasetGenerationError
from PIL import Image as PILImage

from transformers_sem.data import nyud_v2
from transformers_sem.data.derive import boundaries_from_labels
from transformers_sem.data.files import BrokenFrameError
from transformers_sem.data.pascal_context import CLASS_NAMES, NORMAL_CLASSES, PART_IDS, PASCALContext, find_source
from transformers_sem.data.row_format import FEATURES
from transformers_sem.tasks import TASKS, to_label


HEIGHT, WIDTH = 12, 16
SHAPE = (HEIGHT, WIDTH)
IDS = {"train": ["2008_000003", "2008_000001", "2008_000010"], "val": ["2008_000002", "2008_000007"]}
NAMES = [name for names in IDS.values() for name in names]
WITHOUT_PEOPLE = "2008_000001"
COLUMNS = ["image", "semseg", "normal", "boundary", "parsing", "saliency", "label_map"]
FOLDERS = ["JPEGImages", "semseg/VOC12", "human_parts", "sal_distill", "normals_distill", "pascal-context/trainval"]
SHARED = Path(__file__).resolve().parents[3] / "shared"
REAL_FRAMES = Path(os.environ.get("SEM_PASCAL_CONTEXT_DIR", SHARED / "data" / "pascal_context"))


def rectangle(top: int, left: int, bottom: int, right: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def make_objects(*annotations: tuple[int, dict[str, np.ndarray]]) -> np.ndarray:
    """Class index and parts of each object, as PASCAL-Part has them."""
    objects = np.empty((1, len(annotations)), [(name, object) for name in ("class", "class_ind", "mask", "parts")])
    for index, (class_index, masks) in enumerate(annotations):
        parts = np.empty((1, len(masks)) if masks else (0, 0), [("part_name", object), ("mask", object)])
        for position, part in enumerate(masks.items()):
            parts[0, position] = part
        name = CLASS_NAMES["semseg"][class_index]
        objects[0, index] = (name, np.uint8(class_index), rectangle(0, 0, 9, 9), parts)
    return objects


def save_parts(path: Path, *annotations: tuple[int, dict[str, np.ndarray]]) -> None:
    scipy.io.savemat(path, {"anno": {"imname": path.stem, "objects": make_objects(*annotations)}}, do_compression=True)


def save_label_map(path: Path, label_map: np.ndarray) -> None:
    scipy.io.savemat(path, {"LabelMap": label_map}, do_compression=True)


PERSON = (15, {"head": rectangle(0, 0, 4, 4), "torso": rectangle(3, 0, 8, 6), "neck": rectangle(3, 1, 5, 3)})
SECOND_PERSON = (15, {"rhand": rectangle(6, 4, 9, 9), "lfoot": rectangle(10, 9, 12, 12)})
DOG = (12, {"head": rectangle(0, 8, 12, 16), "lfleg": rectangle(0, 8, 4, 9)})
TABLE = (11, {})


def draw_parsing() -> np.ndarray:
    """What the two people above look like."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[0:4, 0:4] = 1
    labels[3:8, 0:6] = 2
    labels[6:9, 4:9] = 4
    labels[10:12, 9:12] = 6
    return labels


def make_label_map(name: str) -> np.ndarray:
    """Wall (440) and sky (360), valid and not, around a monitor (427)."""
    label_map = np.full(SHAPE, 440, np.uint16)
    label_map[:, WIDTH // 2 :] = 360
    label_map[2:6, 2 : 3 + int(name[-2:])] = 427
    return label_map


def write_frame(root: Path, name: str) -> None:
    rng = np.random.default_rng(int(name[-2:]))
    colors = rng.integers(0, 256, (2, *SHAPE, 3), dtype=np.uint8)
    semseg = PILImage.fromarray(np.where(rng.random(SHAPE) < 0.1, 255, rng.integers(0, 21, SHAPE)).astype(np.uint8))
    semseg.putpalette(rng.integers(0, 256, 768).tolist())
    PILImage.fromarray(colors[0]).save(root / "JPEGImages" / f"{name}.jpg")
    semseg.save(root / "semseg" / "VOC12" / f"{name}.png")
    PILImage.fromarray(rng.integers(0, 256, SHAPE, dtype=np.uint8)).save(root / "sal_distill" / f"{name}.png")
    PILImage.fromarray(colors[1]).save(root / "normals_distill" / f"{name}.png")
    save_label_map(root / "pascal-context" / "trainval" / f"{name}.mat", make_label_map(name))
    people = [] if name == WITHOUT_PEOPLE else [PERSON, SECOND_PERSON]
    save_parts(root / "human_parts" / f"{name}.mat", TABLE, *people, DOG)


@pytest.fixture(scope="module")
def unchanged_root(tmp_path_factory):
    """A tiny PASCALContext folder."""
    root = tmp_path_factory.mktemp("data") / "PASCALContext"
    for folder in (*FOLDERS, "ImageSets/Context", "ImageSets/Parts"):
        (root / folder).mkdir(parents=True)
    for split, names in IDS.items():
        (root / "ImageSets" / "Context" / f"{split}.txt").write_text("\n".join(names) + "\n")
        classes = {name: [11, 12] if name == WITHOUT_PEOPLE else [11, 15, 15, 12] for name in names}
        (root / "ImageSets" / "Parts" / f"{split}.txt").write_text(json.dumps(classes))
        for name in names:
            write_frame(root, name)
    return root


@pytest.fixture
def root(unchanged_root, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(unchanged_root, tmp_path / "data" / "PASCALContext")


@pytest.fixture
def prepare(root, tmp_path):
    """Builds and reads the dataset."""

    def prepare(data_dir: Path = root.parent, **options) -> DatasetDict:
        builder = PASCALContext(data_dir=str(data_dir), cache_dir=str(tmp_path / "cache"))
        builder.download_and_prepare(**options)
        return builder.as_dataset()

    return prepare


def read_array(path: Path) -> np.ndarray:
    return np.asarray(PILImage.open(path))


def rows_by_id(dataset: DatasetDict) -> dict[str, dict]:
    return {row["id"]: row for rows in dataset.values() for row in rows}


def slow_boundary(label_map: np.ndarray) -> np.ndarray:
    """Four neighbors less four times the pixel, mirrored at the border without repeating it."""
    skimage_morphology = pytest.importorskip("skimage.morphology")
    padded = np.pad(label_map.astype(int), 1, mode="reflect")
    neighbors = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return skimage_morphology.thin(np.abs(neighbors - 4 * padded[1:-1, 1:-1]) > 0)


def assert_row_equals_files(row: dict, root: Path) -> None:
    name = row["id"]
    label_map = make_label_map(name)
    vectors = read_array(root / f"normals_distill/{name}.png").transpose(2, 0, 1) / 127.5 - 1
    length = np.linalg.norm(vectors, axis=0)
    valid = (length > 0.5) & (label_map != 360)
    expected = {
        "semseg": read_array(root / f"semseg/VOC12/{name}.png"),
        "parsing": np.full(SHAPE, 255) if name == WITHOUT_PEOPLE else draw_parsing(),
        "saliency": read_array(root / f"sal_distill/{name}.png") > 127,
        "normal": np.where(valid, vectors / np.maximum(length, 0.5), np.nan),
        "boundary": slow_boundary(label_map),
    }
    np.testing.assert_array_equal(np.asarray(row["image"]), read_array(root / f"JPEGImages/{name}.jpg"))
    np.testing.assert_array_equal(np.asarray(row["label_map"]), label_map)
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
    for row in rows_by_id(dataset).values():
        assert_row_equals_files(row, root)


def test_features_follow_the_row_schema(prepare):
    features = prepare()["train"].features
    assert list(features) == ["id", *COLUMNS, "semseg_classes", "parsing_classes", "derived"]
    assert {task: features[f"{task}_classes"].feature.names for task in CLASS_NAMES} == CLASS_NAMES
    assert all(features[column] == FEATURES[column] for column in COLUMNS[:-1])
    assert features["label_map"] == Image()


def test_stored_images(prepare, root):
    rows = prepare()["train"]
    modes = {column: rows[0][column].mode for column in COLUMNS[:-1]}
    assert modes == {"image": "RGB", "normal": "RGB", **dict.fromkeys(["semseg", "parsing", "saliency"], "L")} | {
        "boundary": "L"
    }
    raw = rows.cast_column("image", Image(decode=False)).cast_column("label_map", Image(decode=False))[0]
    assert raw["image"]["bytes"] == (root / "JPEGImages" / "2008_000003.jpg").read_bytes()
    assert raw["label_map"]["bytes"].startswith(b"\x89PNG")


def test_values_of_pixels(prepare, root):
    codes = np.full((*SHAPE, 3), [128, 128, 0], np.uint8)
    codes[0, 0] = 128
    name = "2008_000003"
    PILImage.fromarray(codes).save(root / f"normals_distill/{name}.png")
    PILImage.fromarray(np.array([[127, 128] * 8] * HEIGHT, np.uint8)).save(root / f"sal_distill/{name}.png")
    row = rows_by_id(prepare())[name]
    normal, saliency = np.asarray(row["normal"]), np.asarray(row["saliency"])
    assert saliency[0, :2].tolist() == [0, 1] and saliency.max() == 1
    assert normal[0, 1].tolist() == normal[3, 3].tolist() == [128, 128, 0]  # wall, tvmonitor
    assert normal[0, 0].tolist() == normal[0, -1].tolist() == [128, 128, 128]  # unknown, sky
    assert np.unique(np.asarray(row["boundary"])).tolist() == [0, 255]


def test_boundary_of_a_step():
    """A step changes the Laplacian on both of its sides, and thinning leaves one of them."""
    pytest.importorskip("skimage")
    label_map = np.zeros((9, 10), np.uint16)
    label_map[:, 5:] = 459
    boundary = boundaries_from_labels(label_map)
    assert boundary.dtype == np.uint8 and not boundary[:, [0, 1, 2, 3, 6, 7, 8, 9]].any()
    assert ((boundary == 255).sum(axis=1)[1:-1] == 1).all()
    assert not boundaries_from_labels(np.full((9, 10), 7, np.uint16)).any()


def test_boundary_where_unsigned_numbers_would_overflow():
    pytest.importorskip("skimage")
    label_map = np.random.default_rng(0).integers(0, 460, (20, 30)).astype(np.uint16)
    np.testing.assert_array_equal(boundaries_from_labels(label_map) > 0, slow_boundary(label_map))


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32])
def test_label_maps_of_any_integer_type(prepare, root, dtype):
    name = "2008_000003"
    save_label_map(root / f"pascal-context/trainval/{name}.mat", make_label_map(name).astype(dtype))
    np.testing.assert_array_equal(np.asarray(rows_by_id(prepare())[name]["label_map"]), make_label_map(name))


def test_later_parts_win(prepare, root):
    overlapping = {"head": rectangle(0, 0, 6, 6), "luleg": rectangle(2, 2, 8, 8)}
    save_parts(root / "human_parts/2008_000003.mat", (15, overlapping), (15, {"hair": rectangle(4, 4, 5, 5)}))
    labels = np.asarray(rows_by_id(prepare())["2008_000003"]["parsing"])
    assert [labels[0, 0], labels[3, 3], labels[4, 4], labels[5, 5], labels[9, 9]] == [1, 5, 1, 5, 0]


@pytest.mark.parametrize("objects", [[(15, {})], [(15, {"head": rectangle(0, 0, 0, 0)})], [DOG], []])
def test_people_without_parts_are_invalid(prepare, root, objects):
    save_parts(root / "human_parts/2008_000003.mat", *objects)
    assert (np.asarray(rows_by_id(prepare())["2008_000003"]["parsing"]) == 255).all()


def test_parts_list_decides_which_annotations_are_read(prepare, root):
    (root / "human_parts" / f"{WITHOUT_PEOPLE}.mat").unlink()
    (root / "ImageSets" / "Parts" / "val.txt").write_text('{"2008_000002": [15], "another": [15]}')
    (root / "human_parts" / "2008_000007.mat").write_bytes(b"not read")
    rows = rows_by_id(prepare())
    invalid = {name for name, row in rows.items() if (np.asarray(row["parsing"]) == 255).all()}
    assert invalid == {WITHOUT_PEOPLE, "2008_000007"}


def test_without_parts_list_the_annotations_that_exist_are_read(prepare, root):
    shutil.rmtree(root / "ImageSets" / "Parts")
    (root / "human_parts" / "2008_000003.mat").unlink()
    rows = rows_by_id(prepare())
    invalid = {name for name, row in rows.items() if (np.asarray(row["parsing"]) == 255).all()}
    assert invalid == {WITHOUT_PEOPLE, "2008_000003"}


def test_missing_annotation_of_people(prepare, root):
    (root / "human_parts" / "2008_000003.mat").unlink()
    with pytest.raises(FileNotFoundError, match="1 are missing, first .*human_parts/2008_000003.mat"):
        prepare()


def test_images_may_lack_maps_where_dataset_yaml_allows_it(prepare, root):
    first, second = IDS["train"][:2]
    for path in (f"pascal-context/trainval/{first}.mat", f"sal_distill/{second}.png"):
        (root / path).unlink()
    (root / "dataset.yaml").write_text("allow_missing: true\n")
    rows = rows_by_id(prepare())
    lacking = {name: sorted(column for column, value in row.items() if value is None) for name, row in rows.items()}
    assert lacking[first] == ["boundary", "label_map", "normal"]  # LabelMap says which normals are valid
    assert lacking[second] == ["saliency"]
    assert not any(lacking[name] for name in rows if name not in (first, second))


def test_semseg_of_the_other_folder(prepare, root):
    name, other = "2008_000003", root / "semseg" / "pascal-context"
    other.mkdir()
    PILImage.fromarray(np.full(SHAPE, 7, np.uint8)).save(other / f"{name}.png")
    before = np.asarray(rows_by_id(prepare())[name]["semseg"])
    (root / "semseg" / "VOC12" / f"{name}.png").unlink()
    rows = rows_by_id(prepare())
    assert not (before == 7).all() and (np.asarray(rows[name]["semseg"]) == 7).all()
    for split_name in set(NAMES) - {name}:
        assert_row_equals_files(rows[split_name], root)
    shutil.rmtree(root / "semseg" / "VOC12")
    with pytest.raises(FileNotFoundError, match="4 are missing, first .*semseg/pascal-context/2008_000001.png"):
        prepare()


MAPS_BY_FOLDER = {
    "semseg": ["semseg"],
    "human_parts": ["parsing"],
    "sal_distill": ["saliency"],
    "normals_distill": ["normal"],
    "pascal-context": ["boundary", "label_map"],
}


# what `LabelMap` gives where there are no files
DERIVED = ["semseg"]


def images(dataset: DatasetDict) -> list[str]:
    return [column for column, feature in dataset["train"].features.items() if isinstance(feature, Image)]


@pytest.mark.parametrize("folder", MAPS_BY_FOLDER)
def test_map_without_folder_is_left_out(prepare, root, folder):
    shutil.rmtree(root / folder)
    expected = [column for column in COLUMNS if column not in MAPS_BY_FOLDER[folder] or column in DERIVED]
    dataset = prepare()
    assert images(dataset) == expected
    assert all(row[column] is not None for row in rows_by_id(dataset).values() for column in expected)


@pytest.mark.parametrize("folder", MAPS_BY_FOLDER)
def test_one_map_is_enough(prepare, root, folder):
    for other in set(MAPS_BY_FOLDER) - {folder}:
        shutil.rmtree(root / other)
    derived = [*DERIVED] if folder == "pascal-context" else []
    assert images(prepare()) == ["image", *derived, *MAPS_BY_FOLDER[folder]]


def test_normals_without_label_map_all_count(prepare, root):
    shutil.rmtree(root / "pascal-context")
    for name, row in rows_by_id(prepare()).items():
        np.testing.assert_array_equal(np.asarray(row["normal"]), read_array(root / f"normals_distill/{name}.png"))


def test_added_folder_is_read_again(prepare, root, tmp_path):
    shutil.move(root / "sal_distill", tmp_path / "sal_distill")
    assert "saliency" not in prepare()["train"].features
    shutil.move(tmp_path / "sal_distill", root / "sal_distill")
    assert "saliency" in prepare()["train"].features


def test_cache_does_not_need_the_files(prepare, root):
    dataset = prepare()
    for path in root.rglob("*.*"):
        path.unlink()
    assert all(row[column] is not None for row in dataset["train"] for column in COLUMNS)


@pytest.mark.slow
def test_processes_write_the_same_rows(prepare):
    one = prepare()["train"]
    two = prepare(num_proc=2, download_mode="force_redownload")["train"]
    assert one["id"][:] == two["id"][:]
    for column in COLUMNS:
        one, two = (rows.cast_column(column, Image(decode=False)) for rows in (one, two))
    assert one[:] == two[:]


def test_streaming(root, tmp_path):
    rows = PASCALContext(data_dir=str(root), cache_dir=str(tmp_path / "cache")).as_streaming_dataset("train")
    names = []
    for row in rows:
        assert_row_equals_files(row, root)
        names.append(row["id"])
    assert names == IDS["train"]


def test_cache_is_named_by_folder_and_lists(root, tmp_path, monkeypatch):
    def cache_dir(data_dir) -> str:
        return PASCALContext(data_dir=str(data_dir), cache_dir=str(tmp_path / "cache")).cache_dir

    first = cache_dir(root)
    assert cache_dir(root.parent) == first
    monkeypatch.chdir(root.parent)
    assert cache_dir(".") == first
    other = root.with_name("PASCAL_MT")
    root.rename(other)
    assert cache_dir(root.parent) == cache_dir(other) != first
    other.rename(root)
    parts = root / "ImageSets" / "Parts" / "val.txt"
    text = parts.read_text()
    parts.write_text("{}")
    assert cache_dir(root) != first
    parts.write_text(text)
    assert cache_dir(root) == first
    (root / "ImageSets" / "Context" / "val.txt").write_text("2008_000002\n")
    assert cache_dir(root) != first


def test_class_names():
    assert {task: len(names) for task, names in CLASS_NAMES.items()} == {"semseg": 21, "parsing": 7}
    assert [CLASS_NAMES["semseg"][index] for index in (0, 1, 15, 20)] == [
        "background",
        "aeroplane",
        "person",
        "tvmonitor",
    ]
    assert len(PART_IDS) == 24
    assert [PART_IDS[name] for name in ("nose", "neck", "ruarm", "lhand", "luleg", "rfoot")] == [1, 2, 3, 4, 5, 6]


def test_normals_count_on_classes_of_nyu():
    assert set(NORMAL_CLASSES.values()) - set(nyud_v2.CLASS_NAMES["semseg"]) == {"tvmonitor"}
    assert len(set(NORMAL_CLASSES.values())) == len(NORMAL_CLASSES) == 25
    # The label maps' ids of VOC classes, as the dataset documents them, and three of no VOC class.
    voc = {72: "chair", 284: "person", 368: "sofa", 397: "table", 427: "tvmonitor"}
    assert voc.items() <= NORMAL_CLASSES.items()
    assert {158: "floor", 440: "wall", 454: "window"}.items() <= NORMAL_CLASSES.items()


def test_data_dir_is_needed():
    with pytest.raises(ValueError, match="data_dir is None; pass the folder .* that has JPEGImages/"):
        PASCALContext()


def test_missing_folder(prepare, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder .*nowhere; pass the folder .* that has"):
        prepare(tmp_path / "nowhere")


def test_missing_sub_folders(prepare, tmp_path):
    (tmp_path / "other" / "JPEGImages").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=r"Pass the folder .* that has .*other is no such folder and holds \['JPEGImages'\]"
    ):
        prepare(tmp_path / "other")


def test_images_alone_are_not_enough(prepare, root):
    for folder in MAPS_BY_FOLDER:
        shutil.rmtree(root / folder)
    with pytest.raises(FileNotFoundError, match=r"has images only. Add at least one of \['semseg/VOC12', "):
        prepare()


def test_missing_list(prepare, root):
    (root / "ImageSets" / "Context" / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match="split needs the list .*val.txt, which does not exist; write"):
        prepare()


def test_empty_list(prepare, root):
    (root / "ImageSets" / "Context" / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match="split needs at least one id, and .*train.txt is empty"):
        prepare()


def test_list_that_is_no_text(prepare, root):
    (root / "ImageSets" / "Context" / "train.txt").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(ValueError, match="An id is a plain name; .*train.txt has"):
        prepare()


def test_broken_parts_list(prepare, root):
    path = root / "ImageSets" / "Parts" / "train.txt"
    for content in (
        b"",
        b"2008_000001\n",
        b"\xff\xfe\x80",
        b"[]",
        b'{"2008_000001": 15}',
        b'{"2008_000001": ["person"]}',
        b'{"2008_000001": [21]}',
        b'{"2008_000001": [[15]]}',
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"Cannot use {path}: it must .*Restore it, or remove it"):
            prepare()


def test_missing_files_are_counted(prepare, root):
    for path in [*(root / "sal_distill").iterdir(), root / "pascal-context" / "trainval" / "2008_000002.mat"]:
        path.unlink()
    with pytest.raises(FileNotFoundError, match="6 are missing, first .*2008_000002.* Restore") as error:
        prepare()
    assert str(error.value).count(str(root)) == 5


NAME = "2008_000003"
OTHER_SHAPE = (HEIGHT, 7)
BROKEN_FILES = {
    "no image": (f"JPEGImages/{NAME}.jpg", b"<html>", "cannot identify image"),
    "empty image": (f"JPEGImages/{NAME}.jpg", b"", "cannot identify image"),
    "cut image": (f"JPEGImages/{NAME}.jpg", None, "truncated"),
    "gray image": (f"JPEGImages/{NAME}.jpg", np.zeros(SHAPE, np.uint8), r"must be 8-bit RGB .*; got uint8 \(12, 16\)"),
    "class 21": (f"semseg/VOC12/{NAME}.png", np.full(SHAPE, 21, np.uint8), "0..20, and 255 where unlabeled; got 21"),
    "16 bit classes": (f"semseg/VOC12/{NAME}.png", np.full(SHAPE, 300, np.uint16), "must be .* got 300"),
    "color classes": (f"semseg/VOC12/{NAME}.png", np.ones((*SHAPE, 3), np.uint8), r"got uint8 \(12, 16, 3\)"),
    "small classes": (
        f"semseg/VOC12/{NAME}.png",
        np.ones(OTHER_SHAPE, np.uint8),
        r"\(12, 16\) \(height, width\); got \(12, 7\)",
    ),
    "empty classes": (f"semseg/VOC12/{NAME}.png", b"", "cannot identify image"),
    "cut saliency": (f"sal_distill/{NAME}.png", None, "(truncated|broken|Truncated)"),
    "1 bit saliency": (f"sal_distill/{NAME}.png", np.ones(SHAPE, bool), "8-bit gray .*; got bool"),
    "color saliency": (
        f"sal_distill/{NAME}.png",
        np.ones((*SHAPE, 3), np.uint8),
        r"8-bit gray .*; got uint8 \(12, 16, 3\)",
    ),
    "small saliency": (f"sal_distill/{NAME}.png", np.ones(OTHER_SHAPE, np.uint8), r"got \(12, 7\)"),
    "gray normals": (
        f"normals_distill/{NAME}.png",
        np.ones(SHAPE, np.uint8),
        r"must be 8-bit RGB .*; got uint8 \(12, 16\)",
    ),
    "small normals": (f"normals_distill/{NAME}.png", np.ones((*OTHER_SHAPE, 3), np.uint8), r"got \(12, 7\)"),
    "empty label map": (f"pascal-context/trainval/{NAME}.mat", b"", "must be a MATLAB file; .* truncated"),
    "other label map": (f"pascal-context/trainval/{NAME}.mat", b"<html>" * 50, "Unknown mat file type"),
    "cut label map": (f"pascal-context/trainval/{NAME}.mat", None, "must be a MATLAB file; "),
    "no label map": (f"pascal-context/trainval/{NAME}.mat", {"other": 1}, r"variable LabelMap; got \['other'\]"),
    "class 460": (f"pascal-context/trainval/{NAME}.mat", {"LabelMap": np.full(SHAPE, 460)}, "0..459; got 460"),
    "class -1": (f"pascal-context/trainval/{NAME}.mat", {"LabelMap": np.full(SHAPE, -1)}, "0..459; got -1"),
    "fractions": (f"pascal-context/trainval/{NAME}.mat", {"LabelMap": np.ones(SHAPE)}, "whole numbers .* got float64"),
    "cube": (f"pascal-context/trainval/{NAME}.mat", {"LabelMap": np.ones((*SHAPE, 2), int)}, r"\(12, 16, 2\)"),
    "small label map": (f"pascal-context/trainval/{NAME}.mat", {"LabelMap": np.ones(OTHER_SHAPE, int)}, r"\(12, 7\)"),
    "no label": (f"pascal-context/trainval/{NAME}.mat", {"LabelMap": np.ones((0, 0), int)}, r"\(0, 0\)"),
    "empty parts": (f"human_parts/{NAME}.mat", b"", "must be a MATLAB file; .* truncated"),
    "cut parts": (f"human_parts/{NAME}.mat", None, "must be a MATLAB file; "),
    "no anno": (f"human_parts/{NAME}.mat", {"LabelMap": 1}, r"variable anno; got \['LabelMap'\]"),
    "anno of a number": (f"human_parts/{NAME}.mat", {"anno": 1}, "anno must hold objects with class_ind"),
    "anno without objects": (f"human_parts/{NAME}.mat", {"anno": {"imname": "a"}}, "no field of name objects"),
    "objects of text": (f"human_parts/{NAME}.mat", {"anno": {"objects": "dog"}}, "anno must hold objects"),
    "objects without class": (f"human_parts/{NAME}.mat", {"anno": {"objects": {"mask": 1}}}, "name class_ind"),
    "parts without mask": (
        f"human_parts/{NAME}.mat",
        {"anno": {"objects": {"class_ind": 15, "parts": {"part_name": "head"}}}},
        "no field of name mask",
    ),
    "unknown part": (
        f"human_parts/{NAME}.mat",
        {"anno": {"objects": make_objects((15, {"tail": rectangle(0, 0, 4, 4)}))}},
        "must be called .*'hair'.*; got 'tail'",
    ),
    "small mask": (
        f"human_parts/{NAME}.mat",
        {"anno": {"objects": make_objects((15, {"head": rectangle(0, 0, 4, 4, OTHER_SHAPE)}))}},
        r"mask of head must be whole numbers \(12, 16\); got uint8 \(12, 7\)",
    ),
    "mask of fractions": (
        f"human_parts/{NAME}.mat",
        {"anno": {"objects": make_objects((15, {"head": np.ones(SHAPE)}))}},
        "mask of head must be whole numbers .*; got float64",
    ),
}


def break_file(path: Path, content: bytes | dict | np.ndarray | None) -> None:
    if content is None:
        path.write_bytes(path.read_bytes()[:-60])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        scipy.io.savemat(path, content)
    else:
        PILImage.fromarray(content).save(path)


def test_broken_files_are_named(root):
    source = find_source(root)
    frame = next(frame for frame in source.frames["train"] if frame["id"] == NAME)
    for case, (name, content, message) in BROKEN_FILES.items():
        path = root / name
        intact = path.read_bytes()
        break_file(path, content)
        with pytest.raises(BrokenFrameError) as error:
            source.read_row(frame)
        line = f"Cannot use {path}: .*{message}.*Restore the file, or take {NAME} off"
        assert re.search(line, str(error.value)), (case, str(error.value))
        path.write_bytes(intact)
    source.read_row(frame)


def test_the_builder_names_a_broken_file(prepare, root):
    path = root / "pascal-context" / "trainval" / f"{NAME}.mat"
    path.write_bytes(b"")
    with pytest.raises(DatasetGenerationError) as error:
        prepare()
    assert f"Cannot use {path}: it must be a MATLAB file" in str(error.value.__cause__)


def test_broken_file_is_named_by_processes(prepare, root):
    (root / "pascal-context" / "trainval" / f"{NAME}.mat").write_bytes(b"")
    with pytest.raises(DatasetGenerationError) as error:
        prepare(num_proc=2)
    assert f"{NAME}.mat" in str(error.value.__cause__)


real_frames = pytest.mark.skipif(
    not REAL_FRAMES.is_dir(), reason=f"no {REAL_FRAMES}; set SEM_PASCAL_CONTEXT_DIR to the real frames"
)


@pytest.mark.slow
@real_frames
def test_real_frames(prepare):
    dataset = prepare(REAL_FRAMES)
    for split, name in (("train", "train"), ("validation", "val")):
        assert dataset[split]["id"][:] == (REAL_FRAMES / f"ImageSets/Context/{name}.txt").read_text().split()
    for row in dataset["validation"]:
        labels = np.asarray(row["semseg"])
        assert labels.shape == (row["image"].height, row["image"].width)
        np.testing.assert_array_equal(labels, read_array(REAL_FRAMES / f"semseg/VOC12/{row['id']}.png"))
    for labels in dataset["train"]["semseg"]:
        assert set(np.unique(labels)) <= {*range(21), 255}


@real_frames
def test_real_human_parts(prepare, tmp_path):
    """The annotated images are on no list, and have no classes."""
    names = sorted(path.stem for path in (REAL_FRAMES / "human_parts").iterdir())
    folder = tmp_path / "real"
    (folder / "ImageSets" / "Context").mkdir(parents=True)
    for name in ("JPEGImages", "human_parts"):
        (folder / name).symlink_to(REAL_FRAMES / name)
    for split, ids in (("train", names[1:]), ("val", names[:1])):
        (folder / "ImageSets" / "Context" / f"{split}.txt").write_text("\n".join(ids))
    rows = rows_by_id(prepare(folder))
    labels = {name: np.asarray(row["parsing"]) for name, row in rows.items()}
    assert all(labels[name].shape == (row["image"].height, row["image"].width) for name, row in rows.items())
    with_people = [name for name in names if labels[name].min() == 0]
    assert len(names) == 18 and len(with_people) == 8
    assert all(set(np.unique(labels[name])) <= set(range(7)) for name in with_people)
    assert all((labels[name] == 255).all() for name in set(names) - set(with_people))

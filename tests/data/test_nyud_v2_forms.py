"""Every form of NYU-Depth v2 gives the same rows."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from transformers_sem.data.derive import Intrinsics, normals_from_depth
from transformers_sem.data.files import BrokenFrameError, read_variable
from transformers_sem.data.nyud_v2 import NYUDv2, find_source, read_class_map, read_official_frame
from transformers_sem.data.prepare import plan_shards

from ..data import nyud_v2_forms as forms


REAL_FRAMES = Path(os.environ.get("SEM_NYUD_V2_DIR", Path(__file__).resolve().parents[3] / "shared"))
EXPAND_TOOL = REAL_FRAMES / "tools" / "expand_nyud_v2.py"
IDS = {"train": ["0003", "0001"], "val": ["0002"]}
SHAPE = (425, 560)
FITTED_NORMALS: dict[bytes, np.ndarray] = {}


def write_frame(root: Path, name: str) -> None:
    """A slanted floor with boxes on it, in noise."""
    rng = np.random.default_rng(int(name))
    segmentation = np.kron(rng.integers(0, 41, (17, 20), dtype=np.uint8), np.ones((25, 28), np.uint8))
    depth = (np.linspace(4, 1, SHAPE[0])[:, None] + np.kron(rng.random((17, 20)) > 0.8, np.ones((25, 28))) / 4).repeat(
        1, 1
    )
    depth[200:210, 300:330] = 0
    noise = rng.integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    images = {
        "images": noise,
        "segmentation": segmentation,
        "normals": np.kron(rng.integers(0, 256, (17, 20, 3), dtype=np.uint8), np.ones((25, 28, 1), np.uint8)),
        "edge": (segmentation == 7).astype(np.uint8) * 255,
    }
    for folder, values in images.items():
        Image.fromarray(values).save(root / folder / f"{name}.png")
    np.save(root / "depth" / f"{name}.npy", depth.astype(np.float32))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "NYUDv2"
    for folder in ("images", "segmentation", "depth", "normals", "edge", "gt_sets"):
        (root / folder).mkdir(parents=True)
    for split, names in IDS.items():
        (root / f"gt_sets/{split}.txt").write_text("\n".join(names))
        for name in names:
            write_frame(root, name)
    return root


@pytest.fixture(scope="module")
def bare_root(root, tmp_path_factory):
    """The same without files of normals and edges."""
    return without_derivable(root, tmp_path_factory.mktemp("bare") / "NYUDv2")


def without_derivable(root: Path, target: Path) -> Path:
    return shutil.copytree(root, target, ignore=shutil.ignore_patterns("normals", "edge"))


@pytest.fixture(scope="module")
def expected(root):
    return read_rows(root)


@pytest.fixture(scope="module")
def bare_rows(bare_root):
    """Rows with fitted normals, which take a third of a second each."""
    return read_rows(bare_root)


@pytest.fixture(scope="module")
def official_files(bare_root, tmp_path_factory):
    return forms.write_official(bare_root, tmp_path_factory.mktemp("matlab") / "official")


@pytest.fixture
def official(official_files, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(official_files, tmp_path / "official")


@pytest.fixture
def fit_once(monkeypatch):
    """Normals of a depth map are fitted once in all tests."""

    def fit(depth: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
        key = depth.tobytes()
        if key not in FITTED_NORMALS:
            FITTED_NORMALS[key] = normals_from_depth(depth, intrinsics)
        return FITTED_NORMALS[key]

    monkeypatch.setattr("transformers_sem.data.nyud_v2.normals_from_depth", fit)


@pytest.fixture(autouse=True)
def unpack_into(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.EXTRACTED_DATASETS_PATH", str(tmp_path / "extracted"))


def read_rows(data_dir: Path) -> dict[str, list[dict]]:
    source = find_source(data_dir)
    return {
        split: [
            source.features.decode_example(source.features.encode_example(source.read_row(frame))) for frame in frames
        ]
        for split, frames in source.frames.items()
    }


def assert_equal_rows(rows: dict[str, list[dict]], expected: dict[str, list[dict]]) -> None:
    assert {split: [row["id"] for row in part] for split, part in rows.items()} == {
        split: [row["id"] for row in part] for split, part in expected.items()
    }
    for split, part in expected.items():
        for row, expected_row in zip(rows[split], part, strict=True):
            assert list(row) == list(expected_row)
            for column, value in expected_row.items():
                assert (row[column] == value) if not isinstance(value, Image.Image) else True
                np.testing.assert_array_equal(np.asarray(row[column]), np.asarray(value), err_msg=column)


def test_archive(root, expected, tmp_path):
    archive = forms.write_archive(root, tmp_path / "NYUDv2.tar.gz")
    assert_equal_rows(read_rows(archive), expected)


def test_full_frames(root, expected, tmp_path):
    """Some copies have maps as .npy, normals as vectors."""
    target = forms.write_full_frames(root, tmp_path / "NYUD_MT")
    rows = read_rows(target.parent)
    assert rows["train"][0]["image"].size == (560, 425)
    assert_equal_rows(rows, expected)
    for folder in ("segmentation", "edge", "normals"):
        for path in sorted((target / folder).iterdir()):
            values = forms.read(path)
            np.save(path.with_suffix(".npy"), values / 127.5 - 1 if folder == "normals" else values)
            path.unlink()
    assert_equal_rows(read_rows(target), expected)


def test_official_file(official_files, bare_rows, fit_once):
    assert_equal_rows(read_rows(official_files), bare_rows)
    assert_equal_rows(read_rows(official_files / "nyu_depth_v2_labeled.mat"), bare_rows)
    assert bare_rows["train"][0]["derived"] == ["normal", "boundary"]


@pytest.mark.slow
def test_builder_of_every_form(bare_root, bare_rows, official_files, tmp_path, fit_once):
    sources = [
        bare_root,
        forms.write_archive(bare_root, tmp_path / "NYUDv2.tar"),
        forms.write_full_frames(bare_root, tmp_path / "NYUD_MT"),
        official_files,
    ]
    for source in sources:
        builder = NYUDv2(data_dir=str(source), cache_dir=str(tmp_path / "cache"))
        builder.download_and_prepare()
        assert_equal_rows({split: list(rows) for split, rows in builder.as_dataset().items()}, bare_rows)


def test_derived_columns_are_named(root, expected, tmp_path):
    assert [row["derived"] for row in expected["train"]] == [[], []]
    shutil.copytree(root, tmp_path / "a", ignore=shutil.ignore_patterns("edge"))
    assert [row["derived"] for row in read_rows(tmp_path / "a")["train"]] == [["boundary"]] * 2


def test_normals_of_an_unknown_camera(bare_root, tmp_path):
    small = shutil.copytree(bare_root, tmp_path / "small")
    for path in [*small.rglob("*.png"), *small.rglob("*.npy")]:
        values = forms.read(path)[:100, :100]
        np.save(path, values) if path.suffix == ".npy" else Image.fromarray(values).save(path)
    with pytest.raises(BrokenFrameError, match=r"camera is known; 0003 is \(100, 100\). Add a folder normals/"):
        read_rows(small)


def test_official_file_alone(official):
    for name in ("splits.mat", "classMapping40.mat"):
        content = (official / name).read_bytes()
        (official / name).unlink()
        with pytest.raises(FileNotFoundError, match="labeled.mat needs .* in the same folder.* Copy it there"):
            find_source(official)
        (official / name).write_bytes(content)


def test_a_pipe_beside_the_class_map_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.mat")
    scipy.io.savemat(tmp_path / "map.mat", {"mapClass": np.arange(894) % 41})
    path, classes = read_class_map(tmp_path)
    assert path == tmp_path / "map.mat" and classes.tolist() == [0, *(np.arange(894) % 41)]


def test_only_a_map_to_40_classes_is_one(tmp_path):
    for name, values in (("a13", np.arange(894) % 14), ("b40", np.arange(41))):
        scipy.io.savemat(tmp_path / f"{name}.mat", {"mapClass": values})
    with pytest.raises(FileNotFoundError, match="with 894 numbers up to 40"):
        read_class_map(tmp_path)
    for name in ("c40", "d40"):
        scipy.io.savemat(tmp_path / f"{name}.mat", {"mapClass": np.arange(894) % 41})
    assert read_class_map(tmp_path)[0] == tmp_path / "c40.mat"
    scipy.io.savemat(tmp_path / "d40.mat", {"mapClass": np.arange(1, 895) % 41})
    with pytest.raises(ValueError, match=r"c40\.mat.*d40\.mat.* differ. Remove all but one"):
        read_class_map(tmp_path)


def test_another_class_map_is_other_data(official, bare_rows, fit_once):
    path = official / "classMapping40.mat"
    config = NYUDv2(data_dir=str(official), cache_dir=str(official / "cache")).config
    before = config.create_config_id({}), plan_shards(find_source(official)).keys()
    values = scipy.io.loadmat(path)["mapClass"]
    scipy.io.savemat(path, {"mapClass": (values + 1) % 41, "note": "changed"})
    assert config.create_config_id({}) != before[0]
    assert not plan_shards(find_source(official)).keys() & before[1]


def test_class_map_of_version_7_3(official, bare_rows, fit_once):
    values = scipy.io.loadmat(official / "classMapping40.mat")["mapClass"]
    with h5py.File(official / "classMapping40.mat", "w") as file:
        file["mapClass"] = values.T
    assert_equal_rows(read_rows(official), bare_rows)


def test_the_official_files_need_h5py(official, bare_root, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'transformers-sem\[data\]'"):
        find_source(official)
    assert find_source(bare_root).root == bare_root


def test_broken_official_files(official):
    for name in ("splits.mat", "classMapping40.mat", "nyu_depth_v2_labeled.mat"):
        content = (official / name).read_bytes()
        (official / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=f"(?s)(Cannot use .*{name}|MATLAB file)"):
            find_source(official)
        (official / name).write_bytes(content)


def test_other_arrays(official):
    path = official / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "a") as file:
        del file["labels"]
    with pytest.raises(ValueError, match="(?s)images, depths and labels.*Download it again"):
        find_source(official)
    with h5py.File(path, "a") as file:
        file.create_dataset("labels", (3, 480, 640), np.uint16)
    with pytest.raises(ValueError, match=r"(?s)arrays must be .*got .*\(3, 480, 640\).*Download it again"):
        find_source(official)


def place_elsewhere(file, name, kind, target):
    """Replaces an array by one whose values lie in another file, in one of HDF5's four ways."""
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    if kind == "external link":
        file[name] = h5py.ExternalLink(str(target), "/values")
    elif kind == "soft link":
        file["beside"] = h5py.ExternalLink(str(target), "/values")
        file[name] = h5py.SoftLink("/beside")
    elif kind == "raw file":
        file.create_dataset(name, shape, dtype, external=[(str(target), 0, h5py.h5f.UNLIMITED)])
    else:
        layout = h5py.VirtualLayout(shape, dtype)
        layout[:] = h5py.VirtualSource(str(target), "values", shape, dtype)
        file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize("kind", ["external link", "soft link", "raw file", "virtual"])
def test_arrays_in_other_files(official, tmp_path, kind):
    path, target = official / "nyu_depth_v2_labeled.mat", tmp_path / "private.h5"
    with h5py.File(path) as file, h5py.File(target, "w") as other:
        other["values"] = np.zeros_like(file["labels"][()])
    with h5py.File(path, "a") as file:
        place_elsewhere(file, "labels", kind, target)
    with pytest.raises(ValueError, match=f"Cannot use {path}: .* values of labels itself; got a link"):
        find_source(official)
    with pytest.raises(BrokenFrameError, match="values of labels itself; got a link"):
        read_official_frame({"id": "0001", "file": str(path)}, np.zeros(895, np.uint8))
    with h5py.File(tmp_path / "map.mat", "w") as file:
        file["LabelMap"] = np.zeros((4, 6))
        place_elsewhere(file, "LabelMap", kind, target)
    with pytest.raises(ValueError, match="values of LabelMap itself; got a link"):
        read_variable(tmp_path / "map.mat", "LabelMap")


def test_arrays_larger_than_their_file_can_hold_are_not_read(tmp_path):
    with h5py.File(tmp_path / "map.mat", "w") as file:
        file.create_dataset("LabelMap", (2**28,), np.uint8, chunks=(2**20,))
    with pytest.raises(ValueError, match="it has [0-9,]+ bytes and cannot hold its arrays, which need 268,435,456"):
        read_variable(tmp_path / "map.mat", "LabelMap")
    with h5py.File(tmp_path / "map.mat", "w") as file:
        file.create_dataset("LabelMap", data=np.zeros((3000, 2000), np.uint16), compression="gzip")
    assert read_variable(tmp_path / "map.mat", "LabelMap").shape == (2000, 3000)


def test_splits_of_other_frames(official):
    for numbers in ([[1.5]], [[0]], [[4]], [[1], [1]], np.zeros((0, 1))):
        scipy.io.savemat(official / "splits.mat", {"trainNdxs": numbers, "testNdxs": [[2]]})
        with pytest.raises(ValueError, match="Cannot use .*splits.mat: trainNdxs must be"):
            find_source(official)


def test_broken_frame_of_the_official_file(official, fit_once):
    for name, value, message in (
        ("labels", 895, "0..894; got uint8, and uint16 up to 895"),
        ("depths", 3000, "another unit"),
    ):
        with h5py.File(official / "nyu_depth_v2_labeled.mat", "a") as file:
            before = file[name][0, 100, 100]
            file[name][0, 100, 100] = value
        with pytest.raises(BrokenFrameError, match=f"Cannot use frame 0001 of .*labeled.mat: .*{message}.* Download"):
            read_rows(official)
        with h5py.File(official / "nyu_depth_v2_labeled.mat", "a") as file:
            file[name][0, 100, 100] = before


@pytest.mark.slow
@pytest.mark.skipif(not EXPAND_TOOL.is_file(), reason=f"no {EXPAND_TOOL}; set SEM_NYUD_V2_DIR to the real frames")
def test_real_frames_in_every_form(tmp_path, fit_once):
    command = [sys.executable, str(EXPAND_TOOL), "--output", str(tmp_path), "--train", "2", "--val", "1"]
    subprocess.run([*command, "--workers", "1"], check=True, capture_output=True)
    root = tmp_path / "NYUDv2"
    expected = read_rows(root)
    assert_equal_rows(read_rows(forms.write_archive(root, tmp_path / "a.tar.gz")), expected)
    assert_equal_rows(read_rows(forms.write_full_frames(root, tmp_path / "full" / "NYUD_MT")), expected)
    bare = without_derivable(root, tmp_path / "bare")
    rows = read_rows(forms.write_official(bare, tmp_path / "official"))
    assert_equal_rows(rows, read_rows(bare))
    for row, expected_row in zip(rows["train"], expected["train"], strict=True):
        for column in ("image", "semseg", "depth"):
            np.testing.assert_array_equal(np.asarray(row[column]), np.asarray(expected_row[column]))

"""NYU-Depth v2 on disk: a folder of tiny frames, and the other forms that it goes round in, as they are documented."""

import shutil
import tarfile
from pathlib import Path

import h5py
import numpy as np
import scipy.io
from PIL import Image


HEIGHT, WIDTH = 10, 14
WINDOW = (slice(45, 470), slice(40, 600))


def write_tiny_frame(root: Path, name: str) -> None:
    rng = np.random.default_rng(int(name))
    colors = rng.integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)
    segmentation = rng.integers(0, 41, (HEIGHT, WIDTH), dtype=np.uint8)
    segmentation[0, :2] = 0, 40
    depth = rng.uniform(0.5, 9.9, (HEIGHT, WIDTH)).astype(np.float32)
    depth[0, 0] = 0
    colors[1, 0, 0] = 128
    edge = rng.integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8) * 255
    images = {"images": colors[0], "normals": colors[1], "segmentation": segmentation, "edge": edge}
    for folder, values in images.items():
        Image.fromarray(values).save(root / folder / f"{name}.png")
    np.save(root / "depth" / f"{name}.npy", depth)


def write_tiny_folder(root: Path, ids: dict[str, list[str]]) -> Path:
    """A NYUDv2 folder of tiny frames."""
    for folder in ("images", "segmentation", "depth", "normals", "edge", "gt_sets"):
        (root / folder).mkdir(parents=True)
    for split, names in ids.items():
        (root / "gt_sets" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            write_tiny_frame(root, name)
    return root


def read(path: Path) -> np.ndarray:
    return np.load(path) if path.suffix == ".npy" else np.asarray(Image.open(path))


def read_list(root: Path, split: str) -> list[str]:
    return (root / f"gt_sets/{split}.txt").read_text().split()


def put_back_border(values: np.ndarray, border: int) -> np.ndarray:
    """The 480 x 640 frame that a frame was cut from."""
    full = np.full((480, 640, *values.shape[2:]), border, values.dtype)
    full[WINDOW] = values
    return full


def write_archive(root: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        tar.add(root, root.name)
    return path


def write_full_frames(root: Path, target: Path) -> Path:
    """The NYUD_MT folder: the same names, with the border."""
    for path in sorted(root.rglob("*.*")):
        copy = target / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            shutil.copy(path, copy)
        elif path.suffix == ".npy":
            np.save(copy, put_back_border(np.load(path), 0))
        else:
            Image.fromarray(put_back_border(read(path), 255 if "images" in path.parts else 0)).save(copy)
    return target


def write_official(root: Path, folder: Path) -> Path:
    """The MATLAB files; frames of no split are left blank, and the 40 classes are 40 of the 894."""
    folder.mkdir()
    ids = {split: read_list(root, split) for split in ("train", "val")}
    count = max(int(name) for names in ids.values() for name in names)
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w") as file:
        images = file.create_dataset("images", (count, 3, 640, 480), np.uint8, chunks=(1, 3, 640, 480))
        depths = file.create_dataset("depths", (count, 640, 480), np.float32, chunks=(1, 640, 480))
        labels = file.create_dataset("labels", (count, 640, 480), np.uint16, chunks=(1, 640, 480))
        for name in (name for names in ids.values() for name in names):
            index = int(name) - 1
            images[index] = put_back_border(read(root / f"images/{name}.png"), 255).transpose(2, 1, 0)
            depths[index] = put_back_border(read(root / f"depth/{name}.npy"), 0).T
            labels[index] = put_back_border(read(root / f"segmentation/{name}.png").astype(np.uint16), 0).T
    numbers = {split: np.array([[int(name)] for name in names], np.uint16) for split, names in ids.items()}
    scipy.io.savemat(folder / "splits.mat", {"trainNdxs": numbers["train"], "testNdxs": numbers["val"]})
    class_map = np.zeros((1, 894), np.uint8)
    class_map[0, :40] = np.arange(1, 41)
    scipy.io.savemat(folder / "classMapping40.mat", {"mapClass": class_map})
    return folder

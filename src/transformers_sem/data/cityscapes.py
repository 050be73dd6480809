"""Cityscapes: 2975 training and 500 validation images of 1024 x 2048, with classes and stereo depth.

The data must be on disk; nothing is downloaded. `Cityscapes(data_dir=...)` reads the folder that the official archives
are unpacked to, or a tar or zip archive of it:

    leftImg8bit/{train,val}/CITY/ID_leftImg8bit.png        RGB; these files are the splits
    gtFine/{train,val}/CITY/ID_gtFine_labelIds.png         uint8, 0..33; without it ID_gtFine_labelTrainIds.png, 0..18, 255 void
    disparity/{train,val}/CITY/ID_disparity.png            uint16, 256 * pixels + 1, 0 unknown
    camera/{train,val}/CITY/ID_camera.json                 baseline in metres and focal length fx in pixels

where ID is CITY_SEQUENCE_FRAME. Without `gtFine` or without `disparity`, rows have no classes or no depth.

Depth is metres, baseline * fx / disparity. It is unknown beyond 80 m, as in the evaluation of depth from one image: the error
of stereo grows with the square of the depth, and is 3.4 m there for a quarter of a pixel. Without `camera`, all frames are
taken to have the most frequent camera; those of some cities see 6 % farther.
"""

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..losses import INVALID_ID
from .files import (
    FrameReader,
    existing_patterns,
    find_file,
    find_root,
    read_ids,
    read_image,
    read_image_bytes,
    read_rgb,
)
from .sources import Frame, Maps, Source, SourceBuilder, SourceConfig, drop_missing


# The id in `labelIds` of the classes that are scored, by category, in the order of `labelTrainIds`; other ids are void.
LABEL_IDS = {
    "flat": {"road": 7, "sidewalk": 8},
    "construction": {"building": 11, "wall": 12, "fence": 13},
    "object": {"pole": 17, "traffic light": 19, "traffic sign": 20},
    "nature": {"vegetation": 21, "terrain": 22},
    "sky": {"sky": 23},
    "human": {"person": 24, "rider": 25},
    "vehicle": {"car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33},
}
NUM_LABEL_IDS = 34
CLASSES = [name for classes in LABEL_IDS.values() for name in classes]
# The class names by their number: the classes or their categories.
CLASS_NAMES = {len(names): {"semseg": names} for names in (CLASSES, [*LABEL_IDS])}
NUM_CLASSES = len(CLASSES)
SPLITS = {"train": "train", "validation": "val"}
# Paths of the maps; the first of several that exists is used.
FILES = {
    "image": ("leftImg8bit/{}_leftImg8bit.png",),
    "semseg": ("gtFine/{}_gtFine_labelIds.png", "gtFine/{}_gtFine_labelTrainIds.png"),
    "depth": ("disparity/{}_disparity.png",),
    "camera": ("camera/{}_camera.json",),
}
COLUMNS = ("image", "semseg", "depth")
BASELINE, FOCAL_LENGTH = 0.209313, 2262.52  # of the most frequent camera, in metres and pixels
MAX_DEPTH = 80.0
DEPTH = f"baseline * fx / disparity, unknown beyond {MAX_DEPTH:g} m"
WITHOUT_CAMERA = (
    f"{DEPTH}; with {BASELINE} m and {FOCAL_LENGTH} px for all frames, because there is no camera/: some frames are 6 % "
    "farther"
)
OFFICIAL_SIZES = {"train": 2975, "validation": 500}
RULE = "the folder Cityscapes that has leftImg8bit/ with gtFine/ or disparity/, its parent, or a tar or zip archive of either"
TERMS = (
    "Cityscapes (Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016), "
    "https://www.cityscapes-dataset.com. Its terms apply; they name non-commercial use and forbid to distribute the data."
)


def choose_classes(num_classes: int) -> dict[str, list[str]]:
    """Returns the names of the 19 classes, or of their 7 categories.

    Raises:
        ValueError: If it is another number.
    """
    if num_classes not in [*CLASS_NAMES]:
        raise ValueError(
            f"Cityscapes has {' or '.join(map(str, CLASS_NAMES))} classes; got num_classes={num_classes!r}. Pass one of these."
        )
    return CLASS_NAMES[num_classes]


def is_root(folder: Path) -> bool:
    """Returns whether a folder is Cityscapes."""
    return (folder / "leftImg8bit").is_dir()


def find_source(data_dir: str | Path | None, num_classes: int = NUM_CLASSES) -> Source:
    """Recognizes Cityscapes on disk, and finds its files.

    Args:
        data_dir: The folder, its parent, or a tar or zip archive of either.
        num_classes: 19 classes, or their 7 categories.

    Raises:
        ValueError: If there is no such number of classes, or `dataset.yaml` cannot be read.
        FileNotFoundError: If there is no such folder, it has no maps, or a split has no images.
        OSError: If an archive cannot be unpacked.
    """
    class_names = choose_classes(num_classes)
    root = find_root(data_dir, is_root, RULE)
    patterns = existing_patterns(root, FILES)
    if not {"semseg", "depth"} & set(patterns):
        raise FileNotFoundError(
            f"Cityscapes needs gtFine/ or disparity/ beside leftImg8bit/; {root} has neither. Unpack gtFine_trainvaltest.zip or "
            "disparity_trainvaltest.zip there."
        )
    depth = {"depth": DEPTH if "camera" in patterns else WITHOUT_CAMERA}
    source = Source(
        title="Cityscapes",
        variant="the folders of the official archives",
        root=root,
        frames={split: find_frames(root, folder, patterns) for split, folder in SPLITS.items()},
        columns=[column for column in COLUMNS if column in patterns],
        class_names=class_names,
        derived=depth if "depth" in patterns else {},
        read=partial(read_frame, num_classes=num_classes),
        official_sizes=OFFICIAL_SIZES,
        terms=TERMS,
    )
    return drop_missing(source)


def find_frames(root: Path, split: str, patterns: dict[str, tuple[str, ...]]) -> list[Frame]:
    """Finds the files of the frames of a split, sorted by city and id.

    Returns:
        For each frame "id" and a path for each key of `patterns`.

    Raises:
        FileNotFoundError: If there are no images.
    """
    folder, ending = root / "leftImg8bit", FILES["image"][0].rpartition("}")[2]
    paths = sorted((folder / split).glob(f"*/*{ending}"))
    if not paths:
        raise FileNotFoundError(
            f"Cityscapes needs images {folder / split}/CITY/ID{ending}; there are none. Unpack leftImg8bit_trainvaltest.zip into "
            f"{root}."
        )
    names = [path.relative_to(folder).as_posix().removesuffix(ending) for path in paths]
    return [
        {
            "id": name.rpartition("/")[2],
            **{key: find_file(root, options, name) for key, options in patterns.items()},
        }
        for name in names
    ]


def read_semseg(path: str, num_classes: int) -> np.ndarray:
    """Reads `labelIds` or `labelTrainIds` as ids of the 19 classes or the 7 categories, uint8, 255 where void."""
    if path.endswith("_labelTrainIds.png"):
        allowed = ids = range(NUM_CLASSES)
    else:
        allowed, ids = range(NUM_LABEL_IDS), [index for classes in LABEL_IDS.values() for index in classes.values()]
    table = np.full(INVALID_ID + 1, INVALID_ID, np.uint8)
    table[[*ids]] = range(NUM_CLASSES)
    if num_classes != NUM_CLASSES:
        categories = [index for index, classes in enumerate(LABEL_IDS.values()) for _ in classes]
        table[[*ids]] = categories
    return table[read_ids(path, allowed, ignored=INVALID_ID)]


def read_camera(path: str) -> float:
    """Reads the product of baseline and focal length, in metres times pixels.

    Raises:
        ValueError: If the file has no such numbers above 0.
    """
    try:
        if not os.path.isfile(path):  # reading a pipe never ends
            raise FileNotFoundError("no regular file")
        camera = json.loads(Path(path).read_bytes())
        product = camera["extrinsic"]["baseline"] * camera["intrinsic"]["fx"]
        if not 0 < product < float("inf"):
            raise ValueError(f"their product is {product}")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"its camera {path} must be JSON with numbers above 0, extrinsic.baseline and intrinsic.fx; got {error!r}"
        ) from error
    return product


def read_depth(path: str, camera: str | None) -> np.ndarray:
    """Reads disparity as metres `(height, width)`, float32, NaN where unknown or beyond 80 m.

    Args:
        path: The file of the disparity.
        camera: The file of the camera; `None` for the most frequent one.

    Raises:
        ValueError: If a file holds anything else.
    """
    levels = read_image(path)
    if levels.ndim != 2 or levels.dtype.kind not in "iu" or levels.dtype.itemsize < 2:
        raise ValueError(
            f"disparity must be gray levels of 16 bits (height, width); got {levels.dtype} {levels.shape}"
        )
    disparity = (levels.astype(np.float32) - 1) / 256
    product = BASELINE * FOCAL_LENGTH if camera is None else read_camera(camera)
    nearest = product / MAX_DEPTH  # the smallest disparity that is used, in pixels
    return np.where(disparity >= nearest, product / np.maximum(disparity, nearest), np.nan).astype(np.float32)


def read_frame(frame: Frame, num_classes: int) -> Maps:
    """Reads the image and the maps of one frame.

    Args:
        frame: A frame of `find_frames`.
        num_classes: 19 classes, or their 7 categories.

    Returns:
        The bytes of the image, and the maps, `{column: array}`.

    Raises:
        BrokenFrameError: If files cannot be read, hold values that are not allowed, or have another size than the image.
    """
    reader = FrameReader(frame["id"])
    readers = {
        "image": read_rgb,
        "semseg": partial(read_semseg, num_classes=num_classes),
        "depth": partial(read_depth, camera=frame.get("camera")),
    }
    maps = {column: reader.read(frame[column], read) for column, read in readers.items() if frame.get(column)}
    reader.finish()
    return {**maps, "image": read_image_bytes(frame["image"])}


@dataclass
class CityscapesConfig(SourceConfig):
    """Configuration of the builder: 19 classes, or their 7 categories."""

    num_classes: int = NUM_CLASSES

    def find_source(self, data_dir: str | Path | None) -> Source:
        """Recognizes Cityscapes on disk."""
        return find_source(data_dir, self.num_classes)


class Cityscapes(SourceBuilder):
    """Cityscapes with 19 classes or 7 categories, and depth from stereo, from `data_dir`."""

    BUILDER_CONFIG_CLASS = CityscapesConfig

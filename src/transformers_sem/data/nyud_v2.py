"""NYU-Depth v2 as multi-task papers use it: 795 training and 654 test frames of 425 x 560.

The data must be on disk; nothing is downloaded. `NYUDv2(data_dir=...)` recognizes three forms of it and gives the same
rows for each. The first two are a folder, or a tar or zip archive of it, with

    images/ID.png, .jpg         RGB
    segmentation/ID.png, .npy   uint8, 0 unlabeled, 1..40
    depth/ID.npy                metres, 0 invalid
    normals/ID.png, .npy        RGB = (n + 1) / 2 * 255, x right, y down, z forward
    edge/ID.png, .npy           0 or 255
    gt_sets/{train,val}.txt     ids, one per line

of 425 x 560 (`NYUDv2`), or of 480 x 640 (`NYUD_MT`), whose blank border is cropped. The third is the official

    nyu_depth_v2_labeled.mat    HDF5: images, depths, labels
    splits.mat                  trainNdxs, testNdxs: 1-based
    any other .mat              the class, 0..40, of each of the 894 labels

Without the folder `edge`, boundaries are computed from the label map. Without `normals`, normals are fitted to the depth.
The official file is read with h5py, which the extra `data` installs.
"""

from functools import partial
from pathlib import Path

import numpy as np

from ..losses import INVALID_ID
from ..task_kinds import unit_vectors_to_rgb
from ..utils.extras import require
from .derive import Intrinsics, boundaries_from_labels, fill_unlabeled, normals_from_depth
from .files import (
    BrokenFrameError,
    FrameReader,
    check_depth,
    existing_patterns,
    find_file,
    find_root,
    own_item,
    read_depth,
    read_gray,
    read_ids,
    read_image_bytes,
    read_list,
    read_matlab,
    read_normals,
    read_rgb,
    read_variable,
)
from .sources import Frame, Maps, Source, SourceBuilder, SourceConfig, drop_missing


CLASS_NAMES = {
    "semseg": [
        "wall",
        "floor",
        "cabinet",
        "bed",
        "chair",
        "sofa",
        "table",
        "door",
        "window",
        "bookshelf",
        "picture",
        "counter",
        "blinds",
        "desk",
        "shelves",
        "curtain",
        "dresser",
        "pillow",
        "mirror",
        "floor mat",
        "clothes",
        "ceiling",
        "books",
        "refrigerator",
        "television",
        "paper",
        "towel",
        "shower curtain",
        "box",
        "whiteboard",
        "person",
        "night stand",
        "toilet",
        "sink",
        "lamp",
        "bathtub",
        "bag",
        "otherstructure",
        "otherfurniture",
        "otherprop",
    ]
}
LISTS = {"train": "gt_sets/train.txt", "validation": "gt_sets/val.txt"}
# Paths of the maps; the first of several that exists is used.
FILES = {
    "image": ("images/{}.png", "images/{}.jpg"),
    "semseg": ("segmentation/{}.png", "segmentation/{}.npy"),
    "depth": ("depth/{}.npy",),
    "normal": ("normals/{}.png", "normals/{}.npy"),
    "boundary": ("edge/{}.png", "edge/{}.npy"),
}
REQUIRED = ("image", "semseg", "depth")
OFFICIAL_FILE = "nyu_depth_v2_labeled.mat"
SPLITS = {"train": "trainNdxs", "validation": "testNdxs"}
OFFICIAL_SIZES = {"train": 795, "validation": 654}
NUM_FINE_CLASSES = 894
RULE = (
    "the folder NYUDv2 that has images/, segmentation/, depth/ and gt_sets/, its parent, its tar or zip archive, or the "
    f"folder of the official {OFFICIAL_FILE}"
)
# Frames are 480 x 640 with a blank border; papers use the 425 x 560 inside.
FULL_SIZE, CROPPED_SIZE = (480, 640), (425, 560)
TOP, LEFT = 45, 40
# The color camera, from the toolbox of the dataset, whose pixels are 1-based.
INTRINSICS = Intrinsics(518.857901, 519.469611, 325.582449 - 1, 253.736166 - 1).cropped(TOP, LEFT)
# The range of Kinect is ten metres. The margin is wide, because the check is for the unit.
MAX_DEPTH = 20.0
TERMS = (
    "NYU-Depth v2 (Silberman et al., Indoor Segmentation and Support Inference from RGBD Images, ECCV 2012), "
    "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html. Its terms apply; they name research use."
)
FITTED = "fitted to the depth, because there are no files of normals; errors are not comparable with published ones"
COMMON_FIELDS = {
    "title": "NYUDv2",
    "columns": [*FILES],
    "class_names": CLASS_NAMES,
    "official_sizes": OFFICIAL_SIZES,
    "terms": TERMS,
}


def is_root(folder: Path) -> bool:
    """Returns whether a folder is NYU-Depth v2 in any form."""
    return (folder / OFFICIAL_FILE).is_file() or all((folder / name).is_dir() for name in ("images", "gt_sets"))


def find_source(data_dir: str | Path | None) -> Source:
    """Recognizes NYU-Depth v2 on disk.

    Args:
        data_dir: The folder, its parent, an archive of it, or `nyu_depth_v2_labeled.mat`.

    Raises:
        ValueError: If a list or one of the official files is broken.
        FileNotFoundError: If no form is recognized, or a required part is missing.
        OSError: If an archive cannot be unpacked.
        MissingExtraError: If it is the official file and h5py is not installed.
    """
    if data_dir is not None and Path(data_dir).name == OFFICIAL_FILE:
        data_dir = Path(data_dir).parent
    root = find_root(data_dir, is_root, RULE)
    return find_official(root) if (root / OFFICIAL_FILE).is_file() else find_folder(root)


def find_folder(root: Path) -> Source:
    """Finds the files of the folder that multi-task papers share."""
    patterns = existing_patterns(root, FILES)
    missing = [FILES[column][0].split("/")[0] for column in REQUIRED if column not in patterns]
    if missing:
        raise FileNotFoundError(f"NYUDv2 needs the folders of images and labels; {root} lacks {missing}. Pass {RULE}.")
    frames = {
        split: [
            {"id": name, **{column: find_file(root, options, name) for column, options in patterns.items()}}
            for name in read_list(root / path)
        ]
        for split, path in LISTS.items()
    }
    explanations = {
        "normal": FITTED,
        "boundary": "computed from the map of 40 classes, gaps filled, because there is no edge/",
    }
    source = Source(
        **COMMON_FIELDS,
        variant="a folder of images, as multi-task papers share it",
        root=root,
        frames=frames,
        derived={column: text for column, text in explanations.items() if column not in patterns},
        read=read_folder_frame,
    )
    return drop_missing(source)


def find_official(root: Path) -> Source:
    """Finds the frames of the official file."""
    num_frames = check_official(root / OFFICIAL_FILE)
    class_map, classes = read_class_map(root)
    frames = {
        split: [
            {"id": f"{number:04d}", "file": str(root / OFFICIAL_FILE), "class_map": str(class_map)}
            for number in read_split(root / "splits.mat", variable, num_frames)
        ]
        for split, variable in SPLITS.items()
    }
    return Source(
        **COMMON_FIELDS,
        variant=f"the official {OFFICIAL_FILE}",
        root=root,
        frames=frames,
        derived={"normal": FITTED, "boundary": f"computed from the map of {NUM_FINE_CLASSES} classes, gaps filled"},
        read=partial(read_official_frame, classes=classes),
    )


def check_official(path: Path) -> int:
    """Checks the arrays of the official file and returns the number of its frames.

    Raises:
        ValueError: If it is broken or has other arrays.
    """
    h5py = require("h5py", extra="data")
    try:
        with h5py.File(path) as file:
            shapes = {name: own_item(file, name).shape for name in ("images", "depths", "labels")}
    except (OSError, AttributeError, ValueError) as error:
        raise ValueError(
            f"Cannot use {path}: it must be the official HDF5 file with images, depths and labels; {error}. Download it "
            "again."
        ) from error
    height, width = FULL_SIZE
    num_frames = shapes["labels"][0]
    expected = {
        "images": (num_frames, 3, width, height),
        "depths": (num_frames, width, height),
        "labels": (num_frames, width, height),
    }
    if shapes != expected:
        raise ValueError(f"Cannot use {path}: its arrays must be {expected}; got {shapes}. Download it again.")
    return num_frames


def read_split(path: Path, variable: str, num_frames: int) -> list[int]:
    """Reads the 1-based numbers of the frames of a split.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is broken, or has a number without a frame.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{OFFICIAL_FILE} needs the official {path.name} in the same folder; {path} is missing. Copy it there."
        )
    try:
        numbers = read_variable(path, variable).ravel()
        if numbers.dtype.kind not in "iuf" or len(numbers) == 0 or len(set(numbers.tolist())) < len(numbers):
            raise ValueError(f"{variable} must be distinct numbers; got {numbers.dtype} {numbers.shape}")
        if not np.isin(numbers, np.arange(1, num_frames + 1)).all():
            raise ValueError(
                f"{variable} must be numbers of frames, 1..{num_frames}; got {numbers.min()} to {numbers.max()}"
            )
    except ValueError as error:
        raise ValueError(f"Cannot use {path}: {error}. Download it again.") from error
    return [int(number) for number in numbers]


def read_class_map(root: Path) -> tuple[Path, np.ndarray]:
    """Finds the class, 0..40, of each of the 894 labels in the .mat files of a folder; maps to fewer classes are left out.

    Returns:
        The file, and uint8 `(895,)`, by label; label 0 is unlabeled, class 0.

    Raises:
        FileNotFoundError: If no file has the classes.
        ValueError: If a file cannot be read, or files have different classes.
    """
    last, found = len(CLASS_NAMES["semseg"]), {}
    for path in sorted(set(root.glob("*.mat")) - {root / OFFICIAL_FILE, root / "splits.mat"}):
        if not path.is_file():  # reading a pipe never ends
            continue
        try:
            variables = read_matlab(path)
        except ValueError as error:
            raise ValueError(f"Cannot use {path}: {error}. Restore it, or remove it.") from error
        for values in variables.values():
            is_vector = isinstance(values, np.ndarray) and values.size == NUM_FINE_CLASSES == max(values.shape)
            is_numeric = is_vector and values.dtype.kind in "iuf"
            if is_numeric and np.isin(values, np.arange(last + 1)).all() and values.max() == last:
                found[path] = np.append(0, values.ravel()).astype(np.uint8)
    if not found:
        raise FileNotFoundError(
            f"{OFFICIAL_FILE} needs a class map in the same folder: a .mat file with {NUM_FINE_CLASSES} numbers up to {last}, the "
            f"class of each label, such as classMapping40.mat; {root} has none. Copy it there."
        )
    if len({classes.tobytes() for classes in found.values()}) > 1:
        raise ValueError(
            f"One class map says the class of each label; {[*map(str, found)]} differ. Remove all but one."
        )
    return next(iter(found.items()))


def read_folder_frame(frame: Frame) -> Maps:
    """Reads the image and the maps of a frame of the folder.

    Returns:
        The image and the maps, `{column: array}`.

    Raises:
        BrokenFrameError: If files cannot be read, hold values that are not allowed, or have another size than the image.
    """
    reader = FrameReader(frame["id"])
    readers = {
        "image": read_rgb,
        "semseg": read_segmentation,
        "depth": partial(read_depth, max_depth=MAX_DEPTH),
        "normal": read_normals,
        "boundary": read_gray,
    }
    maps = {column: reader.read(frame[column], read) for column, read in readers.items() if frame.get(column)}
    reader.finish()
    derived = {"normal", "boundary"} - set(frame)
    return finish_frame(frame["id"], maps, maps.get("semseg"), read_image_bytes(frame["image"]), derived)


def read_official_frame(frame: Frame, classes: np.ndarray) -> Maps:
    """Reads a frame of the official file, which stores its arrays transposed.

    Raises:
        BrokenFrameError: If the file cannot be read, or holds values that are not allowed.
    """
    h5py = require("h5py", extra="data")
    index = int(frame["id"]) - 1
    try:
        with h5py.File(frame["file"]) as file:
            image, depth, labels = (own_item(file, name)[index].T for name in ("images", "depths", "labels"))
        if image.dtype != np.uint8 or labels.dtype.kind not in "iu" or labels.max() >= len(classes):
            raise ValueError(
                f"images must be uint8 and labels whole numbers 0..{len(classes) - 1}; got {image.dtype}, and "
                f"{labels.dtype} up to {labels.max()}"
            )
        maps = {"image": image, "semseg": classes[labels], "depth": check_depth(depth, MAX_DEPTH)}
    except (OSError, ValueError) as error:
        raise BrokenFrameError(
            f"Cannot use frame {frame['id']} of {frame['file']}: {error}. Download the file again."
        ) from error
    return finish_frame(frame["id"], maps, labels, None, {"normal", "boundary"})


def finish_frame(
    name: str, maps: Maps, label_map: np.ndarray | None, image_file: bytes | None, derived: set[str]
) -> Maps:
    """Crops a frame to the window that papers use, and computes the maps that no frame has a file of.

    Args:
        name: The id of the frame.
        maps: The image and the maps; "semseg" as on disk, 0..40.
        label_map: Ids `(height, width)` that boundaries are computed from; `None` if the frame has none.
        image_file: Bytes of the image file, which are kept if nothing is cropped.
        derived: The maps to compute, as far as the frame has what they are computed from.
    """
    if maps["image"].shape[:2] == FULL_SIZE:
        window = slice(TOP, TOP + CROPPED_SIZE[0]), slice(LEFT, LEFT + CROPPED_SIZE[1])
        maps = {column: values[window] for column, values in maps.items()}
        label_map, image_file = None if label_map is None else label_map[window], None
    if "normal" in derived and "depth" in maps:
        size = maps["image"].shape[:2]
        if size != CROPPED_SIZE:
            raise BrokenFrameError(
                f"Normals are fitted to frames of {FULL_SIZE} or {CROPPED_SIZE} (height, width), whose camera is known; "
                f"{name} is {size}. Add a folder normals/."
            )
        maps["normal"] = unit_vectors_to_rgb(normals_from_depth(maps["depth"], INTRINSICS))
    if "boundary" in derived and label_map is not None:
        maps["boundary"] = boundaries_from_labels(fill_unlabeled(label_map, 0))
    if "semseg" in maps:
        maps["semseg"] = np.where(maps["semseg"] == 0, INVALID_ID, maps["semseg"] - 1).astype(np.uint8)
    return {**maps, "image": image_file or maps["image"]}


def read_segmentation(path: str) -> np.ndarray:
    """Reads class ids 1..40, and 0 for unlabeled pixels."""
    return read_ids(path, range(len(CLASS_NAMES["semseg"]) + 1), ignored=0)


class NYUDv2Config(SourceConfig):
    """Configuration of the builder; `data_dir` is an argument of `find_source`."""

    find_source = staticmethod(find_source)


class NYUDv2(SourceBuilder):
    """NYU-Depth v2 with 40 classes, depth, normals and boundaries, from `data_dir`."""

    BUILDER_CONFIG_CLASS = NYUDv2Config

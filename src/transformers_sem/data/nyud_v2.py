"""NYU-Depth v2 as multi-task papers train on it: 795 training and 654 test frames of 425 x 560.

The data is on the user's disk already; nothing is downloaded. `NYUDv2(data_dir=...)` recognises three forms of it, and
gives the same rows for each. The first two are a folder, or a tar archive of it, that has

    images/ID.png, .jpg         RGB
    segmentation/ID.png, .npy   uint8, 0 unlabelled, 1..40
    depth/ID.npy                metres, 0 invalid
    normals/ID.png, .npy        RGB = (n + 1) / 2 * 255, x right, y down, z forward
    edge/ID.png, .npy           0 or 255
    gt_sets/{train,val}.txt     ids, one a line

of 425 x 560 (`NYUDv2`), or of 480 x 640 (`NYUD_MT`), whose blank border is cut off. The third is the official

    nyu_depth_v2_labeled.mat    HDF5: images, depths, labels
    splits.mat                  trainNdxs, testNdxs: 1-based
    any other .mat              the class, 0..40, of each of the 894 labels

Without a folder `edge` boundaries are drawn from the label map, and without `normals` normals are fitted to the depth.
"""

from functools import partial
from pathlib import Path

import h5py
import numpy as np

from .derive import Intrinsics, boundaries_from_labels, fill_unlabelled, normals_from_depth
from .files import (
    BrokenFrameError,
    FrameReader,
    check_depth,
    find_file,
    find_places,
    find_root,
    read_colours,
    read_depth,
    read_grey,
    read_ids,
    read_list,
    read_matlab,
    read_normals,
    read_variable,
)
from .row_format import code_normal
from .sources import Frame, Maps, Source, SourceBuilder, SourceConfig


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
# Where a map lies; the first of several that has it counts.
FILES = {
    "image": ("images/{}.png", "images/{}.jpg"),
    "semseg": ("segmentation/{}.png", "segmentation/{}.npy"),
    "depth": ("depth/{}.npy",),
    "normal": ("normals/{}.png", "normals/{}.npy"),
    "boundary": ("edge/{}.png", "edge/{}.npy"),
}
NEEDED = ("image", "semseg", "depth")
LABELED = "nyu_depth_v2_labeled.mat"
SPLITS = {"train": "trainNdxs", "validation": "testNdxs"}
OFFICIAL_SIZES = {"train": 795, "validation": 654}
NUM_FINE_CLASSES = 894
RULE = (
    "the folder NYUDv2 that has images/, segmentation/, depth/ and gt_sets/, the one that contains it, its tar archive, or the "
    f"folder of the official {LABELED}"
)
# Frames are 480 x 640 with a blank border; papers use the 425 x 560 within.
FULL_SIZE, CROPPED_SIZE = (480, 640), (425, 560)
TOP, LEFT = 45, 40
# Of the colour camera, from the toolbox of the data set; its pixels count from 1.
INTRINSICS = Intrinsics(518.857901, 519.469611, 325.582449 - 1, 253.736166 - 1).cropped(TOP, LEFT)
# Kinect sees no farther than ten metres; a wide margin, because the unit is what is in question.
MAX_DEPTH = 20.0
TERMS = (
    "NYU-Depth v2 (Silberman et al., Indoor Segmentation and Support Inference from RGBD Images, ECCV 2012), "
    "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html. Its terms apply; they name research use."
)
FITTED = "fitted to the depth, because there are no files of normals; never comparable with published errors"
FACTS = {
    "title": "NYUDv2",
    "columns": [*FILES],
    "class_names": CLASS_NAMES,
    "official_sizes": OFFICIAL_SIZES,
    "terms": TERMS,
}


def is_root(folder: Path) -> bool:
    """Whether a folder is NYU-Depth v2 in any form."""
    return (folder / LABELED).is_file() or all((folder / name).is_dir() for name in ("images", "gt_sets"))


def find_source(data_dir: str | Path | None) -> Source:
    """Recognises NYU-Depth v2 on disk.

    Args:
        data_dir: The folder, the one that contains it, an archive of it, or `nyu_depth_v2_labeled.mat`.

    Raises:
        ValueError: If a list or one of the official files is broken.
        FileNotFoundError: If nothing is recognised, or a part without which nothing can be done is missing.
        OSError: If an archive cannot be unpacked.
    """
    if data_dir is not None and Path(data_dir).name == LABELED:
        data_dir = Path(data_dir).parent
    root = find_root(data_dir, is_root, RULE)
    return find_official(root) if (root / LABELED).is_file() else find_folder(root)


def find_folder(root: Path) -> Source:
    """Finds the files of the folder that multi-task papers share."""
    places = find_places(root, FILES)
    missing = [FILES[column][0].split("/")[0] for column in NEEDED if column not in places]
    if missing:
        raise FileNotFoundError(f"NYUDv2 cannot do without some folders; {root} lacks {missing}. Pass {RULE}.")
    frames = {
        split: [
            {"id": name, **{column: find_file(root, patterns, name) for column, patterns in places.items()}}
            for name in read_list(root / path)
        ]
        for split, path in LISTS.items()
    }
    explanations = {
        "normal": FITTED,
        "boundary": "drawn from the map of 40 classes, gaps filled, because there is no edge/",
    }
    return Source(
        **FACTS,
        variant="a folder of pictures, as multi-task papers share it",
        root=root,
        frames=frames,
        derived={column: text for column, text in explanations.items() if column not in places},
        read=read_folder_frame,
    )


def find_official(root: Path) -> Source:
    """Finds the frames of the official file."""
    num_frames = check_official(root / LABELED)
    frames = {
        split: [
            {"id": f"{number:04d}", "file": str(root / LABELED)}
            for number in read_split(root / "splits.mat", variable, num_frames)
        ]
        for split, variable in SPLITS.items()
    }
    return Source(
        **FACTS,
        variant=f"the official {LABELED}",
        root=root,
        frames=frames,
        derived={"normal": FITTED, "boundary": f"drawn from the map of {NUM_FINE_CLASSES} classes, gaps filled"},
        read=partial(read_official_frame, classes=read_class_map(root)),
    )


def check_official(path: Path) -> int:
    """Looks into the official file, and counts its frames.

    Raises:
        ValueError: If it is broken or has not the expected content.
    """
    try:
        with h5py.File(path) as file:
            shapes = {name: file[name].shape for name in ("images", "depths", "labels")}
    except (OSError, KeyError, AttributeError) as error:
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
        ValueError: If it is broken, or names a frame that there is not.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{LABELED} needs the official {path.name} beside it; {path} is missing. Put it there."
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


def read_class_map(root: Path) -> np.ndarray:
    """Finds the class, 0..40, of each of the 894 labels in the .mat files of a folder.

    Returns:
        uint8 `(895,)`, by label; label 0 is unlabelled, class 0.

    Raises:
        FileNotFoundError: If no file has it.
        ValueError: If a file cannot be read.
    """
    last = len(CLASS_NAMES["semseg"])
    for path in sorted(set(root.glob("*.mat")) - {root / LABELED, root / "splits.mat"}):
        try:
            variables = read_matlab(path)
        except ValueError as error:
            raise ValueError(f"Cannot use {path}: {error}. Restore it, or take it away.") from error
        for values in variables.values():
            is_vector = isinstance(values, np.ndarray) and values.size >= last and values.size == max(values.shape)
            if is_vector and values.dtype.kind in "iuf" and np.isin(values, np.arange(last + 1)).all():
                return np.append(0, values.ravel()).astype(np.uint8)
    raise FileNotFoundError(
        f"{LABELED} needs a class map beside it: a .mat file with {NUM_FINE_CLASSES} numbers 0..{last}, the class of each "
        f"label, such as classMapping40.mat; {root} has none. Put it there."
    )


def read_folder_frame(frame: Frame) -> Maps:
    """Reads the image and the maps of a frame of the folder.

    Returns:
        Key of `FILES` to what `Source.read` returns.

    Raises:
        BrokenFrameError: If files cannot be read, hold what they should not, or are not of the image's size.
    """
    reader = FrameReader(frame["id"])
    readers = {
        "image": read_colours,
        "semseg": read_segmentation,
        "depth": partial(read_depth, max_depth=MAX_DEPTH),
        "normal": read_normals,
        "boundary": read_grey,
    }
    maps = {column: reader.read(frame[column], read) for column, read in readers.items() if column in frame}
    reader.finish()
    return finish_frame(frame["id"], maps, maps["semseg"], Path(frame["image"]).read_bytes())


def read_official_frame(frame: Frame, classes: np.ndarray) -> Maps:
    """Reads a frame of the official file, which stores its arrays transposed.

    Raises:
        BrokenFrameError: If the file cannot be read, or holds what it should not.
    """
    index = int(frame["id"]) - 1
    try:
        with h5py.File(frame["file"]) as file:
            image, depth, labels = (file[name][index].T for name in ("images", "depths", "labels"))
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
    return finish_frame(frame["id"], maps, labels, None)


def finish_frame(name: str, maps: Maps, label_map: np.ndarray, image_file: bytes | None) -> Maps:
    """Crops a frame to what papers use, and derives the maps it has no files for.

    Args:
        name: The id.
        maps: What was read; "semseg" as on disk, 0..40.
        label_map: Ids `(height, width)` that boundaries are drawn from.
        image_file: The image as it was, kept where there is nothing to crop.
    """
    if label_map.shape == FULL_SIZE:
        window = slice(TOP, TOP + CROPPED_SIZE[0]), slice(LEFT, LEFT + CROPPED_SIZE[1])
        maps = {column: values[window] for column, values in maps.items()}
        label_map, image_file = label_map[window], None
    if "normal" not in maps:
        if label_map.shape != CROPPED_SIZE:
            raise BrokenFrameError(
                f"Normals are fitted to frames of {FULL_SIZE} or {CROPPED_SIZE} (height, width), whose camera is known; "
                f"{name} is {label_map.shape}. Add a folder normals/."
            )
        maps["normal"] = code_normal(normals_from_depth(maps["depth"], INTRINSICS))
    if "boundary" not in maps:
        maps["boundary"] = boundaries_from_labels(fill_unlabelled(label_map, 0))
    maps["semseg"] = np.where(maps["semseg"] == 0, 255, maps["semseg"] - 1).astype(np.uint8)
    return {**maps, "image": image_file or maps["image"]}


def read_segmentation(path: str) -> np.ndarray:
    """Reads 0, unlabelled, and 1..40."""
    return read_ids(path, range(len(CLASS_NAMES["semseg"]) + 1), ignored=0)


class NYUDv2Config(SourceConfig):
    """`data_dir` is what `find_source` takes."""

    find_source = staticmethod(find_source)


class NYUDv2(SourceBuilder):
    """NYU-Depth v2 with 40 classes, depth, normals and boundaries, from `data_dir`."""

    BUILDER_CONFIG_CLASS = NYUDv2Config

"""PASCAL-Context as multi-task papers use it: 4998 training and 5105 test images of about 375 x 500.

The folder `PASCALContext` or `PASCAL_MT`, or a tar or zip archive of it, must be on disk; nothing is downloaded.
`PASCALContext(data_dir=...)` reads

    JPEGImages/ID.jpg                   RGB
    ImageSets/Context/{train,val}.txt   ids, one per line
    semseg/VOC12/ID.png                 uint8, 0..20, 255 void; where it is missing, semseg/pascal-context/ID.png
    human_parts/ID.mat                  `anno` of PASCAL-Part: objects with class index (person 15), mask and parts; also
                                        as Annotations_Part/ID.mat
    ImageSets/Parts/{train,val}.txt     JSON, id to the class indices of its objects: says which `anno` has people
    sal_distill/ID.png                  uint8, salient above 127
    normals_distill/ID.png              RGB = (n + 1) / 2 * 255
    pascal-context/trainval/ID.mat      `LabelMap`, 0..459: selects valid normals, and gives the boundaries

A map whose folder is missing is left out of the rows. Only the 21 classes are taken from `LabelMap` then.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np

from ..losses import INVALID_ID
from .derive import boundaries_from_labels
from .files import (
    FrameReader,
    existing_patterns,
    find_file,
    find_root,
    read_ids,
    read_image,
    read_image_bytes,
    read_list,
    read_rgb,
    read_variable,
)
from .row_format import FEATURES, LABEL_MAP, UNKNOWN_NORMAL
from .sources import Frame, Maps, Source, SourceBuilder, SourceConfig, drop_missing


CLASS_NAMES = {
    "semseg": [
        "background",
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ],
    "parsing": ["background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs"],
}
PERSON = CLASS_NAMES["semseg"].index("person")
# The part names of PASCAL-Part, by our class.
PART_NAMES = {
    "head": ("hair", "head", "lear", "lebrow", "leye", "mouth", "nose", "rear", "rebrow", "reye"),
    "torso": ("torso", "neck"),
    "upper arms": ("luarm", "ruarm"),
    "lower arms": ("llarm", "rlarm", "lhand", "rhand"),
    "upper legs": ("luleg", "ruleg"),
    "lower legs": ("llleg", "rlleg", "lfoot", "rfoot"),
}
PART_IDS = {name: CLASS_NAMES["parsing"].index(part) for part, names in PART_NAMES.items() for name in names}
NUM_CONTEXT_CLASSES = 459
# Distilled normals are valid only on classes of NYU: the classes of `LabelMap` that have the name of one of NYU's 40, and
# tvmonitor, which is television in NYU.
NORMAL_CLASSES = {
    9: "bag",
    17: "bathtub",
    18: "bed",
    37: "box",
    46: "cabinet",
    68: "ceiling",
    72: "chair",
    96: "counter",
    105: "curtain",
    115: "door",
    158: "floor",
    252: "mirror",
    273: "paper",
    284: "person",
    287: "picture",
    290: "pillow",
    349: "shelves",
    357: "sink",
    368: "sofa",
    397: "table",
    408: "toilet",
    412: "towel",
    427: "tvmonitor",
    440: "wall",
    454: "window",
}
# The ids of the 21 classes in `LabelMap`.
CONTEXT_IDS = [0, 2, 23, 25, 31, 34, 45, 59, 65, 72, 98, 397, 113, 207, 258, 284, 308, 347, 368, 416, 427]
LISTS = {"train": "ImageSets/Context/train.txt", "validation": "ImageSets/Context/val.txt"}
PARTS_LISTS = {"train": "ImageSets/Parts/train.txt", "validation": "ImageSets/Parts/val.txt"}
# Paths of the maps; the first of several that exists is used.
FILES = {
    "image": ("JPEGImages/{}.jpg",),
    "semseg": ("semseg/VOC12/{}.png", "semseg/pascal-context/{}.png"),
    "parsing": ("human_parts/{}.mat", "Annotations_Part/{}.mat"),
    "saliency": ("sal_distill/{}.png",),
    "normal": ("normals_distill/{}.png",),
    LABEL_MAP: ("pascal-context/trainval/{}.mat",),
}
# Columns that are computed from `LabelMap`.
DERIVED = {
    "semseg": "the classes of LabelMap, because there are no files of the 21 classes",
    "boundary": "computed from LabelMap: where its Laplacian is not 0, thinned",
}
PARTS = "the parts of people in PASCAL-Part, merged to six; 255 in images without annotated people"
OFFICIAL_SIZES = {"train": 4998, "validation": 5105}
RULE = "the folder PASCALContext that has JPEGImages/ and ImageSets/Context/, its parent, or a tar or zip archive of either"
TERMS = (
    "PASCAL-Context (Mottaghi et al., The Role of Context for Object Detection and Semantic Segmentation in the Wild, CVPR "
    "2014), on the images of PASCAL VOC 2010; human parts of PASCAL-Part (Chen et al., Detect What You Can, CVPR 2014); "
    "normals and saliency, where present, are predictions of other networks (Maninis et al., Attentive Single-Tasking of "
    "Multiple Tasks, CVPR 2019). The images are from Flickr, and its terms apply."
)


def is_root(folder: Path) -> bool:
    """Returns whether a folder is PASCAL-Context."""
    return all((folder / name).is_dir() for name in ("JPEGImages", "ImageSets/Context"))


def find_source(data_dir: str | Path | None) -> Source:
    """Recognizes PASCAL-Context on disk, and finds its maps.

    Args:
        data_dir: The folder, its parent, or a tar or zip archive of either.

    Raises:
        ValueError: If a list is broken.
        FileNotFoundError: If there is no such folder, or it has no maps.
        OSError: If an archive cannot be unpacked.
    """
    root = find_root(data_dir, is_root, RULE)
    patterns = existing_patterns(root, FILES)
    if set(patterns) == {"image"}:
        folders = [option.rpartition("/")[0] for options in FILES.values() for option in options]
        raise FileNotFoundError(
            f"PASCALContext needs maps; {root} has images only. Add at least one of {folders[1:]}."
        )
    computed = {column: text for column, text in DERIVED.items() if LABEL_MAP in patterns and column not in patterns}
    present = {*patterns, *computed}
    source = Source(
        title="PASCALContext",
        variant="a folder of images, as multi-task papers share it",
        root=root,
        frames={split: find_frames(root, split, patterns) for split in LISTS},
        columns=[column for column in (*FEATURES, LABEL_MAP) if column in present],
        class_names=CLASS_NAMES,
        derived=computed | ({"parsing": PARTS} if "parsing" in patterns else {}),
        read=read_frame,
        official_sizes=OFFICIAL_SIZES,
        terms=TERMS,
    )
    return drop_missing(source)


def read_object_classes(path: Path) -> dict[str, list[int]]:
    """Reads a Parts list.

    Returns:
        `{id: class indices of the objects in the image}`, 1..20.

    Raises:
        ValueError: If the file is no such list.
    """
    try:
        object_classes = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"Cannot use {path}: it must be JSON; {error}. Restore it, or remove it.") from error
    known = range(1, len(CLASS_NAMES["semseg"]))
    if not isinstance(object_classes, dict) or not all(
        isinstance(classes, list) and all(index in known for index in classes) for classes in object_classes.values()
    ):
        raise ValueError(
            f'Cannot use {path}: it must map ids to class indices {known[0]}..{known[-1]}, as {{"2008_000002": [15]}}.'
            " Restore it, or remove it."
        )
    return object_classes


def find_people(root: Path, split: str, names: list[str]) -> set[str]:
    """Returns the images whose human parts are read: those with people or, without a Parts list, those with a file."""
    path = root / PARTS_LISTS[split]
    if path.is_file():
        return {name for name, classes in read_object_classes(path).items() if PERSON in classes}
    return {name for name in names if Path(find_file(root, FILES["parsing"], name)).is_file()}


def find_frames(root: Path, split: str, patterns: dict[str, tuple[str, ...]]) -> list[Frame]:
    """Finds the files of the frames of a split, in the order of its list.

    Returns:
        For each frame "id" and a path for each key of `patterns`; `None` for the human parts of an image without people.

    Raises:
        FileNotFoundError: If there is no list.
        ValueError: If the list or the Parts list is broken.
    """
    names = read_list(root / LISTS[split])
    people = find_people(root, split, names) if "parsing" in patterns else set()
    return [
        {
            "id": name,
            **{
                column: None if column == "parsing" and name not in people else find_file(root, options, name)
                for column, options in patterns.items()
            },
        }
        for name in names
    ]


def read_semseg(path: str) -> np.ndarray:
    """Reads class ids 0..20, and 255 for unlabeled pixels."""
    return read_ids(path, range(len(CLASS_NAMES["semseg"])), ignored=INVALID_ID)


def read_saliency(path: str) -> np.ndarray:
    """Reads gray levels as ids 0 and 1 (above 127), uint8 `(height, width)`."""
    saliency = read_image(path)
    if saliency.dtype != np.uint8 or saliency.ndim != 2:
        raise ValueError(f"saliency must be 8-bit gray (height, width); got {saliency.dtype} {saliency.shape}")
    return (saliency > 127).astype(np.uint8)


def read_label_map(path: str) -> np.ndarray:
    """Reads ids 0..459, uint16 `(height, width)`."""
    label_map = read_variable(path, "LabelMap")
    # MATLAB stores whole numbers in the smallest type that holds them.
    if label_map.dtype.kind not in "iu" or label_map.ndim != 2:
        raise ValueError(f"LabelMap must be whole numbers (height, width); got {label_map.dtype} {label_map.shape}")
    unknown = label_map[(label_map < 0) | (label_map > NUM_CONTEXT_CLASSES)]
    if len(unknown) > 0:
        raise ValueError(f"LabelMap must be 0..{NUM_CONTEXT_CLASSES}; got {unknown.max()}")
    return label_map.astype(np.uint16)


def read_parts(path: str) -> list[tuple[str, np.ndarray]]:
    """Reads name and mask of all parts of all people, in the order of the annotation."""
    annotation = read_variable(path, "anno")
    try:
        # SciPy returns a struct as an array (1, 1), and a list of structs as (1, N) or (0, 0).
        objects = annotation["objects"].item().ravel()
        people = [item for item in objects if item["class_ind"].item() == PERSON]
        return [(part["part_name"].item(), part["mask"]) for item in people for part in item["parts"].ravel()]
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"anno must hold objects with class_ind and parts, and those part_name and mask; {error}"
        ) from error


def read_parsing(path: str, shape: tuple[int, int]) -> np.ndarray:
    """Reads the parts of people as class ids 0..6; a later part covers an earlier one. Without any part, all is 255.

    Args:
        path: A file of `human_parts`.
        shape: Height and width of the image, which a file without parts does not have.

    Returns:
        uint8 of that shape.
    """
    labels = np.zeros(shape, np.uint8)
    for name, mask in read_parts(path):
        if name not in PART_IDS:
            raise ValueError(f"the parts of a person must be called {sorted(PART_IDS)}; got {name!r}")
        if mask.dtype.kind not in "biu" or mask.shape != shape:
            raise ValueError(f"the mask of {name} must be whole numbers {shape}; got {mask.dtype} {mask.shape}")
        labels[mask != 0] = PART_IDS[name]
    return labels if labels.any() else np.full(shape, INVALID_ID, np.uint8)


def keep_shared_classes(normal: np.ndarray, label_map: np.ndarray) -> np.ndarray:
    """Marks normals, uint8 levels `(height, width, 3)`, as unknown outside of `NORMAL_CLASSES`."""
    valid = np.isin(label_map, list(NORMAL_CLASSES))
    return np.where(valid[..., None], normal, np.uint8(UNKNOWN_NORMAL))


def map_classes(label_map: np.ndarray) -> np.ndarray:
    """Maps the 459 classes to the 21; other classes become background."""
    classes = np.zeros(NUM_CONTEXT_CLASSES + 1, np.uint8)
    classes[CONTEXT_IDS] = np.arange(len(CONTEXT_IDS))
    return classes[label_map]


def read_frame(frame: Frame) -> Maps:
    """Reads the image and the maps of one frame, and computes the maps that have no files.

    Args:
        frame: A frame of `find_frames`.

    Returns:
        The image and the maps, `{column: array or bytes}`.

    Raises:
        BrokenFrameError: If files cannot be read, hold values that are not allowed, or have another size than the image.
    """
    reader = FrameReader(frame["id"])
    maps = {"image": reader.read(frame["image"], read_rgb)}
    reader.finish()  # no map can be checked without the size of the image
    readers = {
        "semseg": read_semseg,
        "parsing": partial(read_parsing, shape=reader.shape),
        "saliency": read_saliency,
        "normal": read_rgb,
        LABEL_MAP: read_label_map,
    }
    maps |= {column: reader.read(frame[column], read) for column, read in readers.items() if frame.get(column)}
    reader.finish()
    maps["image"] = read_image_bytes(frame["image"])
    if "parsing" in frame and frame["parsing"] is None:
        maps["parsing"] = np.full(reader.shape, INVALID_ID, np.uint8)
    if LABEL_MAP in maps:
        maps["boundary"] = boundaries_from_labels(maps[LABEL_MAP])
        maps.setdefault("semseg", map_classes(maps[LABEL_MAP]))
        if "normal" in maps:
            maps["normal"] = keep_shared_classes(maps["normal"], maps[LABEL_MAP])
    elif LABEL_MAP in frame:  # it is missing, and says which normals are valid
        maps.pop("normal", None)
    return maps


class PASCALContextConfig(SourceConfig):
    """Configuration of the builder; `data_dir` is an argument of `find_source`."""

    find_source = staticmethod(find_source)


class PASCALContext(SourceBuilder):
    """PASCAL-Context with 21 classes, human parts, saliency, normals and boundaries, from `data_dir`.

    Rows have the columns of `row_format.FEATURES` that there are maps for, and "label_map": the full `LabelMap`, which the
    boundary F-measure uses as ground truth.
    """

    BUILDER_CONFIG_CLASS = PASCALContextConfig

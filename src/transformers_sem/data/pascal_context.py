"""PASCAL-Context as multi-task papers train on it: 4998 training and 5105 test photographs of about 375 x 500.

The folder, `PASCALContext` or `PASCAL_MT`, or a tar archive of it, is on the user's disk already; nothing is downloaded.
`PASCALContext(data_dir=...)` reads

    JPEGImages/ID.jpg                   RGB
    ImageSets/Context/{train,val}.txt   ids, one a line
    semseg/VOC12/ID.png                 uint8, 0..20, 255 void; where it is missing, semseg/pascal-context/ID.png
    human_parts/ID.mat                  `anno` of PASCAL-Part: objects with class index (person 15), mask and parts; also
                                        as Annotations_Part/ID.mat
    ImageSets/Parts/{train,val}.txt     JSON, id to the class indices of its objects: says which `anno` has people
    sal_distill/ID.png                  uint8, salient above 127
    normals_distill/ID.png              RGB = (n + 1) / 2 * 255
    pascal-context/trainval/ID.mat      `LabelMap`, 0..459: where normals count, and what boundaries are drawn from

A map whose folder is missing is left out of the rows, but for the 21 classes, which `LabelMap` has too.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np

from .derive import boundaries_from_labels
from .files import (
    FrameReader,
    find_file,
    find_places,
    find_root,
    read_colours,
    read_ids,
    read_list,
    read_picture,
    read_variable,
)
from .sources import COLUMNS, Frame, Maps, Source, SourceBuilder, SourceConfig


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
# The names that PASCAL-Part gives to the parts of a person, by the class we give them.
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
# Distilled normals count only on what NYU has too: the classes of `LabelMap` that are called the same as one of NYU's
# 40, and tvmonitor, which NYU calls television.
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
# What the 21 classes are called in `LabelMap`.
CONTEXT_IDS = [0, 2, 23, 25, 31, 34, 45, 59, 65, 72, 98, 397, 113, 207, 258, 284, 308, 347, 368, 416, 427]
LISTS = {"train": "ImageSets/Context/train.txt", "validation": "ImageSets/Context/val.txt"}
PARTS_LISTS = {"train": "ImageSets/Parts/train.txt", "validation": "ImageSets/Parts/val.txt"}
# Where a map lies; the first of several that has it counts.
FILES = {
    "image": ("JPEGImages/{}.jpg",),
    "semseg": ("semseg/VOC12/{}.png", "semseg/pascal-context/{}.png"),
    "parsing": ("human_parts/{}.mat", "Annotations_Part/{}.mat"),
    "saliency": ("sal_distill/{}.png",),
    "normal": ("normals_distill/{}.png",),
    "label_map": ("pascal-context/trainval/{}.mat",),
}
# Column to how it is derived, and the key of `FILES` that it is derived from.
DERIVED = {
    "semseg": ("the classes of LabelMap, because there are no files of the 21 classes", "label_map"),
    "boundary": ("drawn from LabelMap: where its Laplacian is not 0, thinned", "label_map"),
}
PARTS = "the parts of people that PASCAL-Part annotates, put together to six"
OFFICIAL_SIZES = {"train": 4998, "validation": 5105}
RULE = "the folder PASCALContext that has JPEGImages/ and ImageSets/Context/, the one that contains it, or a tar archive of either"
TERMS = (
    "PASCAL-Context (Mottaghi et al., The Role of Context for Object Detection and Semantic Segmentation in the Wild, CVPR "
    "2014), on the images of PASCAL VOC 2010; human parts of PASCAL-Part (Chen et al., Detect What You Can, CVPR 2014); "
    "normals and saliency, where present, are predictions of other networks (Maninis et al., Attentive Single-Tasking of "
    "Multiple Tasks, CVPR 2019). The images are from Flickr, and its terms apply."
)


def is_root(folder: Path) -> bool:
    """Whether a folder is PASCAL-Context."""
    return all((folder / name).is_dir() for name in ("JPEGImages", "ImageSets/Context"))


def find_source(data_dir: str | Path | None) -> Source:
    """Recognises PASCAL-Context on disk, and what it has maps for.

    Args:
        data_dir: The folder, the one that contains it, or a tar archive of either.

    Raises:
        ValueError: If a list is broken.
        FileNotFoundError: If nothing is recognised, or there is no map at all.
        OSError: If an archive cannot be unpacked.
    """
    root = find_root(data_dir, is_root, RULE)
    places = find_places(root, FILES)
    if set(places) == {"image"}:
        folders = [pattern.rpartition("/")[0] for patterns in FILES.values() for pattern in patterns]
        raise FileNotFoundError(
            f"PASCALContext needs maps; {root} has images only. Add at least one of {folders[1:]}."
        )
    derived = {column: text for column, (text, needed) in DERIVED.items() if needed in places and column not in places}
    present = {*places, *derived}
    return Source(
        title="PASCALContext",
        variant="a folder of pictures, as multi-task papers share it",
        root=root,
        frames={split: find_frames(root, split, places) for split in LISTS},
        columns=[column for column in COLUMNS if column in present],
        class_names=CLASS_NAMES,
        derived=derived | ({"parsing": PARTS} if "parsing" in places else {}),
        read=read_frame,
        official_sizes=OFFICIAL_SIZES,
        terms=TERMS,
    )


def read_object_classes(path: Path) -> dict[str, list[int]]:
    """Read a Parts list.

    Returns:
        Id to the class indices of the objects of the image, 1..20.

    Raises:
        ValueError: If it is anything else.
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
    """Find the images whose human parts are read: those with people, or, without a Parts list, all there are."""
    path = root / PARTS_LISTS[split]
    if path.is_file():
        return {name for name, classes in read_object_classes(path).items() if PERSON in classes}
    return {name for name in names if Path(find_file(root, FILES["parsing"], name)).is_file()}


def find_frames(root: Path, split: str, places: dict[str, tuple[str, ...]]) -> list[Frame]:
    """Finds the files of the frames of a split, in the order of its list.

    Returns:
        For each frame "id" and, for each key of `places`, a path; `None` for the human parts of an image without people.

    Raises:
        FileNotFoundError: If there is no list.
        ValueError: If it is broken, or the Parts list is.
    """
    names = read_list(root / LISTS[split])
    people = find_people(root, split, names) if "parsing" in places else set()
    return [
        {
            "id": name,
            **{
                column: None if column == "parsing" and name not in people else find_file(root, patterns, name)
                for column, patterns in places.items()
            },
        }
        for name in names
    ]


def read_semseg(path: str) -> np.ndarray:
    """Reads ids 0..20 and 255."""
    return read_ids(path, range(len(CLASS_NAMES["semseg"])), ignored=255)


def read_saliency(path: str) -> np.ndarray:
    """Turns grey levels into ids 0 and 1, uint8 `(height, width)`."""
    saliency = read_picture(path)
    if saliency.dtype != np.uint8 or saliency.ndim != 2:
        raise ValueError(f"saliency must be 8-bit grey (height, width); got {saliency.dtype} {saliency.shape}")
    return (saliency > 127).astype(np.uint8)


def read_label_map(path: str) -> np.ndarray:
    """Reads ids 0..459, uint16 `(height, width)`."""
    label_map = read_variable(path, "LabelMap")
    # MATLAB saves whole numbers in the smallest type that holds them, whatever type they have.
    if label_map.dtype.kind not in "iu" or label_map.ndim != 2:
        raise ValueError(f"LabelMap must be whole numbers (height, width); got {label_map.dtype} {label_map.shape}")
    unknown = label_map[(label_map < 0) | (label_map > NUM_CONTEXT_CLASSES)]
    if len(unknown) > 0:
        raise ValueError(f"LabelMap must be 0..{NUM_CONTEXT_CLASSES}; got {unknown.max()}")
    return label_map.astype(np.uint16)


def read_parts(path: str) -> list[tuple[str, np.ndarray]]:
    """Read name and mask of all parts of all people, in the order of the annotation."""
    annotation = read_variable(path, "anno")
    try:
        # SciPy wraps every MATLAB value in an array: a struct is a (1, 1), a list of structs a (1, N) or a (0, 0).
        objects = annotation["objects"].item().ravel()
        people = [item for item in objects if item["class_ind"].item() == PERSON]
        return [(part["part_name"].item(), part["mask"]) for item in people for part in item["parts"].ravel()]
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"anno must hold objects with class_ind and parts, and those part_name and mask; {error}"
        ) from error


def read_parsing(path: str, shape: tuple[int, int]) -> np.ndarray:
    """Draw the parts of people, later ones over earlier ones: ids 0..6, or 255 everywhere without any part.

    Args:
        path: A file of `human_parts`.
        shape: Height and width of the image, which a file without parts does not tell.

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
    return labels if labels.any() else np.full(shape, 255, np.uint8)


def keep_shared_classes(normal: np.ndarray, label_map: np.ndarray) -> np.ndarray:
    """Mark normals, coded as uint8 `(height, width, 3)`, as unknown outside of `NORMAL_CLASSES`."""
    valid = np.isin(label_map, list(NORMAL_CLASSES))
    return np.where(valid[..., None], normal, np.uint8(128))


def map_classes(label_map: np.ndarray) -> np.ndarray:
    """Turns the 459 classes into the 21: what is none of them is background."""
    classes = np.zeros(NUM_CONTEXT_CLASSES + 1, np.uint8)
    classes[CONTEXT_IDS] = np.arange(len(CONTEXT_IDS))
    return classes[label_map]


def read_frame(frame: Frame) -> Maps:
    """Reads the image and the maps of one frame, and derives what there are no files for.

    Args:
        frame: As `find_frames` returns them.

    Returns:
        Column name to what `Source.read` returns.

    Raises:
        BrokenFrameError: If files cannot be read, hold what they should not, or are not of the image's size.
    """
    reader = FrameReader(frame["id"])
    maps = {"image": reader.read(frame["image"], read_colours)}
    reader.finish()  # no map can be judged without the size of the image
    readers = {
        "semseg": read_semseg,
        "parsing": partial(read_parsing, shape=reader.shape),
        "saliency": read_saliency,
        "normal": read_colours,
        "label_map": read_label_map,
    }
    maps |= {column: reader.read(frame[column], read) for column, read in readers.items() if frame.get(column)}
    reader.finish()
    maps["image"] = Path(frame["image"]).read_bytes()
    if "parsing" in frame and frame["parsing"] is None:
        maps["parsing"] = np.full(reader.shape, 255, np.uint8)
    if "label_map" in maps:
        maps["boundary"] = boundaries_from_labels(maps["label_map"])
        maps.setdefault("semseg", map_classes(maps["label_map"]))
        if "normal" in maps:
            maps["normal"] = keep_shared_classes(maps["normal"], maps["label_map"])
    return maps


class PASCALContextConfig(SourceConfig):
    """`data_dir` is what `find_source` takes."""

    find_source = staticmethod(find_source)


class PASCALContext(SourceBuilder):
    """PASCAL-Context with 21 classes, human parts, saliency, normals and boundaries, from `data_dir`.

    Rows carry the columns of `rows.FEATURES` that there are maps for, and, beside "boundary", "label_map": the full
    `LabelMap`, which the boundary F-measure takes for its ground truth.
    """

    BUILDER_CONFIG_CLASS = PASCALContextConfig

"""PASCAL-Context as multi-task papers train on it: 4998 training and 5105 test photographs of about 375 x 500.

The folder, `PASCALContext` or `PASCAL_MT`, is on the user's disk already; nothing is downloaded.
`PASCALContext(data_dir=...)` reads

    JPEGImages/ID.jpg                   RGB
    ImageSets/Context/{train,val}.txt   ids, one a line
    semseg/VOC12/ID.png                 uint8, 0..20, 255 void; where it is missing, semseg/pascal-context/ID.png
    human_parts/ID.mat                  `anno` of PASCAL-Part: objects with class index (person 15), mask and parts
    ImageSets/Parts/{train,val}.txt     JSON, id to the class indices of its objects: says which `anno` has people
    sal_distill/ID.png                  uint8, salient above 127
    normals_distill/ID.png              RGB = (n + 1) / 2 * 255
    pascal-context/trainval/ID.mat      `LabelMap`, 0..459: where normals count, and what boundaries are drawn from

A map whose folder is missing is left out of the rows.
"""

import json
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import scipy.io
import scipy.ndimage
from PIL import Image

from ..boundary import thin
from .rows import FEATURES


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
ROOTS = ("PASCALContext", "PASCAL_MT")
LISTS = {"train": "ImageSets/Context/train.txt", "validation": "ImageSets/Context/val.txt"}
PARTS_LISTS = {"train": "ImageSets/Parts/train.txt", "validation": "ImageSets/Parts/val.txt"}
# Where a map lies; the first of several that has it counts.
FILES = {
    "image": ("JPEGImages/{}.jpg",),
    "semseg": ("semseg/VOC12/{}.png", "semseg/pascal-context/{}.png"),
    "parsing": ("human_parts/{}.mat",),
    "saliency": ("sal_distill/{}.png",),
    "normal": ("normals_distill/{}.png",),
    "label_map": ("pascal-context/trainval/{}.mat",),
}
COLUMNS = {**FEATURES, "label_map": datasets.Image()}
Files = dict[str, str | None]


def find_root(data_dir: str | Path | None) -> Path:
    """Find the folder that holds `JPEGImages/` and its sisters.

    Args:
        data_dir: That folder, or the one that contains it as `PASCALContext/` or `PASCAL_MT/`.

    Raises:
        ValueError: If `data_dir` is not given.
        FileNotFoundError: If the folder, its images or its lists are missing, or there is no map at all.
    """
    if data_dir is None:
        raise ValueError(
            "PASCALContext is read from your disk, and data_dir is None; pass the folder that contains PASCALContext/."
        )
    folder = Path(data_dir).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data_dir must be a folder, and {folder} is none; pass the one that contains PASCALContext/."
        )
    root = next((folder / name for name in ROOTS if (folder / name).is_dir()), folder)
    missing = [name for name in ("ImageSets/Context", "JPEGImages") if not (root / name).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"PASCALContext needs the folders ImageSets/Context and JPEGImages; {root} lacks {missing}. Unpack "
            "PASCALContext.tar.gz, and pass the folder that contains PASCALContext/ as data_dir."
        )
    if set(find_places(root)) == {"image"}:
        folders = [pattern.rpartition("/")[0] for patterns in FILES.values() for pattern in patterns]
        raise FileNotFoundError(
            f"PASCALContext needs maps; {root} has images only. Add at least one of {folders[1:]}."
        )
    return root


def find_places(root: Path) -> dict[str, list[str]]:
    """Find what a folder has.

    Returns:
        Key of `FILES` to those of its patterns whose folder exists; keys without any are left out.
    """
    places = {
        column: [pattern for pattern in patterns if (root / pattern).parent.is_dir()]
        for column, patterns in FILES.items()
    }
    return {column: patterns for column, patterns in places.items() if patterns}


def read_ids(root: Path, split: str) -> list[str]:
    """Read the ids of the frames of a split, in the order of its list.

    Raises:
        FileNotFoundError: If there is no such list.
        ValueError: If it is empty.
    """
    path = root / LISTS[split]
    if not path.is_file():
        raise FileNotFoundError(
            f"The {split} split needs the list {path}; write one id a line, as the archive has it."
        )
    # What is no text becomes ids without files, and is reported as such.
    ids = path.read_text(encoding="utf-8", errors="replace").split()
    if not ids:
        raise ValueError(f"The {split} split needs at least one id, and {path} is empty; write one id a line.")
    return ids


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


def find_people(root: Path, split: str, ids: list[str]) -> set[str]:
    """Find the images whose human parts are read: those with people, or, without a Parts list, all there are."""
    path = root / PARTS_LISTS[split]
    if path.is_file():
        return {name for name, classes in read_object_classes(path).items() if PERSON in classes}
    return {name for name in ids if (root / FILES["parsing"][0].format(name)).is_file()}


def find_file(root: Path, patterns: list[str], name: str) -> str:
    """Find a file in the first place that has it; where none has, name the first."""
    paths = [root / pattern.format(name) for pattern in patterns]
    return str(next((path for path in paths if path.is_file()), paths[0]))


def find_frames(root: Path, split: str) -> list[Files]:
    """Find the files of the frames of a split, in the order of its list.

    Returns:
        For each frame key of `FILES` to path; `None` for the human parts of an image without people.

    Raises:
        FileNotFoundError: If there is no list.
        ValueError: If it is empty, or the Parts list is broken.
    """
    ids = read_ids(root, split)
    places = find_places(root)
    people = find_people(root, split, ids) if "parsing" in places else set()
    return [
        {
            column: None if column == "parsing" and name not in people else find_file(root, patterns, name)
            for column, patterns in places.items()
        }
        for name in ids
    ]


def check_files(frames: list[Files]) -> None:
    """Find missing files before the first frame is read, not after an hour.

    Raises:
        FileNotFoundError: If a file of a frame is missing; names up to five.
    """
    paths = [path for files in frames for path in files.values() if path is not None]
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise FileNotFoundError(
            f"Every id in {sorted(LISTS.values())} needs a file in each folder of maps; {len(missing)} are missing, "
            f"first {missing[:5]}. Restore them, take their ids off the list, or remove a folder to leave its map out."
        )


def decode_colours(data: bytes) -> np.ndarray:
    """Decode an RGB picture, uint8 `(height, width, 3)`."""
    picture = Image.open(BytesIO(data))
    if picture.mode != "RGB":
        raise ValueError(f"the picture must be RGB; got mode {picture.mode}")
    return np.asarray(picture)


def decode_semseg(data: bytes) -> np.ndarray:
    """Decode ids 0..20 and 255, uint8 `(height, width)`; the palette of VOC's pictures is for people."""
    labels = np.asarray(Image.open(BytesIO(data)))
    last = len(CLASS_NAMES["semseg"]) - 1
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(f"the labels must be a uint8 picture of one channel; got {labels.dtype} {labels.shape}")
    unknown = labels[(labels > last) & (labels != 255)]
    if len(unknown) > 0:
        raise ValueError(f"the labels must be 0..{last} and 255 (void); got {unknown.max()}")
    return labels


def decode_saliency(data: bytes) -> np.ndarray:
    """Turn grey levels into ids 0 and 1, uint8 `(height, width)`."""
    picture = Image.open(BytesIO(data))
    if picture.mode != "L":
        raise ValueError(f"saliency must be a picture of 8-bit grey; got mode {picture.mode}")
    return (np.asarray(picture) > 127).astype(np.uint8)


def read_variable(data: bytes, name: str) -> np.ndarray:
    """Read a variable of a MATLAB file."""
    try:
        variables = scipy.io.loadmat(BytesIO(data))
    except Exception as error:  # on a broken file SciPy raises whatever it stumbles over
        raise ValueError(f"it must be a MATLAB file older than version 7.3; {error}") from error
    if name not in variables:
        found = [key for key in variables if not key.startswith("__")]
        raise ValueError(f"it must hold the variable {name}; got {found}")
    return variables[name]


def decode_label_map(data: bytes) -> np.ndarray:
    """Read ids 0..459, uint16 `(height, width)`."""
    label_map = read_variable(data, "LabelMap")
    # MATLAB saves whole numbers in the smallest type that holds them, whatever type they have.
    if label_map.dtype.kind not in "iu" or label_map.ndim != 2:
        raise ValueError(f"LabelMap must be whole numbers (height, width); got {label_map.dtype} {label_map.shape}")
    unknown = label_map[(label_map < 0) | (label_map > NUM_CONTEXT_CLASSES)]
    if len(unknown) > 0:
        raise ValueError(f"LabelMap must be 0..{NUM_CONTEXT_CLASSES}; got {unknown.max()}")
    return label_map.astype(np.uint16)


def read_parts(data: bytes) -> list[tuple[str, np.ndarray]]:
    """Read name and mask of all parts of all people, in the order of the annotation."""
    annotation = read_variable(data, "anno")
    try:
        # SciPy wraps every MATLAB value in an array: a struct is a (1, 1), a list of structs a (1, N) or a (0, 0).
        objects = annotation["objects"].item().ravel()
        people = [item for item in objects if item["class_ind"].item() == PERSON]
        return [(part["part_name"].item(), part["mask"]) for item in people for part in item["parts"].ravel()]
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"anno must hold objects with class_ind and parts, and those part_name and mask; {error}"
        ) from error


def decode_parsing(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """Draw the parts of people, later ones over earlier ones: ids 0..6, or 255 everywhere without any part.

    Args:
        data: A file of `human_parts`.
        shape: Height and width of the image, which a file without parts does not tell.

    Returns:
        uint8 of that shape.
    """
    labels = np.zeros(shape, np.uint8)
    for name, mask in read_parts(data):
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


def draw_boundary(label_map: np.ndarray) -> np.ndarray:
    """Draw the edges that models are trained on, uint8 `(height, width)`: 255 where the thinned Laplacian is not 0."""
    laplacian = scipy.ndimage.laplace(label_map.astype(np.int32), mode="mirror")
    return np.where(thin((laplacian != 0).astype(np.uint64)), 255, 0).astype(np.uint8)


DECODERS: dict[str, Callable[[bytes], np.ndarray]] = {
    "image": decode_colours,
    "semseg": decode_semseg,
    "saliency": decode_saliency,
    "normal": decode_colours,
    "label_map": decode_label_map,
}


def encode_png(values: np.ndarray) -> bytes:
    """Store a map as PNG; `datasets` would store 16-bit ones as TIFF, a hundred times larger."""
    buffer = BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def read_file(column: str, path: str, shape: tuple[int, int] | None = None) -> tuple[bytes, np.ndarray]:
    """Read and decode one file of a frame.

    Args:
        column: Key of `FILES`.
        path: The file.
        shape: Height and width of the image, where the file is a map.

    Returns:
        Its bytes, and its values: uint8 or uint16 of shape `(height, width)`, colours `(height, width, 3)`.

    Raises:
        ValueError: If the file cannot be read, holds what it should not, or is not of that size.
    """
    try:
        data = Path(path).read_bytes()
        values = decode_parsing(data, shape) if column == "parsing" else DECODERS[column](data)
        if shape is not None and values.shape[:2] != shape:
            raise ValueError(f"a map must have the size of its image, {shape} (height, width); got {values.shape[:2]}")
    except Exception as error:  # on a broken picture PIL, too, raises whatever it stumbles over
        name = Path(path).stem
        raise ValueError(f"Cannot use {path}: {error}. Restore the file, or take {name} off the list.") from error
    return data, values


def read_frame(files: Files) -> dict[str, bytes]:
    """Read the image and the maps of one frame.

    Args:
        files: As `find_frames` returns them.

    Returns:
        Column name to picture: the image as the bytes of its file, the maps as PNG.

    Raises:
        ValueError: If a file cannot be read, holds what it should not, or is not of the image's size.
    """
    data, image = read_file("image", files["image"])
    shape = image.shape[:2]
    maps = {
        column: np.full(shape, 255, np.uint8) if path is None else read_file(column, path, shape)[1]
        for column, path in files.items()
        if column != "image"
    }
    if "label_map" in maps:
        maps["boundary"] = draw_boundary(maps["label_map"])
    if "label_map" in maps and "normal" in maps:
        maps["normal"] = keep_shared_classes(maps["normal"], maps["label_map"])
    return {"image": data, **{column: encode_png(values) for column, values in maps.items()}}


class PASCALContextConfig(datasets.BuilderConfig):
    """`data_dir` is the folder that contains `PASCALContext/` or `PASCAL_MT/`, or that folder itself."""

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Name the cache by the files that are read, so that an edited list or an added folder is read anew."""
        root = find_root(self.data_dir)
        frames = {split: find_frames(root, split) for split in LISTS}
        return super().create_config_id({**config_kwargs, "data_dir": str(root), **frames}, custom_features)


class PASCALContext(datasets.GeneratorBasedBuilder):
    """PASCAL-Context with 21 classes, human parts, saliency, normals and boundaries, from `data_dir`.

    Rows carry "id", the columns of `rows.FEATURES` that the folder has maps for, and, beside "boundary", "label_map":
    the full `LabelMap`, which the boundary F-measure takes for its ground truth. A cache is made anew when `data_dir`,
    one of its lists or the set of its files changes; after replacing maps, pass `download_mode="force_redownload"` to
    `download_and_prepare`.
    """

    # A change of how files are read must raise the version: it is part of the path of the cache.
    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = PASCALContextConfig
    DEFAULT_WRITER_BATCH_SIZE = 16

    def _info(self) -> datasets.DatasetInfo:
        columns = list(find_places(find_root(self.config.data_dir)))
        if "label_map" in columns:
            columns.insert(-1, "boundary")
        features = {"id": datasets.Value("string"), **{column: COLUMNS[column] for column in columns}}
        return datasets.DatasetInfo(description=__doc__, features=datasets.Features(features))

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        root = find_root(self.config.data_dir)
        frames = {split: find_frames(root, split) for split in LISTS}
        check_files([files for split in frames.values() for files in split])
        # The list is what `datasets` cuts into shards for its processes.
        return [datasets.SplitGenerator(split, gen_kwargs={"frames": frames[split]}) for split in frames]

    def _generate_examples(self, frames: list[Files]) -> Iterator[tuple[str, dict]]:
        for files in frames:
            name = Path(files["image"]).stem
            yield name, {"id": name, **read_frame(files)}

"""NYU-Depth v2 as multi-task papers train on it: the `NYUDv2` folder, 795 training and 654 test frames of 425 x 560.

The folder is on the user's disk already; nothing is downloaded. `NYUDv2(data_dir=...)` reads

    NYUDv2/images/ID.png            RGB
    NYUDv2/segmentation/ID.png      uint8, 0 unlabelled, 1..40
    NYUDv2/depth/ID.npy             float32 metres, 0 invalid
    NYUDv2/normals/ID.png           RGB = (n + 1) / 2 * 255, x right, y down, z forward
    NYUDv2/edge/ID.png              0 or 255
    NYUDv2/gt_sets/{train,val}.txt  ids, one a line
"""

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from .rows import FEATURES, encode_depth


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
FILES = {
    "image": "images/{}.png",
    "semseg": "segmentation/{}.png",
    "depth": "depth/{}.npy",
    "normal": "normals/{}.png",
    "boundary": "edge/{}.png",
}


def find_root(data_dir: str | Path | None) -> Path:
    """Find the folder that holds `images/` and its sisters.

    Args:
        data_dir: That folder, or the one that contains it as `NYUDv2/`.

    Raises:
        ValueError: If `data_dir` is not given.
        FileNotFoundError: If the folder or one of its sub folders is missing.
    """
    if data_dir is None:
        raise ValueError("NYUDv2 is read from your disk, and data_dir is None; pass the folder that contains NYUDv2/.")
    folder = Path(data_dir).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data_dir must be a folder, and {folder} is none; pass the one that contains NYUDv2/."
        )
    root = folder / "NYUDv2" if (folder / "NYUDv2").is_dir() else folder
    needed = sorted({path.split("/")[0] for path in (*FILES.values(), *LISTS.values())})
    missing = [name for name in needed if not (root / name).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"NYUDv2 needs the folders {needed}; {root} lacks {missing}. Unpack NYUDv2.tar.gz, and pass the folder that "
            "contains NYUDv2/ as data_dir."
        )
    return root


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
    ids = path.read_text().split()
    if not ids:
        raise ValueError(f"The {split} split needs at least one id, and {path} is empty; write one id a line.")
    return ids


def check_files(root: Path, ids: list[str]) -> None:
    """Find missing files before the first frame is read, not after an hour.

    Raises:
        FileNotFoundError: If a file of a frame is missing; names up to five.
    """
    paths = [root / pattern.format(name) for name in ids for pattern in FILES.values()]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"Every id in {sorted(LISTS.values())} needs {len(FILES)} files; {len(missing)} are missing, first "
            f"{missing[:5]}. Restore them, or take their ids off the list."
        )


def decode_colours(data: bytes) -> Image.Image:
    """Decode an RGB picture, to see that it is whole."""
    picture = Image.open(BytesIO(data))
    picture.load()
    if picture.mode != "RGB":
        raise ValueError(f"the picture must be RGB; got mode {picture.mode}")
    return picture


def decode_semseg(data: bytes) -> Image.Image:
    """Turn 1..40 into ids 0..39, and 0, unlabelled, into 255."""
    labels = np.asarray(Image.open(BytesIO(data)))
    num_classes = len(CLASS_NAMES["semseg"])
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(f"the labels must be a uint8 picture of one channel; got {labels.dtype} {labels.shape}")
    if labels.max() > num_classes:
        raise ValueError(f"the labels must be 0 (unlabelled) and 1..{num_classes}; got {labels.max()}")
    return Image.fromarray(np.where(labels == 0, 255, labels - 1).astype(np.uint8))


def decode_depth(data: bytes) -> Image.Image:
    """Turn the invalid 0 metres into NaN."""
    # Else numpy takes it for a pickle, and advises to load that unsafely.
    if not data.startswith(b"\x93NUMPY"):
        raise ValueError("depth must be a .npy file; this is none, or is empty")
    # From memory, because `datasets` replaces this module's `np.load` by one that leaves files open.
    depth = np.load(BytesIO(data), allow_pickle=False)
    if depth.dtype.kind != "f" or depth.ndim != 2:
        raise ValueError(f"depth must be floating point metres (height, width); got {depth.dtype} {depth.shape}")
    if (depth < 0).any() or np.isinf(depth).any():
        raise ValueError(f"depth must be metres >= 0, 0 invalid; got {depth.min()} to {depth.max()}")
    return encode_depth(np.where(depth > 0, depth, np.nan))


def decode_edge(data: bytes) -> Image.Image:
    """Turn edges into 8-bit grey."""
    edge = Image.open(BytesIO(data)).convert("L")
    if edge.getextrema()[1] == 1:
        raise ValueError("edges must be 0 or 255; got 0 and 1, multiply them by 255")
    return edge


DECODERS: dict[str, Callable[[bytes], Image.Image]] = {
    "image": decode_colours,
    "semseg": decode_semseg,
    "depth": decode_depth,
    "normal": decode_colours,
    "boundary": decode_edge,
}


def read_frame(root: Path, name: str) -> dict[str, bytes | Image.Image]:
    """Read the image and the maps of one frame.

    Returns:
        Column name to picture; the RGB ones as the bytes of their files.

    Raises:
        ValueError: If a file cannot be read, holds what it should not, or is not of the image's size.
    """
    frame, sizes = {}, {}
    for column, pattern in FILES.items():
        path = root / pattern.format(name)
        data = path.read_bytes()
        try:
            picture = DECODERS[column](data)
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise ValueError(f"Cannot use {path}: {error}. Restore the file, or take {name} off the list.") from error
        frame[column] = data if picture.mode == "RGB" else picture
        sizes[column] = picture.size
        if picture.size != sizes["image"]:
            raise ValueError(
                f"A map must have the size of its image; {path} is {picture.size}, the image {sizes['image']} (width, "
                f"height). Restore the file, or take {name} off the list."
            )
    return frame


class NYUDv2Config(datasets.BuilderConfig):
    """`data_dir` is the folder that contains `NYUDv2/`, or `NYUDv2/` itself."""

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Name the cache by the real path and by the lists, so that an edited list is read anew."""
        root = find_root(self.data_dir)
        ids = {split: read_ids(root, split) for split in LISTS}
        return super().create_config_id({**config_kwargs, "data_dir": str(root), **ids}, custom_features)


class NYUDv2(datasets.GeneratorBasedBuilder):
    """NYU-Depth v2 with 40 classes, depth, normals and boundaries, from `data_dir`.

    Rows carry the columns of `rows.FEATURES` that NYU has, and "id". A cache is made anew when `data_dir` or one of its
    lists changes; after replacing maps, pass `download_mode="force_redownload"` to `download_and_prepare`.
    """

    # A change of how files are read must raise the version: it is part of the path of the cache.
    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = NYUDv2Config
    DEFAULT_WRITER_BATCH_SIZE = 16

    def _info(self) -> datasets.DatasetInfo:
        features = {"id": datasets.Value("string"), **{column: FEATURES[column] for column in FILES}}
        return datasets.DatasetInfo(description=__doc__, features=datasets.Features(features))

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        root = find_root(self.config.data_dir)
        ids = {split: read_ids(root, split) for split in LISTS}
        check_files(root, [name for names in ids.values() for name in names])
        # The list is what `datasets` cuts into shards for its processes.
        return [
            datasets.SplitGenerator(split, gen_kwargs={"root": str(root), "ids": names})
            for split, names in ids.items()
        ]

    def _generate_examples(self, root: str, ids: list[str]) -> Iterator[tuple[str, dict]]:
        for name in ids:
            yield name, {"id": name, **read_frame(Path(root), name)}

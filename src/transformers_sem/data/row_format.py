"""The row format of all datasets: one column per map, each stored as a lossless image."""

from collections.abc import Iterable
from io import BytesIO

import datasets
import numpy as np
from PIL import Image

from ..task_kinds import CLASS_IDS, METRES, PROBABILITY, UNIT_VECTORS, unit_vectors_to_rgb
from ..tasks import TASKS


UNKNOWN_NORMAL = 128  # in all three channels: the level nearest to the zero vector
# The full class ids of PASCAL-Context are stored beside the maps of the tasks: boundaries are scored by them.
LABEL_MAP = "label_map"
ENCODINGS = {
    CLASS_IDS: "class ids, 255 unlabeled",
    METRES: "metres, float32, NaN unknown",
    UNIT_VECTORS: "RGB = (n + 1) / 2 * 255, x right, y down, z forward; (128, 128, 128) unknown",
    PROBABILITY: "gray, 255 for 1",
}


def map_feature(column: str) -> datasets.Image:
    """Returns the feature of a column: raw TIFF keeps metres as float32, NaN included; PNG keeps everything else."""
    return datasets.Image(mode="F" if column in TASKS and TASKS[column].kind is METRES else None)


def describe_column(column: str) -> str:
    """Returns in words what the images of a column hold."""
    if column not in TASKS:
        return {"image": "RGB", LABEL_MAP: "all class ids of PASCAL-Context, 16 bits; boundaries are scored by them"}[
            column
        ]
    spec = TASKS[column]
    if spec.kind is PROBABILITY and not spec.dtype.is_floating_point:
        return "1 or 0, 255 unknown"
    return ENCODINGS.get(spec.kind, spec.kind.values)


FEATURES = {
    column: map_feature(column) for column in ("image", "semseg", "depth", "normal", "boundary", "parsing", "saliency")
}


def count_labels(rows: datasets.Dataset, tasks: Iterable[str]) -> dict[str, int]:
    """Returns `{task: number of rows with a map}` of a split as it was loaded, without reading the maps."""
    return {task: len(rows) - rows.data.column(task).null_count for task in tasks}


def encode_row(arrays: dict[str, np.ndarray]) -> dict[str, Image.Image]:
    """Converts an image and its maps to the images of a row of `FEATURES`.

    Args:
        arrays: Column to array: "image" uint8 `(height, width, 3)`; class ids uint8, metres and probabilities float
            `(height, width)`; unit vectors float `(3, height, width)`.

    Returns:
        Column to image.
    """
    return {column: Image.fromarray(image_values(column, values)) for column, values in arrays.items()}


def image_values(column: str, values: np.ndarray) -> np.ndarray:
    """Returns what the image of a column holds: float32 metres, or 8-bit levels for unit vectors and probabilities."""
    kind = TASKS[column].kind if column in TASKS else None
    if kind is UNIT_VECTORS:
        return unit_vectors_to_rgb(values)
    if kind is METRES:
        return values.astype(np.float32)
    if kind is PROBABILITY and values.dtype.kind == "f":
        return np.round(values * 255.0).astype(np.uint8)
    return values


def encode_map(values: np.ndarray) -> bytes:
    """Returns the bytes of a lossless image of a map.

    `datasets` encodes arrays too, but it stores 16-bit ids as TIFF, which takes a hundred times more space.

    Args:
        values: float32 `(height, width)`, or integers of 8 or 16 bits `(height, width)` or `(height, width, 3)`.
    """
    buffer = BytesIO()
    Image.fromarray(values).save(buffer, "TIFF" if values.dtype.kind == "f" else "PNG")
    return buffer.getvalue()

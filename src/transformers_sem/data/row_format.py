"""The one row schema of all data sets: a column per map, each stored as a lossless picture."""

from io import BytesIO

import datasets
import numpy as np
from PIL import Image


# Raw TIFF keeps metres as float32, NaN included; 8-bit PNG keeps ids and, to 0.4 degrees, normals.
FEATURES = {
    "image": datasets.Image(),
    "semseg": datasets.Image(),
    "depth": datasets.Image(mode="F"),
    "normal": datasets.Image(),
    "boundary": datasets.Image(),
    "parsing": datasets.Image(),
    "saliency": datasets.Image(),
}

ENCODINGS = {
    "image": "RGB",
    "semseg": "class ids, 255 unlabelled",
    "depth": "metres, float32, NaN unknown",
    "normal": "RGB = (n + 1) / 2 * 255, x right, y down, z forward; (128, 128, 128) unknown",
    "boundary": "grey, 255 on boundaries",
    "parsing": "ids of the parts of people, 0 elsewhere; 255 everywhere in images that do not count",
    "saliency": "1 salient, 0 not, 255 unknown",
    "label_map": "the full ids of PASCAL-Context's `LabelMap`, 16 bits: boundaries are judged by them",
}


def code_normal(normal: np.ndarray) -> np.ndarray:
    """Code unit normals of shape `(3, height, width)` as 8-bit RGB; (128, 128, 128), the zero vector, marks NaN."""
    codes = np.round((normal + 1.0) / 2.0 * 255.0)
    return np.where(np.isnan(codes), 128, codes).astype(np.uint8).transpose(1, 2, 0)


def code_boundary(boundary: np.ndarray) -> np.ndarray:
    """Code a boundary map of shape `(height, width)` in [0, 1] as 8-bit grey."""
    return np.round(boundary * 255.0).astype(np.uint8)


def encode_row(arrays: dict[str, np.ndarray]) -> dict[str, Image.Image]:
    """Turn the maps of one scene into pictures, as `FEATURES` expects them.

    Args:
        arrays: Column name to map: uint8 ids `(height, width)` or colours `(height, width, 3)`, "boundary" and "depth"
            float `(height, width)`, "normal" float `(3, height, width)`.

    Returns:
        Column name to picture.
    """
    codes = {"normal": code_normal, "boundary": code_boundary, "depth": np.float32}
    return {name: Image.fromarray(codes[name](array) if name in codes else array) for name, array in arrays.items()}


def encode_map(values: np.ndarray) -> bytes:
    """Store a map as the bytes of a lossless picture.

    `datasets` would do so too, but would store 16-bit ids as TIFF, a hundred times larger.

    Args:
        values: float32 `(height, width)`, or whole numbers of 8 or 16 bits `(height, width)` or `(height, width, 3)`.
    """
    buffer = BytesIO()
    Image.fromarray(values).save(buffer, "TIFF" if values.dtype.kind == "f" else "PNG")
    return buffer.getvalue()

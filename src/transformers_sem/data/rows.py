"""The one row schema of all data sets: a column per map, each stored as a lossless picture."""

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


def encode_depth(depth: np.ndarray) -> Image.Image:
    """Store metres of shape `(height, width)` as float32, which PIL calls mode F."""
    return Image.fromarray(depth.astype(np.float32))


def encode_normal(normal: np.ndarray) -> Image.Image:
    """Store unit normals of shape `(3, height, width)` as RGB; (128, 128, 128), the zero vector, marks NaN."""
    codes = np.round((normal + 1.0) / 2.0 * 255.0)
    return Image.fromarray(np.where(np.isnan(codes), 128, codes).astype(np.uint8).transpose(1, 2, 0))


def encode_boundary(boundary: np.ndarray) -> Image.Image:
    """Store a boundary map of shape `(height, width)` in [0, 1] as 8-bit grey."""
    return Image.fromarray(np.round(boundary * 255.0).astype(np.uint8))


def encode_row(arrays: dict[str, np.ndarray]) -> dict[str, Image.Image]:
    """Turn the maps of one scene into pictures, as `FEATURES` expects them.

    Args:
        arrays: Column name to map: uint8 ids `(height, width)` or colours `(height, width, 3)`, "boundary" and "depth"
            float `(height, width)`, "normal" float `(3, height, width)`.

    Returns:
        Column name to picture.
    """
    encoders = {"normal": encode_normal, "boundary": encode_boundary, "depth": encode_depth}
    return {name: encoders.get(name, Image.fromarray)(array) for name, array in arrays.items()}

"""Images and maps at a fraction of their size, for experiments on small machines."""

from io import BytesIO

import numpy as np
from PIL import Image

from ..evaluation.boundary import thin
from ..image_files import decode_image, to_upright_rgb
from .files import BrokenFrameError


Maps = dict[str, np.ndarray | bytes]


def shrink_maps(maps: Maps, factor: int) -> Maps:
    """Shrinks an image and its maps, after rows and columns that do not fill a block are cut off.

    Colors are averaged over blocks of `factor` x `factor` pixels, maps keep the pixel in the middle of each block, and
    boundaries are the blocks that have one, thinned to a line of one pixel.

    Args:
        maps (`dict`): "image", the bytes of its file or uint8 `(height, width, 3)`, and arrays whose first axes are height
            and width.
        factor (`int`): How many times smaller, 1 for no change.

    Raises:
        BrokenFrameError: If the image is smaller than a block.
    """
    if factor == 1:
        return maps
    content = maps["image"]
    image = decode_image(BytesIO(content), to_upright_rgb) if isinstance(content, bytes) else Image.fromarray(content)
    width, height = (edge // factor * factor for edge in image.size)
    if not min(width, height):
        raise BrokenFrameError(
            f"An image must have {factor} pixels or more in height and width to be shrunk; got {image.size}."
        )
    shrunk = {"image": np.asarray(image.crop((0, 0, width, height)).reduce(factor))}
    for column, values in maps.items():
        if column == "boundary":
            shrunk[column] = shrink_boundaries(values[:height, :width], factor)
        elif column != "image":
            middle = slice(factor // 2, None, factor)
            shrunk[column] = np.ascontiguousarray(values[:height, :width][middle, middle])
    return shrunk


def shrink_boundaries(values: np.ndarray, factor: int) -> np.ndarray:
    """Shrinks a map of 0 and 255 `(height, width)`, whose sizes are multiples of `factor`."""
    height, width = values.shape
    blocks = (values > 127).reshape(height // factor, factor, width // factor, factor)
    return np.where(thin(blocks.any(axis=(1, 3)).astype(np.uint64)), 255, 0).astype(np.uint8)

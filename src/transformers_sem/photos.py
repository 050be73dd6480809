"""Pictures as people have them, brought to what a model sees: upright, RGB, 8 bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


MAX_PIXELS = 256_000_000  # a little more than the largest camera of a phone; 768 MB as RGB


def read_photo(path: str | Path) -> Image.Image:
    """Reads a photo, of an animation the first picture; upright as the camera says, RGB.

    Raises:
        ValueError: If it cannot be read, whatever is wrong with it.
    """
    try:
        with _of_any_size(), Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(
                    f"a photo has at most {MAX_PIXELS} pixels; got {picture.width} x {picture.height}. Shrink it first"
                )
            return upright_rgb(picture)
    except UnidentifiedImageError as error:
        reason = "it is empty" if Path(path).stat().st_size == 0 else "it is no picture of a format that Pillow reads"
        raise ValueError(f"Cannot read {path}: {reason}. Save it as JPEG or PNG.") from error
    except Exception as error:  # on a broken file Pillow raises whatever it stumbles over
        raise ValueError(f"Cannot read {path}: {error or type(error).__name__}.") from error


@contextmanager
def _of_any_size() -> Iterator[None]:
    """Suspends Pillow's own limit, which warns and raises at sizes that cameras have today."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def upright_rgb(picture: Image.Image) -> Image.Image:
    """Brings a picture of any mode to RGB of 8 bits, upright as its EXIF orientation says.

    16-bit grey is scaled (Pillow's own conversion would clip it to white), what is transparent shows white.

    Raises:
        ValueError: If its values have no known white.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        return _scale_16_bits(np.asarray(picture)).convert("RGB")
    if picture.mode == "F":
        raise ValueError("a photo has whole numbers, of floating-point ones the white is unknown. Save it with 8 bits")
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert("RGB")


def _scale_16_bits(levels: np.ndarray) -> Image.Image:
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(
            f"a grey photo has levels of 0 to 65535 at most; got {levels.min()} to {levels.max()}. Save it with 8 bits"
        )
    return Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8))

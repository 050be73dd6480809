"""Pictures as people have them, brought to what a model sees: upright, RGB, 8 bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "PPM",
    "JPEG2000",
    "AVIF",
)  # none starts another program, as EPS would
MAX_PIXELS = 256_000_000  # a little more than the largest camera of a phone; 768 MB as RGB


class UnreadablePhotoError(ValueError):
    """A file is no photo that can be read; `reason` says why without naming it, for whoever gave it under another name."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"Cannot read {path}: {reason}")
        self.reason = reason[0].upper() + reason[1:]


def read_photo(path: str | Path) -> Image.Image:
    """Reads a photo, of an animation the first picture; upright as the camera says, RGB.

    Raises:
        UnreadablePhotoError: If it cannot be read, whatever is wrong with it.
    """
    try:
        with _of_any_size(), Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(
                    f"a photo has at most {MAX_PIXELS // 10**6} million pixels; got {picture.width:,} x "
                    f"{picture.height:,}. Shrink it first."
                )
            return upright_rgb(picture)
    except UnidentifiedImageError as error:
        is_empty = Path(path).stat().st_size == 0
        reason = "it is empty (0 bytes)" if is_empty else f"it is not a picture; known are {', '.join(FORMATS)}"
        raise UnreadablePhotoError(path, f"{reason}. Save it as JPEG or PNG.") from error
    except Exception as error:  # on a broken file Pillow raises whatever it stumbles over
        raise UnreadablePhotoError(path, str(error) or f"{type(error).__name__}.") from error


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
        raise ValueError("a photo has whole numbers, of measurements the white is unknown. Save it with 8 bits.")
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert("RGB")


def _scale_16_bits(levels: np.ndarray) -> Image.Image:
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(
            f"a grey photo has levels of 0 to 65535 at most; got {levels.min()} to {levels.max()}. Save it with 8 bits."
        )
    return Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8))

"""Whatever people drop on the page: an upright RGB picture of a sane size, or one sentence that says why not."""

import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps


# None of them starts another program, as EPS would
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 150_000_000
MAX_SIDE = 1024


class UnreadablePhotoError(ValueError):
    """The file is not a picture that can be read; the message is for the person who gave it."""


def read_photo(path: str | Path) -> tuple[Image.Image, tuple[int, int]]:
    """Reads a picture: first frame, upright as the camera says, its longer side at most `MAX_SIDE` pixels.

    Args:
        path (`str` or `Path`): A file of any content.

    Returns:
        `tuple[PIL.Image.Image, tuple[int, int]]`: RGB, and the width and height that it has in the file, upright.

    Raises:
        UnreadablePhotoError: If it is empty, broken, too large, or no picture.
    """
    if Path(path).stat().st_size == 0:
        raise UnreadablePhotoError("The file is empty (0 bytes). Save or export the picture again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is our limit
            with Image.open(path, formats=FORMATS) as file:
                return decode(file)
    except (Image.UnidentifiedImageError, Image.DecompressionBombError) as error:
        too_large = isinstance(error, Image.DecompressionBombError)
        raise UnreadablePhotoError(size_rule() if too_large else format_rule()) from error
    except UnreadablePhotoError:
        raise
    except Exception as error:  # a decoder meets a broken file with whatever comes first
        raise UnreadablePhotoError(
            f"The picture is broken ({error or type(error).__name__}). Save or export it again."
        ) from error


def decode(file: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
    """Decodes an open picture; see [`read_photo`]."""
    size = file.size
    if size[0] * size[1] > MAX_PIXELS:
        raise UnreadablePhotoError(f"{size_rule()} It has {size[0]:,} x {size[1]:,}.")
    exif = file.getexif()
    file.draft(None, (2 * MAX_SIDE, 2 * MAX_SIDE))  # a JPEG is decoded at a half, quarter or eighth at once
    photo = to_rgb(file)
    photo.thumbnail((MAX_SIDE, MAX_SIDE))
    photo.getexif().update(exif)  # arrays and some formats lose it on the way
    is_turned = exif.get(ExifTags.Base.Orientation, 1) >= 5  # 5 to 8 swap width and height
    return ImageOps.exif_transpose(photo), size[::-1] if is_turned else size


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB; of 16 bits the upper 8, where PIL's own conversion would make all above 255 white."""
    if image.mode == "F":
        raise UnreadablePhotoError(
            "The file holds measurements (floating point), not a photo. Save it as PNG or JPEG."
        )
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    return image.convert("RGB")


def format_rule() -> str:
    """What a file must be."""
    return f"This is not a picture that can be read; the page takes {', '.join(FORMATS)}. Save or export it as one."


def size_rule() -> str:
    """How large a picture may be."""
    return f"A picture has at most {MAX_PIXELS // 10**6} million pixels; make this one smaller."

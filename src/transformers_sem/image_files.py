"""Images of any form as upright RGB pixels: files, URLs, PIL images, arrays and tensors.

`SEMImageProcessor` reads every image with it, so the pipeline, the commands and the demo get the same pixels.
"""

import base64
import binascii
import math
import os
import stat
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor
from transformers.image_utils import httpx  # the one that huggingface-hub requires, httpx or httpx2


# Pillow decodes these itself; EPS, for example, would start another program
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc")  # in the header of images from phones
MAX_PIXELS = 256_000_000  # slightly more than the largest phone camera; 768 MB as RGB
MAX_DOWNLOAD = 256_000_000  # bytes from an address
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = (1, 3, 4)  # of an array: gray, RGB, RGBA
# EXIF orientation -> what makes the image upright
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


Converted = TypeVar("Converted")


class UnreadableImageError(ValueError):
    """Raised when an image file cannot be read; `reason` omits the path."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"Cannot read {path}: {reason}")
        self.reason = reason[0].upper() + reason[1:]


# ----------------------------------------------------------------------------------------------------------------------
# Files


def load_image(source: str | Path, timeout: float | None = None) -> Image.Image:
    """Reads an image from a path, an http(s) URL or base64 text, as [`read_image_file`] does.

    Args:
        source (`str` or `Path`): The path, URL or text.
        timeout (`float`, *optional*): Seconds to wait for a URL; `None` waits without limit.

    Raises:
        UnreadableImageError: If the image cannot be fetched or read.
    """
    text = str(source)
    if text.startswith(("http://", "https://")):
        try:
            content = _download(text, timeout)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnreadableImageError(text, str(error) or f"{type(error).__name__}.") from error
        return _read(content, text)
    if not os.path.isfile(text):
        try:
            content = base64.b64decode(text.rpartition("base64,")[2], validate=True)
        except (binascii.Error, ValueError):
            return read_image_file(source)  # an error that names the path
        if len(content) > len(PNG_SIGNATURE):
            return _read(BytesIO(content), "the base64 text")
    return read_image_file(source)


def _download(url: str, timeout: float | None) -> BytesIO:
    content = BytesIO()
    with httpx.stream("GET", url, timeout=timeout, follow_redirects=True) as response:
        response.raise_for_status()
        for block in response.iter_bytes():
            content.write(block)
            if content.tell() > MAX_DOWNLOAD:
                raise UnreadableImageError(
                    url,
                    f"an image from an address has at most {MAX_DOWNLOAD // 10**6} MB. Shrink it, or save it as a file.",
                )
    return content


def read_image_file(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads an image file as RGB in upright orientation; of an animation, the first frame.

    Args:
        path (`str` or `Path`): The file.
        max_pixels (`int`): Maximum number of pixels; larger images are not decoded.

    Raises:
        UnreadableImageError: If the file cannot be read, is not an image or has more than `max_pixels` pixels.
    """
    return _read(Path(path), str(path), max_pixels)


def _read(file: Path | BytesIO, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    try:
        if isinstance(file, Path) and not stat.S_ISREG(file.stat().st_mode):  # reading a pipe or a device never ends
            raise ValueError("it is no regular file but a directory, a pipe or a device. Pass an image file.")
        return decode_image(file, to_upright_rgb, max_pixels)
    except UnidentifiedImageError as error:
        is_empty = (file.stat().st_size if isinstance(file, Path) else len(file.getvalue())) == 0
        reason = "it is empty (0 bytes)" if is_empty else f"it is not an image of {', '.join(IMAGE_FORMATS)}"
        raise UnreadableImageError(name, f"{reason}. Save it as JPEG or PNG.") from error
    except Exception as error:  # Pillow raises many types of exceptions on damaged files
        raise UnreadableImageError(name, str(error) or f"{type(error).__name__}.") from error


def decode_image(
    file: Path | BytesIO, convert: Callable[[Image.Image], Converted], max_pixels: int = MAX_PIXELS
) -> Converted:
    """Opens an image of `IMAGE_FORMATS` or HEIC and converts it; a PNG file with damaged texts or profiles without these.

    Args:
        file (`Path` or `BytesIO`): The file.
        convert (`Callable`): Function of the opened image.
        max_pixels (`int`): Maximum number of pixels; larger images are not decoded.

    Raises:
        ValueError: If it has more pixels; Pillow raises errors of any type on damaged files.
    """
    try:
        return _decode(file, convert, max_pixels)
    except Exception:
        essential = _essential_chunks(file)
        if essential is None:
            raise
        return _decode(BytesIO(essential), convert, max_pixels)


def repair_image(content: bytes) -> bytes:
    """Returns a PNG file with damaged texts or profiles without these, so that any program reads it; other files as they are."""
    essential = _essential_chunks(BytesIO(content))
    if essential is None:
        return content
    try:
        _decode(BytesIO(content), lambda image: (image.load(), image.getexif()), MAX_PIXELS)
    except Exception:
        return essential
    return content


def _decode(file: Path | BytesIO, convert: Callable[[Image.Image], Converted], max_pixels: int) -> Converted:
    formats = _heic_formats() if _is_heic(file) else IMAGE_FORMATS
    with without_pillow_limit(), Image.open(file, formats=formats) as image:
        if image.width * image.height > max_pixels:
            raise ValueError(
                f"an image has at most {max_pixels // 10**6} million pixels; got {image.width:,} x "
                f"{image.height:,}. Shrink it first."
            )
        return convert(image)


def _read_header(file: Path | BytesIO) -> bytes:
    if isinstance(file, BytesIO):
        return file.getvalue()[:64]
    with file.open("rb") as opened:
        return opened.read(64)


def _is_heic(file: Path | BytesIO) -> bool:
    header = _read_header(file)
    brands = header[8 : int.from_bytes(header[:4], "big")]
    return header[4:8] == b"ftyp" and any(brand in brands for brand in HEIC_BRANDS)


def _heic_formats() -> tuple[str, ...]:
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise ValueError(
            "it is a HEIC image, which the package 'pillow_heif' reads; it comes with the extra 'heic'. "
            "Run pip install 'transformers-sem[heic]', or save the image as JPEG."
        ) from error
    register_heif_opener()
    return ("HEIF",)


def _essential_chunks(file: Path | BytesIO) -> bytes | None:
    """Returns a PNG file without its texts and profiles, which may be damaged; `None` where nothing can be left out."""
    if not _read_header(file).startswith(PNG_SIGNATURE):
        return None
    content = file.read_bytes() if isinstance(file, Path) else file.getvalue()
    chunks, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, start)
        chunk = content[start : start + 12 + length]
        if not chunk[4:8].isalpha():  # no chunk: the rest of the file is damaged
            return None
        is_intact = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if chunk[4:5].isupper() or (chunk[4:8] in (b"tRNS", b"eXIf") and is_intact):
            chunks.append(chunk)
        start += len(chunk)
    essential = b"".join(chunks)
    return essential if len(essential) < len(content) else None


_limit_lock, _num_readers, _pillow_limit = threading.Lock(), 0, None


@contextmanager
def without_pillow_limit() -> Iterator[None]:
    """Disables Pillow's own size limit, which warns and raises at sizes that today's cameras have.

    The limit belongs to the process. It is restored when the last thread has read its image.
    """
    global _num_readers, _pillow_limit
    with _limit_lock:
        if _num_readers == 0:
            _pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _num_readers += 1
    try:
        yield
    finally:
        with _limit_lock:
            _num_readers -= 1
            if _num_readers == 0:
                Image.MAX_IMAGE_PIXELS = _pillow_limit


# ----------------------------------------------------------------------------------------------------------------------
# PIL images


def to_upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation of an image. Orientation that cannot be read is ignored.

    The metadata are dropped with it, so that the image is not turned again.

    Raises:
        ValueError: If it has no pixel.
    """
    if 0 in image.size:
        raise ValueError(f"An image has at least one pixel; got {image.width} x {image.height}.")
    image.load()  # TIFF images are turned here, and PNG files may have their EXIF data behind the pixels
    try:
        transposition = TRANSPOSITIONS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow raises many types of exceptions on damaged metadata
        transposition = None
    if transposition is None:
        return image
    upright = image.transpose(transposition)
    upright.info = {key: image.info[key] for key in ("transparency", "icc_profile") if key in image.info}
    return upright


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to 8-bit RGB and applies its EXIF orientation.

    16-bit gray is scaled (Pillow's own conversion clips it to white); transparent pixels become white.

    Raises:
        ValueError: If the image holds floating-point values or integers outside 0..65535, or is of a mode that Pillow does not
            convert.
    """
    image = to_upright(image)
    if image.mode.startswith("I"):
        return _scale_16_bits(np.asarray(image), image.mode).convert("RGB")
    if image.mode == "F":
        raise ValueError("an image has integer levels; this one holds floating-point values. Save it with 8 bits.")
    try:
        if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return image.convert("RGB")
    except Exception as error:  # of several types, for example where the transparency is none
        raise ValueError(
            f"an image of mode {image.mode} cannot be converted to RGB: {error}. Save it as RGB."
        ) from error


def _scale_16_bits(levels: np.ndarray, mode: str) -> Image.Image:
    may_be_8_bits = mode == "I" and 0 < levels.max() <= 255  # 32 bits leave open what white is
    if levels.min() < 0 or levels.max() > 65535 or may_be_8_bits:
        raise ValueError(
            f"a gray image has 8 bits, or 16 with levels from 0 to 65535; got mode {mode} with {levels.min()} to {levels.max()}. Save "
            "it with 8 bits."
        )
    return Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8))


# ----------------------------------------------------------------------------------------------------------------------
# Arrays


def to_pixel_tensor(pixels: np.ndarray | Tensor) -> Tensor:
    """Converts an image array to a tensor of the same shape: uint8 levels 0..255, or float32 as it is.

    Raises:
        ValueError: If it is neither `(height, width)` nor of 1, 3 or 4 channels, first or last, if it is empty, or if its
            type leaves open what white is.
    """
    shape = tuple(pixels.shape)
    has_channels = len(shape) == 3 and (shape[0] in CHANNELS or shape[-1] in CHANNELS)
    if not (len(shape) == 2 or has_channels) or 0 in shape:
        raise ValueError(
            "An image array has the shape (height, width), (height, width, channels) or (channels, height, width) with 1, 3 or 4 "
            f"channels and at least one pixel; got {pixels.dtype} {shape}. Pass several images as a list."
        )
    pixels = to_dense_tensor(pixels, "An image")
    if pixels.is_floating_point():
        return pixels.float()
    return pixels if pixels.dtype == torch.uint8 else _narrow_levels(pixels)


def to_dense_tensor(values: np.ndarray | Tensor, what: str) -> Tensor:
    """Converts an array of numbers of any type, layout in memory and byte order to a tensor, which may share its memory.

    Args:
        values (`np.ndarray` or `torch.Tensor`): The array, or a tensor, which is returned as it is.
        what (`str`): What it is, for the error message.

    Raises:
        ValueError: If it is neither, holds no real numbers, or torch cannot compute with it, as with a sparse tensor.
    """
    if isinstance(values, Tensor):
        is_dense = values.layout == torch.strided and not (
            values.is_quantized or values.is_meta or values.is_complex()
        )
        if is_dense:
            return values
        got = f"{values.dtype}, {values.layout}, on {values.device}"
    elif isinstance(values, np.ndarray) and not isinstance(values, np.ma.MaskedArray):
        if values.dtype.kind in "buif":
            is_wide = values.dtype.kind == "f" and values.dtype.itemsize > 8
            # torch takes neither negative strides, such as those of `image[..., ::-1]`, nor other byte orders
            native = np.float64 if is_wide else values.dtype.newbyteorder("=")
            return torch.from_numpy(np.require(values, native, requirements=["C", "W"]))
        got = values.dtype
    else:
        got = type(values).__name__
    raise ValueError(f"{what} is an array or a dense tensor that holds numbers; got {got}. Convert it.")


def _narrow_levels(pixels: Tensor) -> Tensor:
    """Converts whole numbers of another type to uint8; in 16 bits or one bit, white would be another number than 255."""
    is_ambiguous = pixels.dtype in (torch.bool, torch.uint16)
    low, high = (int(bound) for bound in pixels.to(torch.int64).aminmax())
    if is_ambiguous or low < 0 or high > 255:
        raise ValueError(
            f"An image array of whole numbers holds uint8 levels 0..255; got {pixels.dtype} from {low} to {high}. Scale it, "
            "as in (array / array_maximum * 255).astype(np.uint8), or pass a PIL image."
        )
    return pixels.to(torch.uint8)


def check_layout(pixels: np.ndarray) -> None:
    """Checks that the shape of an image array tells where its channels are.

    Raises:
        ValueError: If both its first and its last dimension may be channels.
    """
    if pixels.ndim == 3 and pixels.shape[0] in CHANNELS and pixels.shape[2] in CHANNELS:
        raise ValueError(
            f"An image array has its channels first or last; got {pixels.dtype} {pixels.shape}, where they may be either. Pass "
            "input_data_format='channels_first' or 'channels_last'."
        )


def check_levels(pixels: Tensor, rescale_factor: float = 1 / 255) -> None:
    """Checks that floating-point pixels are finite and, if they will be divided, levels.

    Args:
        pixels (`torch.Tensor`): Pixels of one image.
        rescale_factor (`float`, *optional*, defaults to 1 / 255): What they will be multiplied by.

    Raises:
        ValueError: If they are not finite or, of levels, lie in [0, 1] or, where white is 255, outside 0..255.
    """
    if not pixels.is_floating_point():
        return
    low, high = (bound.item() for bound in pixels.aminmax())
    if not math.isfinite(high - low):
        raise ValueError(f"A floating-point image holds finite numbers; got {low:g} to {high:g}.")
    is_divided = rescale_factor < 0.1 and 0 < high <= 1
    if is_divided or (rescale_factor == 1 / 255 and not (low >= 0 and high <= 255)):
        raise ValueError(
            f"A floating-point image holds levels 0..255, which are rescaled to [0, 1]; got {low:g} to {high:g}. Pass "
            "do_rescale=False for values in [0, 1], and do_normalize=False too for normalized ones."
        )

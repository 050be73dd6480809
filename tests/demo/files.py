"""Files that users may upload: images of all modes and orientations, and files that are not images.

The images are bright in the upper half and dark in the lower half.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


HEIGHT, WIDTH = 48, 64


def upright() -> np.ndarray:
    pixels = np.full((HEIGHT, WIDTH, 3), 40, dtype=np.uint8)
    pixels[: HEIGHT // 2] = 220
    return pixels


def write_good_files(folder: Path) -> list[Path]:
    folder.mkdir()
    image = Image.fromarray(upright())
    gray = image.convert("L")
    image.save(folder / "rgb.jpg", quality=95)
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    Image.fromarray(upright()[..., 0].astype(np.uint16) * 257).save(folder / "16_bit.png")
    Image.merge("LA", [gray, Image.new("L", gray.size, 128)]).save(folder / "gray_alpha.png")
    image.convert("P").save(folder / "palette.png")
    image.convert("1").save(folder / "bilevel.png")
    image.save(folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", image.size)])
    for ending in ("jpg", "png", "tiff"):
        exif = Image.Exif()
        exif[0x0112] = 6  # the first row is the right side, as phones held upright write it
        image.transpose(Image.Transpose.ROTATE_90).save(folder / f"turned.{ending}", exif=exif)
    return sorted(folder.iterdir())


def write_huge_png(path: Path, width: int, height: int) -> None:
    """Writes a small PNG file whose header states a huge size."""
    Image.new("1", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def write_bad_files(folder: Path) -> dict[Path, str]:
    """Returns `{file: a word of its error message}`."""
    folder.mkdir()
    whole = folder.with_name("whole.jpg")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(whole)
    contents = {
        "zero_bytes.jpg": (b"", "empty"),
        "text.jpg": (b"This is not an image.\n", "not an image"),
        "cut.jpg": (whole.read_bytes()[:900], "truncated"),
        "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
        "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "not an image"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(folder / "depth.tiff")
    write_huge_png(folder / "huge.png", 17_000, 16_000)
    words = {folder / name: word for name, (_, word) in contents.items()}
    return words | {folder / "depth.tiff": "floating-point", folder / "huge.png": "17,000 x 16,000"}

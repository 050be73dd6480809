"""Predict an image with ONNX Runtime: `python run_onnx.py photo.jpg` writes photo.npz, the raw maps of every task.

This file is copied beside an exported graph. It needs numpy, onnxruntime and pillow.
"""

import argparse
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def content_size(size: tuple[int, int], settings: dict) -> tuple[int, int]:
    """Returns the (height, width) to which the image processor resizes an image, without the padding around it."""
    target = tuple(settings["size"][edge] for edge in ("height", "width"))
    if not settings["do_pad"]:
        return target if settings["do_resize"] else size
    pad_size = settings.get("pad_size")
    padded = tuple(pad_size[edge] for edge in ("height", "width")) if pad_size else size
    scale = min(1.0, padded[0] / size[0], padded[1] / size[1])
    size = tuple(max(1, min(round(edge * scale), limit)) for edge, limit in zip(size, padded, strict=True))
    if settings["do_resize"]:  # padded images are stretched, so that all are scaled alike
        size = tuple(max(1, round(edge * to / full)) for edge, full, to in zip(size, padded, target, strict=True))
    return size


def read_rgb(path: Path) -> Image.Image:
    """Reads an image as the image processor does: upright, 16-bit gray scaled to 8 bits, transparent pixels white."""
    # other formats could start another program
    image = Image.open(path, formats=("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"))
    image.load()
    with suppress(Exception):  # of damaged metadata
        ImageOps.exif_transpose(image, in_place=True)
    has_alpha = "A" in image.getbands() or "transparency" in image.info
    if image.mode == "F":
        raise ValueError(f"{path} has floating point pixels; convert it to 8 bits.")
    if image.mode.startswith("I"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif has_alpha:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def read_pixels(path: Path, settings: dict) -> np.ndarray:
    """Returns the image as float32 `(1, 3, height, width)`, resized and normalized as the model needs it."""
    image = read_rgb(path)
    height, width = content_size((image.height, image.width), settings)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32)
    if settings["do_rescale"]:
        pixels = pixels * np.float32(settings["rescale_factor"])
    if settings["do_normalize"]:
        pixels = (pixels - np.float32(settings["image_mean"])) / np.float32(settings["image_std"])
    return pixels.transpose(2, 0, 1)[None]


def center(size: tuple[int, int], padded_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Returns (start, stop) of the rows and of the columns of an image in the middle of a padded one."""
    starts = [(full - edge) // 2 for edge, full in zip(size, padded_size, strict=True)]
    return [(start, start + edge) for start, edge in zip(starts, size, strict=True)]


def pad(pixels: np.ndarray, padded_size: tuple[int, int]) -> np.ndarray:
    """Pads around an image `(1, 3, height, width)` with 0."""
    edges = zip(center(pixels.shape[2:], padded_size), padded_size, strict=True)
    return np.pad(pixels, [(0, 0), (0, 0), *((start, full - stop) for (start, stop), full in edges)])


def crop(logits: np.ndarray, size: tuple[int, int], padded_size: tuple[int, int]) -> np.ndarray:
    """Crops logits `(channels, rows, columns)` of a padded image to the image, whose edges may lie between two of them."""
    if size == padded_size:
        return logits
    edges = list(zip(size, padded_size, logits.shape[1:], strict=True))
    height, width = (-(-edge * number // full) for edge, full, number in edges)  # rounded up
    scales = [number / full for _, full, number in edges]
    (top, left), (bottom, right) = np.multiply(np.transpose(center(size, padded_size)), scales)
    box = (left, top, right, bottom)
    return np.stack([Image.fromarray(one).resize((width, height), Image.Resampling.BILINEAR, box) for one in logits])


def main() -> None:
    """Predicts one image. The largest of several class logits wins; other maps are in the units of the task table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path)
    folder, image_path = Path(__file__).parent, parser.parse_args().image
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    pixels = read_pixels(image_path, settings)
    size, padded_size = pixels.shape[2:], tuple(session.get_inputs()[0].shape[2:])
    if not all(isinstance(edge, int) for edge in padded_size):  # the graph takes any size
        padded_size = size
    logits = session.run(None, {"pixel_values": pad(pixels, padded_size)})
    maps = {
        output.name: crop(values[0], size, padded_size)
        for output, values in zip(session.get_outputs(), logits, strict=True)
    }
    np.savez(image_path.with_suffix(".npz"), **maps)
    print({name: values.shape for name, values in maps.items()})


if __name__ == "__main__":
    main()

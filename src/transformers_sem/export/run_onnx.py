"""Predict an image with ONNX Runtime: `python run_onnx.py photo.jpg` writes photo.npz, the raw maps of every task.

This file is copied beside an exported graph. It needs numpy, onnxruntime and pillow.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def content_size(size: tuple[int, int], settings: dict) -> tuple[int, int]:
    """Returns the (height, width) to which the image processor resizes an image; the graph needs no padding around it."""
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


def read_pixels(path: Path, settings: dict) -> np.ndarray:
    """Returns the image as float32 `(1, 3, height, width)`, resized and normalized as the model needs it."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    height, width = content_size((image.height, image.width), settings)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32) * settings["rescale_factor"]
    pixels = (pixels - np.float32(settings["image_mean"])) / np.float32(settings["image_std"])
    return pixels.transpose(2, 0, 1)[None]


def main() -> None:
    """Predicts one image. The largest of several class logits wins; other maps are in the units of the task table."""
    folder, image_path = Path(__file__).parent, Path(sys.argv[1])
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    logits = session.run(None, {"pixel_values": read_pixels(image_path, settings)})
    maps = {output.name: values[0] for output, values in zip(session.get_outputs(), logits, strict=True)}
    np.savez(image_path.with_suffix(".npz"), **maps)
    print({name: values.shape for name, values in maps.items()})


if __name__ == "__main__":
    main()

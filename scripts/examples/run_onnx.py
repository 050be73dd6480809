"""Predict a photo with ONNX Runtime: python run_onnx.py photo.jpg writes photo.npz, the raw maps of every task."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


folder, photo = Path(__file__).parent, Path(sys.argv[1])
settings = json.loads((folder / "preprocessor_config.json").read_text())
session = onnxruntime.InferenceSession(folder / "model.onnx")
image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
if settings["do_resize"]:
    image = image.resize((settings["size"]["width"], settings["size"]["height"]), Image.Resampling.BILINEAR)
pixels = np.asarray(image, np.float32) * settings["rescale_factor"]
pixels = (pixels - np.float32(settings["image_mean"])) / np.float32(settings["image_std"])
logits = session.run(None, {"pixel_values": pixels.transpose(2, 0, 1)[None]})
maps = {output.name: values[0] for output, values in zip(session.get_outputs(), logits, strict=True)}
# Several classes: the largest wins. What else the numbers are says the task table: metres, unit vectors, log odds.
np.savez(photo.with_suffix(".npz"), **maps)
print({name: values.shape for name, values in maps.items()})

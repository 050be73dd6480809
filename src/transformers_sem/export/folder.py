"""The folder of an exported model: its graphs in several precisions, how they compare, configurations and example."""

import json
import logging
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..image_files import read_image_file
from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from .graph import Graph, largest_difference
from .onnx import FIXED_SIZE, TOLERANCE, export_graph
from .precision import is_convolutional, write_fp16, write_int8


logger = logging.getLogger(__name__)
EXAMPLE = Path(__file__).with_name("run_onnx.py")
FP32, FP16, INT8 = PRECISIONS = ("fp32", "fp16", "int8")
MAX_CALIBRATION_IMAGES = 100  # more change the ranges of the activations little


def possible_precisions(model: SEMForMultiTaskDensePrediction, calibration: Path | None) -> tuple[str, ...]:
    """Returns `PRECISIONS`, without int8 where it needs images and there are none."""
    return PRECISIONS[:2] if calibration is None and is_convolutional(model) else PRECISIONS


def read_calibration_images(folder: Path, image_processor: SEMImageProcessor) -> list[np.ndarray]:
    """Reads the images in a folder, at most `MAX_CALIBRATION_IMAGES`, as float32 `(1, 3, height, width)`.

    Raises:
        ValueError: If there is no image or one cannot be read.
    """
    paths = sorted(path for path in folder.iterdir() if os.path.isfile(path) and not path.name.startswith("."))
    if not paths:
        raise ValueError(f"--calibration must be a folder of images; {str(folder)!r} has no files.")
    images = [read_image_file(path) for path in paths[:MAX_CALIBRATION_IMAGES]]
    return [image_processor(image, return_tensors="np")["pixel_values"].astype(np.float32) for image in images]


def write_graphs(
    model: SEMForMultiTaskDensePrediction,
    folder: Path,
    size: tuple[int, int] | None,
    precisions: Sequence[str],
    images: list[np.ndarray] | None,
    *,
    external_data: bool,
) -> dict[str, Path]:
    """Writes `model.onnx`, `model_fp16.onnx` and `model_int8.onnx`, the names of transformers.js, and returns their paths."""
    paths = {FP32: folder / "model.onnx"}
    paths |= {name: folder / f"model_{name}.onnx" for name in (FP16, INT8) if name in precisions}
    export_graph(model, paths[FP32], size, external_data=external_data)
    if FP16 in paths:
        write_fp16(paths[FP32], paths[FP16])
    if INT8 in paths:
        write_int8(paths[FP32], paths[INT8], images)
    return paths


def compare(
    name: str, model: SEMForMultiTaskDensePrediction, graph: Graph, sizes: list[tuple[int, int]]
) -> dict[str, float]:
    """Returns the largest difference of a graph to the model for each image size, `{"96 x 128": difference}`.

    Raises:
        ValueError: If a float32 graph does not agree with the model, or another one predicts NaN or infinity.
    """
    differences = {}
    for height, width in sizes:
        difference = largest_difference(model, graph, (height, width))
        where = f"on {height} x {width} pixels the difference of {name} is {difference:.2g}. Nothing was written."
        if name == FP32 and not difference <= TOLERANCE:
            raise ValueError(f"ONNX Runtime must agree with the model to {TOLERANCE:g}; {where} {FIXED_SIZE}.")
        if not math.isfinite(difference):
            raise ValueError(f"A graph must predict finite logits; {where} Leave {name} out of --precisions.")
        differences[f"{height} x {width}"] = difference
    return differences


def save_configurations(
    model: SEMForMultiTaskDensePrediction, image_processor: SEMImageProcessor, folder: Path, *, is_web: bool
) -> None:
    """Saves the configurations of model and image processor, for a page with the default precision of transformers.js."""
    image_processor.save_pretrained(folder)
    model.config.save_pretrained(folder)
    if is_web:  # its own default in a browser is a file of another name
        path = folder / "config.json"
        config = {**json.loads(path.read_text()), "transformers.js_config": {"dtype": FP32}}
        path.write_text(json.dumps(config, indent=2) + "\n")


def set_size(image_processor: SEMImageProcessor, size: dict[str, int]) -> None:
    """Sets the one size of all images: a processor that pads without resizing pads to it, any other one resizes to it."""
    if image_processor.do_pad and not image_processor.do_resize:
        padded = image_processor.pad_size
        if padded and (size["height"] < padded["height"] or size["width"] < padded["width"]):
            logger.warning(
                "The model was made for images of up to %d x %d pixels; larger ones than --size %d %d are shrunk, so that objects "
                "look farther away than they are.",
                *(padded[edge] for edge in ("height", "width")),
                *size.values(),
            )
        image_processor.pad_size = size
    else:
        image_processor.do_resize = True
    image_processor.size = size


def export_folder(
    model: SEMForMultiTaskDensePrediction,
    image_processor: SEMImageProcessor,
    folder: Path,
    size: tuple[int, int] | None = None,
    *,
    precisions: Sequence[str] = (),
    calibration: Path | None = None,
    is_web: bool = False,
) -> dict[str, dict[str, Any]]:
    """Writes graphs, configurations and example to a folder, and compares the graphs with the model.

    Args:
        model ([`SEMForMultiTaskDensePrediction`]): In evaluation mode.
        image_processor ([`SEMImageProcessor`]): Of the model; with `size` it is set to that size, see [`set_size`].
        folder (`Path`): Existing, empty folder.
        size (`tuple[int, int]`, *optional*): Height and width of all images; `None` leaves them free.
        precisions (`Sequence[str]`, *optional*): Of the graphs beside the fp32 one, from `PRECISIONS`.
        calibration (`Path`, *optional*): Folder of images for a static int8 graph, see [`~precision.write_int8`].
        is_web (`bool`, *optional*, defaults to `False`): Whether to write the layout of transformers.js: the graphs in the
            folder `onnx`, each in one file, and no example in Python.

    Returns:
        `dict[str, dict]`: For each precision the `file`, its `megabytes`, and `largest_difference` to the model for each image
        size that was compared.

    Raises:
        ValueError: If the encoder cannot be exported, int8 needs images and there are none, or ONNX Runtime does not agree with
            the model.
    """
    if INT8 in precisions and INT8 not in possible_precisions(model, calibration):
        raise ValueError(
            "int8 for an encoder of convolutions needs images for the ranges of its activations; got none. Pass "
            "--calibration FOLDER with images like those it will see."
        )
    if size is not None and min(size) < model.sem.min_size:
        raise ValueError(
            f"An image must have at least the size of one patch, {model.sem.min_size} x {model.sem.min_size} pixels; got "
            f"{size[0]} x {size[1]}. Choose a larger --size."
        )
    if size is not None:
        set_size(image_processor, {"height": size[0], "width": size[1]})
    images = None if calibration is None else read_calibration_images(calibration, image_processor)
    graphs_folder = folder / "onnx" if is_web else folder
    graphs_folder.mkdir(exist_ok=True)
    paths = write_graphs(model, graphs_folder, size, precisions, images, external_data=not is_web)
    save_configurations(model, image_processor, folder, is_web=is_web)
    if not is_web:
        shutil.copy(EXAMPLE, folder)
    height, width = image_processor.size["height"], image_processor.size["width"]
    sizes = [size] if size else [(height, width), (height // 2 + 1, width // 2 + 3)]
    return {
        name: {
            "file": path.relative_to(folder).as_posix(),
            "megabytes": round(sum(part.stat().st_size for part in graphs_folder.glob(f"{path.name}*")) / 1e6, 2),
            "largest_difference": compare(name, model, Graph(path, model.config), sizes),
        }
        for name, path in paths.items()
    }

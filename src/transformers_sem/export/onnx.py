"""Export of a model to an ONNX graph, checked against the model with ONNX Runtime. Needs the extra `onnx`."""

import gc
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnx_ir.passes import Sequential
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    CommonSubexpressionEliminationPass,
    InlinePass,
    RemoveUnusedFunctionsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)
from onnxscript.optimizer import fold_constants_ir
from torch import Tensor, nn
from torch.onnx import OnnxExporterError, ONNXProgram

from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from .functions import replace_by_calls


TOLERANCE = 1e-3
FIXED_SIZE = "Pass --size HEIGHT WIDTH for a graph of one image size"
EXAMPLE = Path(__file__).with_name("run_onnx.py")


class Logits(nn.Module):
    """Returns the logits of a model as a tuple, in the order of its tasks."""

    def __init__(self, model: SEMForMultiTaskDensePrediction):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Maps images `(B, 3, H, W)` to logits `(B, C_t, H / 4, W / 4)` of each task."""
        return tuple(self.model(pixel_values).logits.values())


def check_encoder(model: SEMForMultiTaskDensePrediction) -> None:
    """Rejects encoders that torch.export cannot trace for a free image size in reasonable time.

    Raises:
        ValueError: If the encoder partitions the image into windows.
    """
    windowed = [type(part).__name__ for part in model.sem.backbone.modules() if "Swin" in type(part).__name__]
    if windowed:
        raise ValueError(
            f"A graph for any image size cannot hold windows whose layout depends on the size; this encoder is "
            f"{windowed[0]}. {FIXED_SIZE}, or choose an encoder such as ConvNeXt or ViT."
        )


@contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Leaves cyclic garbage in memory: collections would visit the traced graph, which is alive, again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def simplify(program: ONNXProgram) -> None:
    """Folds constants, computes what all tasks share once, and drops the records of where each node was traced.

    `optimize=True` of torch.onnx.export also matches rewrite rules, which takes minutes here and finds next to nothing.
    """
    InlinePass()(program.model)
    fold_constants_ir(program.model, onnx_shape_inference=False)
    Sequential(
        RemoveUnusedNodesPass(),
        RemoveUnusedFunctionsPass(),
        RemoveUnusedOpsetsPass(),
        CommonSubexpressionEliminationPass(),
        ClearMetadataAndDocStringPass(),
    )(program.model)


@torch.no_grad()
def trace(model: SEMForMultiTaskDensePrediction, size: tuple[int, int] | None) -> ONNXProgram:
    """Traces the model, whose parts it replaces; the batch size is free, and without `size` height and width too.

    Raises:
        OnnxExporterError: If the encoder cannot be traced.
    """
    divisor = model.sem.size_divisor
    functions = replace_by_calls(model, size and tuple(-(-edge // divisor) for edge in size))
    images = torch.zeros(2, model.config.backbone_config.num_channels, *(size or (2 * divisor, 3 * divisor)))
    free = dict.fromkeys((0,) if size else (0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.onnx.export(
        Logits(model).eval(),
        (images,),
        input_names=["pixel_values"],
        output_names=model.config.tasks,
        dynamic_shapes=(free,),
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    program.model.functions.update({function.identifier(): function for function in functions})
    return program


def export_graph(model: SEMForMultiTaskDensePrediction, path: Path, size: tuple[int, int] | None) -> None:
    """Writes the graph. Its batch size is free, and without `size` its height and width too.

    Raises:
        ValueError: If the encoder cannot be exported in this way.
    """
    if size is None:
        check_encoder(model)
    # eager: torch.export cannot prove that fused attention has the strides it needs for every batch size
    model.set_attn_implementation("eager")
    try:
        with paused_garbage_collection():
            program = trace(deepcopy(model), size)
            simplify(program)
    except OnnxExporterError as error:
        raise ValueError(
            "torch.export must be able to trace the encoder; for any image size ConvNeXt, ViT and DINOv2 work. "
            f"{FIXED_SIZE}. Its message: {str(error.__cause__ or error).splitlines()[0]}"
        ) from error
    program.save(path, external_data=True)


@torch.no_grad()
def largest_difference(model: SEMForMultiTaskDensePrediction, path: Path, size: tuple[int, int]) -> float:
    """Returns the largest absolute difference between the logits of ONNX Runtime and of the model, on an image of noise.

    Raises:
        ValueError: If ONNX Runtime cannot run the graph on an image of that size.
    """
    images = torch.randn(1, model.config.backbone_config.num_channels, *size)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    try:
        exported = session.run(model.config.tasks, {"pixel_values": images.numpy()})
    except Exception as error:  # the classes of its errors are not public
        raise ValueError(
            f"ONNX Runtime cannot run the graph on {size[0]} x {size[1]} pixels; nothing was written. {FIXED_SIZE}. "
            f"Its message: {error}"
        ) from error
    logits = [values.numpy() for values in model(images).logits.values()]
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(logits, exported, strict=True))


def export_folder(
    model: SEMForMultiTaskDensePrediction,
    image_processor: SEMImageProcessor,
    folder: Path,
    size: tuple[int, int] | None = None,
) -> dict[tuple[int, int], float]:
    """Writes graph, configurations and example to a folder, and compares the graph with the model.

    Args:
        model ([`SEMForMultiTaskDensePrediction`]): In evaluation mode.
        image_processor ([`SEMImageProcessor`]): Of the model; with `size` it is set to resize to that size.
        folder (`Path`): Existing, empty folder.
        size (`tuple[int, int]`, *optional*): Height and width of all images; `None` leaves them free.

    Returns:
        `dict[tuple[int, int], float]`: the largest difference to the model for each image size that was compared.

    Raises:
        ValueError: If the encoder cannot be exported, or ONNX Runtime does not agree with the model.
    """
    path = folder / "model.onnx"
    export_graph(model, path, size)
    if size is not None:  # the example then resizes every image
        image_processor.do_resize, image_processor.do_pad = True, False
        image_processor.size = {"height": size[0], "width": size[1]}
    image_processor.save_pretrained(folder)
    model.config.save_pretrained(folder)
    shutil.copy(EXAMPLE, folder)
    height, width = image_processor.size["height"], image_processor.size["width"]
    sizes = [size] if size else [(height, width), (height // 2 + 1, width // 2 + 3)]
    differences = {compared: largest_difference(model, path, compared) for compared in sizes}
    for compared, difference in differences.items():
        if not difference <= TOLERANCE:
            raise ValueError(
                f"ONNX Runtime must agree with the model to {TOLERANCE:g}; on {compared[0]} x {compared[1]} pixels the "
                f"difference is {difference:.2g}. Nothing was written. {FIXED_SIZE}."
            )
    return differences

"""Export of a model to an ONNX graph, checked against the model with ONNX Runtime. Needs the extra `onnx`."""

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import onnx_ir as ir
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
from torch.onnx import OnnxExporterError, ONNXProgram

from ..modeling_sem import SEMForMultiTaskDensePrediction, SEMHierarchyAdaptiveAttention, SEMInterTaskModule
from .functions import split_into_functions


TOLERANCE = 1e-3
FIXED_SIZE = "Pass --size HEIGHT WIDTH for a graph of one image size"
FLOAT32_NODE = "float32_"  # how the names of nodes start that stay float32 in smaller graphs
# Sampling points and EM iterations, which the model computes in float32 in any precision, and the last layer of the heads
FLOAT32_MODULES = {SEMHierarchyAdaptiveAttention.__name__, SEMInterTaskModule.__name__, "classifier"}


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


def mark_float32(model: ir.Model) -> None:
    """Names the nodes that stay float32 in smaller graphs, by the modules that they were traced in."""
    for index, node in enumerate(model.graph.all_nodes()):
        records = (node.metadata_props.get(f"pkg.torch.onnx.{key}", "") for key in ("class_hierarchy", "name_scopes"))
        words = re.findall(r"\w+", " ".join(records))
        node.name = f"{'' if FLOAT32_MODULES.isdisjoint(words) else FLOAT32_NODE}{node.op_type}_{index}"


def clear_records(model: ir.Model) -> None:
    """Drops the records of where nodes and values were traced, which are most of a file without its weights."""
    ClearMetadataAndDocStringPass()(model)  # of nodes alone
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [value for node in model.graph.all_nodes() for value in node.outputs]
    for value in values:
        value.metadata_props.clear()


def simplify(program: ONNXProgram) -> None:
    """Folds constants, computes what all tasks share once, and drops the records of where each node was traced.

    `optimize=True` of torch.onnx.export also matches rewrite rules, which takes minutes here and finds next to nothing.
    """
    InlinePass()(program.model)
    mark_float32(program.model)  # while the records are there
    fold_constants_ir(program.model, onnx_shape_inference=False)
    Sequential(
        RemoveUnusedNodesPass(),
        RemoveUnusedFunctionsPass(),
        RemoveUnusedOpsetsPass(),
        CommonSubexpressionEliminationPass(),
    )(program.model)
    clear_records(program.model)


@torch.no_grad()
def trace(model: SEMForMultiTaskDensePrediction, size: tuple[int, int] | None) -> ONNXProgram:
    """Traces the model, whose parts it replaces; the batch size is free, and without `size` height and width too.

    Raises:
        OnnxExporterError: If the encoder cannot be traced.
    """
    divisor = model.sem.size_divisor
    logits, functions = split_into_functions(model, size and tuple(-(-edge // divisor) for edge in size))
    images = torch.zeros(2, model.config.backbone_config.num_channels, *(size or (2 * divisor, 3 * divisor)))
    free = dict.fromkeys((0,) if size else (0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.onnx.export(
        logits.eval(),
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


def export_graph(
    model: SEMForMultiTaskDensePrediction, path: Path, size: tuple[int, int] | None, *, external_data: bool = True
) -> None:
    """Writes the graph. Its batch size is free, and without `size` its height and width too.

    Args:
        model ([`SEMForMultiTaskDensePrediction`]): In evaluation mode.
        path (`Path`): File to write.
        size (`tuple[int, int]`, *optional*): Height and width of all images.
        external_data (`bool`, *optional*, defaults to `True`): Whether the weights go to a second file, as those of more than
            2 GB must.

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
    program.save(path, external_data=external_data)

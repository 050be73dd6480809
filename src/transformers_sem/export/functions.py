"""Parts of a model as ONNX functions: the modules of all tasks differ in their weights only, so one trace serves them all.

Tracing for every image size is slow, and slower the more the sizes of the maps depend on each other. A function is traced with
maps of a whole number of cells, where a cell is `SEMModel.size_divisor` pixels; a call of it then has sizes that are simple.
"""

import warnings
from dataclasses import dataclass

import onnx_ir as ir
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.export import Dim
from torch.func import functional_call
from torch.onnx.ops import symbolic
from transformers.modeling_outputs import BackboneOutput

from ..modeling_sem import SEMForMultiTaskDensePrediction, SEMModel


DOMAIN = "transformers_sem"


@dataclass(frozen=True)
class MapSize:
    """Channels of a map, and its height and width in an image of one cell."""

    channels: int
    edge: int


@dataclass(frozen=True)
class Signature:
    """Name of an ONNX function and the maps that it takes and returns; several are returned in one row per image."""

    name: str
    inputs: list[MapSize]
    outputs: list[MapSize]


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters and buffers of a module."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


class Call(nn.Module):
    """Stands for a module in the trace: one node that calls an ONNX function on the module's inputs and weights."""

    def __init__(self, module: nn.Module, signature: Signature):
        super().__init__()
        self.module = module
        self.signature = signature

    def forward(self, *feature_maps: Tensor) -> Tensor:
        """Maps `(B, C, H, W)` -> the map that the module returns."""
        return self.call(feature_maps)[0]

    def call(self, feature_maps: tuple[Tensor, ...]) -> list[Tensor]:
        """Maps `(B, C, H, W)` -> all maps that the module returns."""
        batch_size, _, *size = feature_maps[0].shape
        rows, columns = (edge // self.signature.inputs[0].edge for edge in size)
        shapes = [(map_.channels, map_.edge * rows, map_.edge * columns) for map_ in self.signature.outputs]
        lengths = [map_.channels * map_.edge**2 * rows * columns for map_ in self.signature.outputs]
        packed = symbolic(
            f"{DOMAIN}::{self.signature.name}",
            [*feature_maps, *weights_of(self.module).values()],
            dtype=feature_maps[0].dtype,
            shape=(batch_size, sum(lengths)) if len(shapes) > 1 else (batch_size, *shapes[0]),
            version=1,
        )
        if len(shapes) == 1:
            return [packed]
        return [part.unflatten(1, shape) for part, shape in zip(packed.split(lengths, dim=1), shapes, strict=True)]


class EncoderCall(Call):
    """A call in the place of the backbone of [`SEMModel`]."""

    def forward_with_filtered_kwargs(self, pixel_values: Tensor, **kwargs) -> BackboneOutput:
        """Encodes the images; the graph holds no other output of the backbone."""
        return BackboneOutput(feature_maps=tuple(self.call((pixel_values,))))


class WholeConv2d(Conv2dSame):
    """TensorFlow's convolution on maps that the stride divides, for which its padding does not depend on their size."""

    def forward(self, feature_map: Tensor) -> Tensor:
        """`(B, C_in, H, W)` -> `(B, C_out, H / stride, W / stride)`."""
        padding = []
        for kernel, stride, dilation in zip(
            self.kernel_size[::-1], self.stride[::-1], self.dilation[::-1], strict=True
        ):
            total = max(dilation * (kernel - 1) + 1 - stride, 0)
            padding += [total // 2, total - total // 2]
        return self._conv_forward(F.pad(feature_map, padding), self.weight, self.bias)


class Encoder(nn.Module):
    """Backbone and reassembly, whose maps are a pyramid of whole cells."""

    def __init__(self, sem: SEMModel):
        super().__init__()
        self.backbone, self.reassembly = sem.backbone, sem.reassembly
        for module in self.backbone.modules():
            if type(module) is Conv2dSame:
                module.__class__ = WholeConv2d

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` of whole cells -> the maps of all stages in one row per image."""
        feature_maps = self.reassembly(self.backbone(pixel_values).feature_maps)
        return feature_maps[0] if len(feature_maps) == 1 else torch.cat([x.flatten(1) for x in feature_maps], dim=1)


class Body(nn.Module):
    """A module whose weights are inputs, in the order of `weights_of`."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.names = list(weights_of(module))

    def forward(self, feature_maps: list[Tensor], weights: list[Tensor]) -> Tensor:
        """The output of the module with these weights."""
        return functional_call(self.module, dict(zip(self.names, weights, strict=True)), tuple(feature_maps))


def trace_function(module: nn.Module, signature: Signature, cells: tuple[int, int] | None) -> ir.Function:
    """Traces a module as an ONNX function of its input maps and its weights, for any batch size.

    Args:
        module (`nn.Module`): One of those that share the function.
        signature (`Signature`): Of the function.
        cells (`tuple[int, int]`, *optional*): Rows and columns of cells of the image; `None` leaves them free.
    """
    batch, free_rows, free_columns = Dim("batch"), Dim("rows"), Dim("columns")
    rows, columns = cells or (2, 3)
    feature_maps = [torch.zeros(2, size.channels, size.edge * rows, size.edge * columns) for size in signature.inputs]
    free = [
        {0: batch} if cells else {0: batch, 2: size.edge * free_rows, 3: size.edge * free_columns}
        for size in signature.inputs
    ]
    weights = list(weights_of(module).values())
    with warnings.catch_warnings():  # it warns that it keeps its own names of the free sizes
        warnings.filterwarnings("ignore", message="# ONNX model has different number of inputs")
        program = torch.onnx.export(
            Body(module).eval(),
            (feature_maps, weights),
            dynamic_shapes=(free, [None] * len(weights)),
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    return ir.Function(DOMAIN, signature.name, graph=program.model.graph, attributes=[])


def share_function(modules: nn.ModuleDict, signature: Signature, cells: tuple[int, int] | None) -> ir.Function:
    """Replaces the modules of the tasks, which differ in their weights only, by calls of one function."""
    function = trace_function(next(iter(modules.values())), signature, cells)
    for task, module in modules.items():
        modules[task] = Call(module, signature)
    return function


def replace_by_calls(model: SEMForMultiTaskDensePrediction, cells: tuple[int, int] | None) -> list[ir.Function]:
    """Replaces encoder, intra-task modules and decoder blocks of the model by calls, and returns the functions."""
    sem, config = model.sem, model.config
    edges = [int(sem.size_divisor / stride) for stride in sem.strides]  # from shallow to deep
    decodes = sem.decoder is not None
    widths = (
        [stage.lateral.in_channels for stage in reversed(sem.decoder.stages)] if decodes else sem.backbone.channels
    )
    maps = [MapSize(width, edge) for width, edge in zip(widths, edges, strict=True)]
    encoder = Encoder(sem)
    signature = Signature("encoder", [MapSize(config.backbone_config.num_channels, sem.size_divisor)], maps)
    functions = [trace_function(encoder, signature, cells)]
    sem.backbone, sem.reassembly = EncoderCall(encoder, signature), nn.Identity()
    if not decodes:
        return functions
    task_map = MapSize(config.hidden_size, edges[-1])
    if config.use_intra_task:
        seen = [MapSize(config.hidden_size, edge) for edge in edges[-config.num_intra_task_stages :]]
        signature = Signature("intra_task", [task_map, *seen], [task_map])
        functions.append(share_function(sem.intra_task.task_modules, signature, cells))
    for index, (stage, edge) in enumerate(zip(sem.decoder.stages, reversed(edges), strict=True)):
        result = MapSize(config.decoder_hidden_sizes[index], edge)
        signature = Signature(f"decoder_block_{index}", [task_map, result], [result])
        functions.append(share_function(stage.blocks, signature, cells))
        task_map = result
    return functions

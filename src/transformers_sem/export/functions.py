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
from torch.onnx.ops import symbolic_multi_out

from ..layers import Padding
from ..modeling_sem import SEMForMultiTaskDensePrediction, SEMModel


DOMAIN = "transformers_sem"


@dataclass(frozen=True)
class MapSize:
    """Channels of a map, and its height and width in an image of one cell."""

    channels: int
    edge: int


@dataclass(frozen=True)
class Signature:
    """Name of an ONNX function and the maps that it takes and returns."""

    name: str
    inputs: list[MapSize]
    outputs: list[MapSize]


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters and buffers of a module."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


class Call(nn.Module):
    """Stands for a module in the trace: one node that calls an ONNX function on the module's inputs and weights.

    Args:
        module (`nn.Module`): The module.
        signature (`Signature`): Of the function.
        returns_tuple (`bool`, *optional*, defaults to `False`): Whether the module returns a tuple of maps, which may have
            one element, and not a map.
    """

    def __init__(self, module: nn.Module, signature: Signature, *, returns_tuple: bool = False):
        super().__init__()
        self.module = module
        self.signature = signature
        self.returns_tuple = returns_tuple

    def forward(self, *feature_maps: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Maps `(B, C, H, W)` -> what the module returns."""
        batch_size, _, *size = feature_maps[0].shape
        rows, columns = (edge // self.signature.inputs[0].edge for edge in size)
        outputs = symbolic_multi_out(
            f"{DOMAIN}::{self.signature.name}",
            [*feature_maps, *weights_of(self.module).values()],
            dtypes=[feature_maps[0].dtype] * len(self.signature.outputs),
            shapes=[
                (batch_size, map_.channels, map_.edge * rows, map_.edge * columns) for map_ in self.signature.outputs
            ],
            version=1,
        )
        return tuple(outputs) if self.returns_tuple else outputs[0]


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

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Images `(B, 3, H, W)` of whole cells -> the maps of all stages."""
        return tuple(self.reassembly(self.backbone(pixel_values).feature_maps))


class Network(nn.Module):
    """The model between padding and cropping, where every map has a whole number of cells."""

    def __init__(self, sem: SEMModel):
        super().__init__()
        self.sem = sem

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Images `(B, 3, H, W)` of whole cells -> the features of each task, `(B, C, H / 4, W / 4)`."""
        task_maps, _, _ = self.sem.decode(self.sem.backbone(pixel_values))
        return tuple(task_maps.values())


class Body(nn.Module):
    """A module whose input maps are one argument."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, feature_maps: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
        """The output of the module."""
        return self.module(*feature_maps)


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
    body = Body(module).eval()
    with warnings.catch_warnings():  # it warns that it keeps one name for sizes that are equal
        warnings.filterwarnings("ignore", message="# The axis name")
        program = torch.onnx.export(
            body, (feature_maps,), dynamic_shapes=(free,), dynamo=True, optimize=False, verbose=False
        )
    return as_function(program.model.graph, signature.name, list(weights_of(body)))


def as_function(graph: ir.Graph, name: str, weights: list[str]) -> ir.Function:
    """Turns the weights of a graph into inputs, in the order of `weights`, of which it may not use some."""
    for weight in weights:
        value = graph.initializers.pop(weight, ir.Value(name=weight))
        value.const_value = None
        graph.inputs.append(value)
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])


def share_function(modules: nn.Module, signatures: dict[str, Signature], cells: tuple[int, int] | None) -> ir.Function:
    """Replaces the modules of the tasks, which differ in their weights only, by calls of one function."""
    function = trace_function(modules.get_submodule(next(iter(signatures))), next(iter(signatures.values())), cells)
    for task, signature in signatures.items():
        modules.add_module(task, Call(modules.get_submodule(task), signature))
    return function


class Logits(nn.Module):
    """The model as calls of functions; its logits are a tuple, in the order of its tasks."""

    def __init__(self, model: SEMForMultiTaskDensePrediction, network: Call):
        super().__init__()
        self.network, self.heads = network, model.heads
        self.tasks = model.config.tasks
        self.size_divisor, self.stride = model.sem.size_divisor, model.sem.output_stride

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Images `(B, 3, H, W)` -> logits `(B, C_t, H / 4, W / 4)` of each task."""
        padding = Padding(tuple(pixel_values.shape[-2:]), self.size_divisor)
        task_maps = self.network(padding.pad(pixel_values))
        task_maps = padding.crop(dict(zip(self.tasks, task_maps, strict=True)), self.stride)
        return tuple(self.heads(task_maps).values())


def encoder_widths(sem: SEMModel) -> list[int]:
    """Returns the channels of the maps that the decoder reads, or else the heads, from shallow to deep."""
    if sem.decoder is None:
        return sem.backbone.channels
    return [stage.lateral.in_channels for stage in reversed(sem.decoder.stages)]


def split_decoder(sem: SEMModel, edges: list[int], cells: tuple[int, int] | None) -> list[ir.Function]:
    """Replaces the intra-task modules and the decoder blocks by calls, and returns the functions."""
    config = sem.config
    task_map, functions = MapSize(config.hidden_size, edges[-1]), []
    if config.use_intra_task:
        seen = [MapSize(config.hidden_size, edge) for edge in edges[-config.num_intra_task_stages :]]
        signature = Signature("intra_task", [task_map, *seen], [task_map])
        functions.append(share_function(sem.intra_task.task_modules, dict.fromkeys(config.tasks, signature), cells))
    for index, (stage, edge) in enumerate(zip(sem.decoder.stages, reversed(edges), strict=True)):
        result = MapSize(config.decoder_hidden_sizes[index], edge)
        signature = Signature(f"decoder_block_{index}", [task_map, result], [result])
        functions.append(share_function(stage.blocks, dict.fromkeys(config.tasks, signature), cells))
        task_map = result
    return functions


def split_into_functions(
    model: SEMForMultiTaskDensePrediction, cells: tuple[int, int] | None
) -> tuple[Logits, list[ir.Function]]:
    """Takes a model apart, whose modules it replaces.

    Args:
        model ([`SEMForMultiTaskDensePrediction`]): In evaluation mode.
        cells (`tuple[int, int]`, *optional*): Rows and columns of cells of the image; `None` leaves them free.

    Returns:
        The model as calls of functions, and the functions.
    """
    sem, config = model.sem, model.config
    edges = [int(sem.size_divisor / stride) for stride in sem.strides]  # from shallow to deep
    image = MapSize(config.backbone_config.num_channels, sem.size_divisor)
    signature = Signature(
        "encoder", [image], [MapSize(*size) for size in zip(encoder_widths(sem), edges, strict=True)]
    )
    encoder = Encoder(sem)
    functions = [trace_function(encoder, signature, cells)]
    sem.backbone, sem.reassembly = Call(encoder, signature, returns_tuple=True), nn.Identity()
    if sem.decoder is not None:
        functions += split_decoder(sem, edges, cells)
    task_map = MapSize(sem.output_channels, int(sem.size_divisor / sem.output_stride))
    signature = Signature("network", [image], [task_map] * len(config.tasks))
    network = Call(Network(sem), signature, returns_tuple=True)
    functions.append(trace_function(network.module, network.signature, cells))
    feature = MapSize(sem.output_channels, 1)
    heads = {task: Signature("head", [feature], [MapSize(width, 1)]) for task, width in config.task_num_labels.items()}
    functions.append(share_function(model.heads, heads, None))
    return Logits(model, network), functions

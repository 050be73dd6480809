"""Layers and helpers that the parts of SEM share. Letters in shapes as in `modeling_sem.py`."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.utils.output_capturing import CompileableContextVar


def to_tokens(feature_map: Tensor) -> Tensor:
    """`(..., C, H, W)` -> `(..., H * W, C)`."""
    return feature_map.flatten(-2).transpose(-1, -2)


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """`(..., H * W, C)` -> `(..., C, H, W)`."""
    return tokens.transpose(-1, -2).unflatten(-1, size)


@dataclass(frozen=True)
class Padding:
    """Padding of an image at the right and bottom to whole cells, and the way back from the padded image to the image.

    Args:
        size (`tuple[int, int]`): Height and width of the image.
        divisor (`int`): The height and width of the padded image are multiples of it.
    """

    size: tuple[int, int]
    divisor: int

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width of the padded image."""
        height, width = ((edge + self.divisor - 1) // self.divisor * self.divisor for edge in self.size)
        return height, width

    def pad(self, pixel_values: Tensor) -> Tensor:
        """Pads images `(B, C, H, W)` with zeros."""
        (height, width), (padded_height, padded_width) = self.size, self.padded_size
        return F.pad(pixel_values, (0, padded_width - width, 0, padded_height - height))

    def crop(self, feature_maps: dict[str, Tensor], stride: Fraction) -> dict[str, Tensor]:
        """Crops maps `(B, C, h, w)` of the padded image to the image, whose last cells may be cut.

        If the image is not a whole number of cells, the maps are resampled to narrower cells that end at the edges of the
        image.

        Args:
            feature_maps (`dict[str, torch.Tensor]`): The map of each task, all of one height and width.
            stride (`Fraction`): Pixels of the image per cell; a constant, so that it can be exported for every size.
        """
        # Rounded up; ONNX rounds quotients of negative numbers the other way
        cells = [(edge * stride.denominator + stride.numerator - 1) // stride.numerator for edge in self.size]
        # An exported graph holds for every size, so it always resamples. Whole numbers: compiled sizes know no fractions
        if not torch.compiler.is_exporting() and all(
            edge * stride.denominator == count * stride.numerator for edge, count in zip(self.size, cells, strict=True)
        ):
            return {task: feature_map[..., : cells[0], : cells[1]] for task, feature_map in feature_maps.items()}
        reference = next(iter(feature_maps.values()))
        rows, columns = (
            self._cell_centers(edge * stride.denominator, count * stride.numerator, count, full, reference.device)
            for edge, count, full in zip(self.size, cells, reference.shape[-2:], strict=True)
        )
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flip(-1)  # grid_sample wants (x, y)
        grid = grid.expand(reference.shape[0], -1, -1, -1)
        return {task: self._resample(feature_map, grid) for task, feature_map in feature_maps.items()}

    @staticmethod
    def _cell_centers(edge: int, padded_edge: int, count: int, full: int, device: torch.device) -> Tensor:
        """Returns the centers of `count` cells that end at the edge of the image, in [-1, 1] over the cells of the map."""
        cells = (torch.arange(count, device=device) + 0.5) * (edge / padded_edge) - 0.5
        # The first lies before the center of the first cell of the map, and MPS has no border padding; none lies beyond
        # the last. The tiny number is for a map of one cell.
        return cells.clamp(min=0) * (2 / (full - 1 + 1e-6)) - 1

    @staticmethod
    def _resample(feature_map: Tensor, grid: Tensor) -> Tensor:
        cropped = F.grid_sample(feature_map.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=True)
        return cropped.to(feature_map.dtype)

    def to_image(self, points: Tensor) -> Tensor:
        """Converts points `(..., 2)` as (y, x) from [-1, 1] over the padded image to [-1, 1] over the image."""
        scales = [padded / edge for padded, edge in zip(self.padded_size, self.size, strict=True)]
        return (points + 1) * points.new_tensor(scales) - 1


def resize(feature_map: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolates a map `(B, C, h, w)` bilinearly to `size`; returns a map of that size unchanged."""
    if feature_map.shape[-2:] == size:
        return feature_map
    return F.interpolate(feature_map, size=size, mode="bilinear", align_corners=False)


# The states of the forward pass in progress; `None` unless they are asked for
_recorded_states = CompileableContextVar("sem_states")


@contextmanager
def record_states(enabled: bool) -> Iterator[dict[str, list] | None]:
    """Collects what `record` is given within the context, if `enabled`: `{name: [value of each call]}`."""
    states = defaultdict(list) if enabled else None
    token = _recorded_states.set(states)
    try:
        yield states
    finally:
        _recorded_states.reset(token)


def record(name: str, value) -> None:
    """Adds an intermediate value to the states that `output_sem_states=True` returns; does nothing otherwise."""
    states = _recorded_states.get()
    if states is not None:
        states[name].append(value)


class SEMPatchConv2d(nn.Conv2d):
    """Convolution of patches that do not overlap, such as 1x1; on a CPU a linear layer on channels-last maps.

    torch's own is slower there, in training several times. It is a subclass with the constructor of `nn.Conv2d`, because
    PEFT builds its adapters of the same class.
    """

    def forward(self, feature_map: Tensor) -> Tensor:
        """`(B, C_in, H, W)` -> `(B, C_out, H / r, W / r)` for a kernel and stride of r."""
        rows, columns = self.kernel_size
        height, width = feature_map.shape[-2:]
        # An exported graph cannot know whether the patches are whole
        if feature_map.device.type != "cpu" or torch.compiler.is_exporting() or height % rows or width % columns:
            return super().forward(feature_map)
        if self.groups > 1:
            return self._convolve_channels(feature_map)
        patches = feature_map.permute(0, 2, 3, 1)
        if self.kernel_size != (1, 1):
            patches = patches.unflatten(2, (-1, columns)).unflatten(1, (-1, rows)).transpose(2, 3).flatten(3)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(patches, weight, self.bias).permute(0, 3, 1, 2)

    def _convolve_channels(self, feature_map: Tensor) -> Tensor:
        if self.kernel_size != (1, 1):
            return super().forward(feature_map)
        return torch.addcmul(self.bias.view(-1, 1, 1), feature_map, self.weight.view(-1, 1, 1))


class SEMMLP(nn.Module):
    """Linear layer, GELU, linear layer."""

    def __init__(self, hidden_size: int, mlp_ratio: float):
        super().__init__()
        intermediate_size = int(hidden_size * mlp_ratio)
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation = nn.GELU()
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, N, C)` -> `(B, N, C)`."""
        return self.fc2(self.activation(self.fc1(tokens)))


class SEMConvBlock(nn.Module):
    """3x3 convolution, LayerNorm over the channels, GELU.

    LayerNorm, unlike BatchNorm, depends neither on the batch size nor on the number of ranks.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = LayerNorm2d(out_channels)
        self.activation = nn.GELU()

    def forward(self, feature_map: Tensor) -> Tensor:
        """`(B, C_in, H, W)` -> `(B, C_out, H, W)`."""
        return self.activation(self.norm(self.conv(feature_map)))


# What torch, timm and transformers draw initial weights with
INITIALIZERS = {
    nn.init.kaiming_uniform_,
    nn.init.normal_,
    nn.init.uniform_,
    Tensor.add_,
    Tensor.clamp_,
    Tensor.erfinv_,
    Tensor.mul_,
    Tensor.normal_,
    Tensor.uniform_,
}


class SkipInitOnMeta(TorchFunctionMode):
    """Draws no weights on the meta device, where they have no values and drawing them takes longer than loading them."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in INITIALIZERS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta and tensor.grad_fn is None:  # a sum in place, in a forward pass, is no initial value
                return tensor
        return function(*args, **kwargs)

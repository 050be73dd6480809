"""Views of an image, and their fusion into one map per task: tiles, horizontal flips and scales.

A view is what the model receives at once. Each pixel of a map is the weighted mean over the views that contain it, where the
weights fall off inside the overlap of tiles. The mean is taken over what `TaskKind.prepare_mean` makes of the logits: logits
of classes and probabilities, metres of depth, unit vectors of normals. The mean is then post-processed like any logits. Maps
are computed one band of rows at a time, so that the full-size logits of a large image are never in memory at once.
"""

import math
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..image_processing_sem import MAX_BAND_VALUES, crop_logits, upsample_rows
from ..tasks import flip_logits, get_task


MAX_MEMORY_VALUES = 2**26  # larger maps are in a temporary file


@dataclass(frozen=True, kw_only=True)
class View:
    """A part of an image, as the model receives it.

    Args:
        top (`int`): First row.
        left (`int`): First column.
        height (`int`): Number of rows.
        width (`int`): Number of columns.
        scale (`float`): Size of the model's input relative to its usual size.
        flipped (`bool`): Whether the part is flipped horizontally.
    """

    top: int
    left: int
    height: int
    width: int
    scale: float = 1.0
    flipped: bool = False

    def crop(self, image: Tensor) -> Tensor:
        """Crops an image `(3, height, width)` to the view, and flips it if the view is flipped."""
        part = image[:, self.top : self.top + self.height, self.left : self.left + self.width]
        return part.flip(-1) if self.flipped else part


@dataclass
class ViewLogits:
    """The logits of a view, `{task: (num_labels, h, w)}`, with flip and scale undone."""

    view: View
    logits: dict[str, Tensor]


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Returns the starts of evenly spaced tiles that cover a length and overlap by at least `overlap`."""
    if length <= tile:
        return [0]
    num_tiles = math.ceil((length - overlap) / (tile - overlap))
    return [round(index * (length - tile) / (num_tiles - 1)) for index in range(num_tiles)]


def tile_weights(length: int, overlap: int) -> Tensor:
    """Returns the weights along an edge of a tile, which rise and fall over the overlap and are 1 in the middle."""
    if overlap == 0:
        return torch.ones(length)
    positions = torch.arange(length) + 0.5
    return (torch.minimum(positions, length - positions) / overlap).clamp(max=1)


def undo_view(
    view: View, logits: dict[str, Tensor], content_size: tuple[int, int], padded_size: tuple[int, int]
) -> ViewLogits:
    """Removes padding, flip and scale from the logits `{task: (num_labels, h, w)}` of a view.

    The scale is undone by the rule of the zoom augmentation in training: objects `scale` times larger are predicted `scale`
    times nearer.

    Args:
        view (`View`): The view.
        logits (`dict[str, Tensor]`): Logits of the model.
        content_size (`tuple[int, int]`): Height and width of the model's input without padding.
        padded_size (`tuple[int, int]`): Height and width of the model's input.
    """
    undone = {}
    for task, values in logits.items():
        values = crop_logits(values, content_size, padded_size)
        values = get_task(task).kind.zoom_values(values.float(), 1 / view.scale)
        undone[task] = flip_logits(task, values) if view.flipped else values
    return ViewLogits(view, undone)


def match_depth_scale(tile: ViewLogits, whole: ViewLogits) -> ViewLogits:
    """Scales the depth of a tile to the mean depth that the whole image has there.

    A tile shows objects larger than training did, so its depths have the wrong scale. The whole image gives the scale, the
    tile gives the detail.
    """
    view, logits = tile.view, {}
    for task, values in tile.logits.items():
        kind, reference = get_task(task).kind, whole.logits[task]
        if kind.measure_zoom is not None:
            scales = reference.shape[1] / whole.view.height, reference.shape[2] / whole.view.width
            rows, columns = (
                slice(math.floor(start * scale), math.ceil((start + length) * scale))
                for start, length, scale in zip((view.top, view.left), (view.height, view.width), scales, strict=True)
            )
            values = kind.zoom_values(values, 1 / kind.measure_zoom(values, reference[:, rows, columns]))
        logits[task] = values
    return ViewLogits(view, logits)


@dataclass
class MapCanvas:
    """The maps of one image, filled from top to bottom.

    Args:
        size (`tuple[int, int]`): Height and width of the image.
        overlap (`int`): Minimum overlap of tiles in pixels; 0 for views of the whole image.
        folder (`Path`, *optional*): Folder for the temporary files of very large maps.
        maps (`dict[str, Tensor]`): `{task: map}` in the physical units of post-processing.
    """

    size: tuple[int, int]
    overlap: int = 0
    folder: Path | None = None
    maps: dict[str, Tensor] = field(default_factory=dict)

    def fill(self, views: list[ViewLogits], start: int, stop: int) -> None:
        """Fills rows `start` to `stop` from the views that contain them."""
        for task, logits in views[0].logits.items():
            num_rows = max(1, MAX_BAND_VALUES // (len(logits) * self.size[1]))
            for top in range(start, stop, num_rows):
                band = self._mean(task, views, top, min(top + num_rows, stop))
                values = get_task(task).kind.predict(band[None])[0].cpu()
                if task not in self.maps:
                    self.maps[task] = allocate_map((*values.shape[:-2], *self.size), values.dtype, self.folder)
                self.maps[task][..., top : top + values.shape[-2], :] = values

    def _mean(self, task: str, views: list[ViewLogits], start: int, stop: int) -> Tensor:
        """Returns the weighted mean over the views, `(num_labels, stop - start, width)`."""
        total, total_weight = 0.0, 0.0
        for view_logits in views:
            view, logits = view_logits.view, view_logits.logits[task]
            top, bottom = max(start, view.top), min(stop, view.top + view.height)
            if top < bottom:
                values = upsample_rows(logits, (view.height, view.width), top - view.top, bottom - view.top)
                values = get_task(task).kind.prepare_mean(values[None])[0]
                weights = self._weights(view, top, bottom).to(logits.device)
                padding = [view.left, self.size[1] - view.left - view.width, top - start, stop - bottom]
                total = total + F.pad(values * weights, padding)
                total_weight = total_weight + F.pad(weights, padding)
        return total / total_weight

    def _weights(self, view: View, top: int, bottom: int) -> Tensor:
        rows = tile_weights(view.height, min(self.overlap, view.height))[top - view.top : bottom - view.top]
        return rows[:, None] * tile_weights(view.width, min(self.overlap, view.width))


def allocate_map(shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None) -> Tensor:
    """Allocates an uninitialized map, in memory or, above `MAX_MEMORY_VALUES`, in an unnamed temporary file in `folder`.

    Raises:
        OSError: If the disk has no room for the file.
    """
    if math.prod(shape) <= MAX_MEMORY_VALUES:
        return torch.empty(shape, dtype=dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        num_bytes = math.prod(shape) * dtype.itemsize
        try:
            reserve(file, num_bytes)
        except OSError as error:
            raise OSError(
                f"A map of this image needs a temporary file of {num_bytes / 1e6:.0f} MB in {folder or tempfile.gettempdir()}: "
                f"{error}. Free some space; the same command goes on where this one stopped."
            ) from error
        return torch.from_numpy(np.memmap(file, torch.empty((), dtype=dtype).numpy().dtype, "r+", shape=shape))


def reserve(file: BinaryIO, num_bytes: int) -> None:
    """Takes the room of a file on the disk; otherwise a full disk would end the process when its memory map is written to."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, num_bytes)
    else:  # macOS, Windows
        block = bytes(2**20)
        for start in range(0, num_bytes, len(block)):
            file.write(block[: num_bytes - start])
        file.flush()

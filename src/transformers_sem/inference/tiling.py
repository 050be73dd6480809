"""Several looks at one photo, and one map per task from them: tiles, mirror images, other scales.

A view is what the model sees at once. Every pixel of a map is the mean over the views that show it, weighted inside their
overlap, taken on what `TaskKind.prepare_mean` makes of the logits: of classes and probabilities the logits themselves, of
depth metres, of normals unit vectors; then the mean is post-processed like any logits. Maps are made a band of rows at a
time, so that a photo of 100 megapixels needs no more memory for its logits than a small one.
"""

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..image_processing_sem import restore_map
from ..tasks import flip_logits, get_task


VALUES_OF_A_BAND = 2**24  # 64 MiB of float32
VALUES_IN_MEMORY = 2**26  # a map of more lies in a file without a name, which is gone when the program is


@dataclass(frozen=True, kw_only=True)
class View:
    """A look at a photo.

    Args:
        top (`int`), left (`int`), height (`int`), width (`int`): The part of the photo.
        scale (`float`): How much larger than usually the model gets it.
        flipped (`bool`): Whether it is mirrored.
    """

    top: int
    left: int
    height: int
    width: int
    scale: float = 1.0
    flipped: bool = False

    def crop(self, photo: Tensor) -> Tensor:
        """The part of a photo `(3, height, width)`, mirrored if so."""
        part = photo[:, self.top : self.top + self.height, self.left : self.left + self.width]
        return part.flip(-1) if self.flipped else part


@dataclass
class ViewLogits:
    """What the model sees in a view: `logits` `{task: (num_labels, h, w)}`, not mirrored, metres those of the whole photo."""

    view: View
    logits: dict[str, Tensor]


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles start that cover a length evenly, each overlapping the next by `overlap` or more."""
    if length <= tile:
        return [0]
    num_tiles = math.ceil((length - overlap) / (tile - overlap))
    return [round(index * (length - tile) / (num_tiles - 1)) for index in range(num_tiles)]


def tile_weights(length: int, overlap: int) -> Tensor:
    """Weights along an edge of a tile: rising over the overlap, 1 in the middle, falling; all 1 without overlap."""
    if overlap == 0:
        return torch.ones(length)
    positions = torch.arange(length) + 0.5
    return (torch.minimum(positions, length - positions) / overlap).clamp(max=1)


def undo_view(
    view: View, logits: dict[str, Tensor], content_size: tuple[int, int], padded_size: tuple[int, int]
) -> ViewLogits:
    """Takes padding and mirroring off logits `{task: (num_labels, h, w)}` of a view, and brings them to its usual scale.

    By the rule of the training's zoom: what looks `scale` times larger was predicted `scale` times nearer.
    """
    undone = {}
    for task, values in logits.items():
        if content_size != padded_size:
            values = restore_map(values, content_size, padded_size, content_size)
        values = get_task(task).kind.zoom_values(values.float(), 1 / view.scale)
        undone[task] = flip_logits(task, values) if view.flipped else values
    return ViewLogits(view, undone)


def match_depth_scale(seen: ViewLogits, whole: ViewLogits) -> ViewLogits:
    """Brings what the model sees in a tile to the zoom of the whole photo.

    A tile shows things larger than the training did, often so much that its depths are far off: the whole photo says how far
    things are on average, the tile says where exactly.
    """
    view, logits = seen.view, {}
    for task, values in seen.logits.items():
        spec, reference = get_task(task), whole.logits[task]
        if spec.kind.measure_zoom is not None:
            scales = reference.shape[1] / whole.view.height, reference.shape[2] / whole.view.width
            rows, columns = (
                slice(math.floor(start * scale), math.ceil((start + length) * scale))
                for start, length, scale in zip((view.top, view.left), (view.height, view.width), scales, strict=True)
            )
            values = spec.kind.zoom_values(values, 1 / spec.kind.measure_zoom(values, reference[:, rows, columns]))
        logits[task] = values
    return ViewLogits(view, logits)


def upsample_rows(logits: Tensor, size: tuple[int, int], start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of logits `(num_labels, h, w)` brought to `size`, bilinearly as post-processing does it all."""
    position = (torch.arange(start, stop, device=logits.device) + 0.5) * (logits.shape[1] / size[0]) - 0.5
    position = position.clamp(min=0)
    above = position.long().clamp(max=logits.shape[1] - 1)
    below = (above + 1).clamp(max=logits.shape[1] - 1)
    rows = torch.lerp(logits[:, above], logits[:, below], (position - above)[:, None])
    return F.interpolate(rows[None], size=(stop - start, size[1]), mode="bilinear", align_corners=False)[0]


@dataclass
class MapCanvas:
    """The maps of one photo, filled from the top down.

    Args:
        size (`tuple[int, int]`): Height and width of the photo.
        overlap (`int`): By how many pixels tiles overlap at least, 0 for views of the whole.
        folder (`Path`, *optional*): Where the files of very large maps lie while they are in use.
    """

    size: tuple[int, int]
    overlap: int = 0
    folder: Path | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def fill(self, views: list[ViewLogits], start: int, stop: int) -> None:
        """Fills rows `start` to `stop` from all views that show some of them."""
        for task, logits in views[0].logits.items():
            num_rows = max(1, VALUES_OF_A_BAND // (len(logits) * self.size[1]))
            for top in range(start, stop, num_rows):
                band = self._mean(task, views, top, min(top + num_rows, stop))
                values = get_task(task).kind.predict(band[None])[0].cpu().numpy()
                self._array(task, values)[..., top : top + values.shape[-2], :] = values

    def _mean(self, task: str, views: list[ViewLogits], start: int, stop: int) -> Tensor:
        """Mean logits `(num_labels, stop - start, width)`."""
        total, weight = 0.0, 0.0
        for seen in views:
            view, logits = seen.view, seen.logits[task]
            top, bottom = max(start, view.top), min(stop, view.top + view.height)
            if top < bottom:
                values = upsample_rows(logits, (view.height, view.width), top - view.top, bottom - view.top)
                values = get_task(task).kind.prepare_mean(values[None])[0]
                share = self._weights(view, top, bottom).to(logits.device)
                padding = [view.left, self.size[1] - view.left - view.width, top - start, stop - bottom]
                total = total + F.pad(values * share, padding)
                weight = weight + F.pad(share, padding)
        return total / weight

    def _weights(self, view: View, top: int, bottom: int) -> Tensor:
        rows = tile_weights(view.height, min(self.overlap, view.height))[top - view.top : bottom - view.top]
        return rows[:, None] * tile_weights(view.width, min(self.overlap, view.width))

    def _array(self, task: str, values: np.ndarray) -> np.ndarray:
        if task not in self.arrays:
            shape = (*values.shape[:-2], *self.size)
            if math.prod(shape) <= VALUES_IN_MEMORY:
                self.arrays[task] = np.empty(shape, values.dtype)
            else:
                with tempfile.TemporaryFile(dir=self.folder) as file:
                    self.arrays[task] = np.memmap(file, values.dtype, "w+", shape=shape)
        return self.arrays[task]

    def maps(self) -> dict[str, Tensor]:
        """The maps, in physical units as post-processing gives them."""
        return {task: torch.from_numpy(array) for task, array in self.arrays.items()}

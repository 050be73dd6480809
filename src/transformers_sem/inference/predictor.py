"""Predictions for photos of any size, from one look or from many."""

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF

from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from .tiling import MapCanvas, View, ViewLogits, match_depth_scale, tile_starts, undo_view


@dataclass(kw_only=True)
class Predictor:
    """A model and how it looks at photos.

    Args:
        model (`SEMForMultiTaskDensePrediction`): In evaluation mode, in any precision.
        image_processor (`SEMImageProcessor`): Of the model.
        batch_size (`int`, *optional*, defaults to 1): Views that the model gets at once, if the processor brings them to
            one size.
        tile (`int`, *optional*): Longer edge of the tiles that a photo is cut into, in pixels of the photo, of the shape
            that the model gets; they overlap by a quarter or more. `None` shows the model the photo as a whole.
        flip (`bool`, *optional*, defaults to `False`): Whether to look at the mirror image, too.
        scales (`tuple[float, ...]`, *optional*, defaults to `(1.0,)`): How much larger than usually to look, once each.
        folder (`Path`, *optional*): Where very large maps lie while they are in use.
    """

    model: SEMForMultiTaskDensePrediction
    image_processor: SEMImageProcessor
    batch_size: int = 1
    tile: int | None = None
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    folder: Path | None = None

    def __call__(self, photos: list[Tensor]) -> list[dict[str, Tensor]]:
        """Predicts.

        Args:
            photos (`list[Tensor]`): uint8 `(3, height, width)`, of any sizes.

        Returns:
            `list[dict[str, Tensor]]`: for each photo `{task: map}` of its size, in the physical units of
            [`SEMImageProcessor.post_process_dense_prediction`].

        Raises:
            FloatingPointError: If the model predicts NaN or infinity.
        """
        if self.tile is not None:
            return [self._predict_tiled(photo) for photo in photos]
        views = [self._looks(0, 0, *photo.shape[-2:]) for photo in photos]
        # a scale at a time, so that many views have one size
        numbered = sorted(
            ((number, view) for number, photo_views in enumerate(views) for view in photo_views),
            key=lambda pair: pair[1].scale,
        )
        seen = {number: [] for number in range(len(photos))}
        for (number, _), look in zip(numbered, self.look([(photos[n], view) for n, view in numbered]), strict=True):
            seen[number].append(look)
        mosaics = [MapCanvas(tuple(photo.shape[-2:]), folder=self.folder) for photo in photos]
        for number, mosaic in enumerate(mosaics):
            mosaic.fill(seen.pop(number), 0, mosaic.size[0])
        return [mosaic.maps() for mosaic in mosaics]

    def _predict_tiled(self, photo: Tensor) -> dict[str, Tensor]:
        """A row of tiles after the other; what no later row overlaps is finished, and forgotten."""
        height, width = photo.shape[-2:]
        tile_height, tile_width = (min(edges) for edges in zip(self._tile_size(), (height, width), strict=True))
        overlap = min(self._tile_size()) // 4
        tops, lefts = tile_starts(height, tile_height, overlap), tile_starts(width, tile_width, overlap)
        mosaic, seen = MapCanvas((height, width), overlap, self.folder), []
        (whole,) = self.look([(photo, View(top=0, left=0, height=height, width=width))])
        for top, next_top in zip(tops, [*tops[1:], height], strict=True):
            looks = [look for left in lefts for look in self._looks(top, left, tile_height, tile_width)]
            looks.sort(key=lambda view: view.scale)
            seen = [look for look in seen if look.view.top + look.view.height > top]
            seen += [match_depth_scale(look, whole) for look in self.look([(photo, view) for view in looks])]
            mosaic.fill(seen, top, next_top)
        return mosaic.maps()

    def _tile_size(self) -> tuple[int, int]:
        """Height and width of a tile: the shape that the model was made for, so that nothing is stretched or padded."""
        processor = self.image_processor
        size = processor.size if processor.do_resize else processor.pad_size if processor.do_pad else None
        edges = (size["height"], size["width"]) if size else (1, 1)
        return tuple(max(1, round(self.tile * edge / max(edges))) for edge in edges)

    def _looks(self, top: int, left: int, height: int, width: int) -> list[View]:
        """All views of a part of a photo."""
        return [
            View(top=top, left=left, height=height, width=width, scale=scale, flipped=flipped)
            for scale in self.scales
            for flipped in ((False, True) if self.flip else (False,))
        ]

    @torch.no_grad()
    def look(self, views: list[tuple[Tensor, View]]) -> Iterator[ViewLogits]:
        """What the model sees in views of photos, in their order; neighbours of one size share a batch."""
        prepared = (self._prepare(photo, view) for photo, view in views)
        for _, same_size in itertools.groupby(prepared, key=lambda look: look[1].shape):
            while batch := list(itertools.islice(same_size, self.batch_size)):
                pixel_values = torch.stack([pixels for _, pixels, _ in batch])
                logits = self.model(pixel_values.to(self.model.device, self.model.dtype)).logits
                check_finite(logits, self.model.dtype)
                for index, (view, _, layout) in enumerate(batch):
                    yield undo_view(view, {task: values[index] for task, values in logits.items()}, *layout)

    def _prepare(self, photo: Tensor, view: View) -> tuple[View, Tensor, tuple]:
        """A view as the model gets it, `(3, height, width)`, and how it lies in there."""
        crop, processor = view.crop(photo), self._scaled_processor(view.scale)
        if view.scale != 1 and not processor.do_resize:
            (content_size,), _ = self.image_processor.plan_sizes([(view.height, view.width)])
            crop = tvF.resize(crop, [max(1, round(edge * view.scale)) for edge in content_size], antialias=True)
        (content_size,), (padded_size,) = processor.plan_sizes([tuple(crop.shape[-2:])])
        pixel_values = processor(crop, return_tensors="pt")["pixel_values"][0]
        return view, pixel_values, (content_size, padded_size)

    def _scaled_processor(self, scale: float) -> SEMImageProcessor:
        """The image processor for another size of the model's input."""
        if scale == 1:
            return self.image_processor
        processor = copy.copy(self.image_processor)
        for name in ("size", "pad_size"):
            size = getattr(processor, name)
            if size is not None:
                edges = {key: math.ceil(size[key] * scale) for key in ("height", "width")}
                setattr(processor, name, type(size)(**edges))
        return processor


def check_finite(logits: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Refuses NaN and infinity, which would become maps that look like any other.

    Raises:
        FloatingPointError: If there are any.
    """
    broken = [task for task, values in logits.items() if not values.isfinite().all()]
    if broken:
        remedy = "The weights may be damaged." if dtype == torch.float32 else "Try --dtype bfloat16 or float32."
        raise FloatingPointError(f"Predictions are finite; {broken} are not, in {dtype}. {remedy}")


def parse_looks(words: list[str]) -> tuple[bool, tuple[float, ...]]:
    """Reads `["flip", "0.75", ...]` as whether to flip and at which scales to look, 1 always among them.

    Raises:
        ValueError: If a word is neither "flip" nor a scale from 0.25 to 4.
    """
    scales = {1.0}
    for word in words:
        try:
            scale = 1.0 if word == "flip" else float(word)
        except ValueError:
            scale = math.nan
        if not 0.25 <= scale <= 4:
            raise ValueError(f"--tta takes flip and scales from 0.25 to 4; got {word!r}.")
        scales.add(scale)
    return "flip" in words, tuple(sorted(scales))

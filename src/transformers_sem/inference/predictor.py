"""Prediction for images of any size, optionally with tiling and test-time augmentation."""

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
    """Predicts images with tiling and test-time augmentation.

    Args:
        model (`SEMForMultiTaskDensePrediction`): The model, in evaluation mode and any precision.
        image_processor (`SEMImageProcessor`): Image processor of the model.
        batch_size (`int`, *optional*, defaults to 1): Number of views per forward pass, where the processor brings them to
            one size.
        tile (`int`, *optional*): Longer edge of the tiles in pixels of the image. Tiles have the aspect ratio of the model's
            input and overlap by a quarter or more. Without it the model receives the whole image.
        flip (`bool`, *optional*, defaults to `False`): Whether to also predict the horizontally flipped image.
        scales (`tuple[float, ...]`, *optional*, defaults to `(1.0,)`): Sizes to predict at, relative to the usual input size.
        folder (`Path`, *optional*): Folder for the temporary files of very large maps.
    """

    model: SEMForMultiTaskDensePrediction
    image_processor: SEMImageProcessor
    batch_size: int = 1
    tile: int | None = None
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    folder: Path | None = None

    def __call__(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Predicts all tasks of images.

        Args:
            images (`list[Tensor]`): uint8 `(3, height, width)`, of any sizes.

        Returns:
            `list[dict[str, Tensor]]`: for each image `{task: map}` of its size, in the physical units of
            [`SEMImageProcessor.post_process_dense_prediction`].

        Raises:
            FloatingPointError: If the model predicts NaN or infinity.
        """
        if self.tile is not None:
            return [self._predict_tiled(image) for image in images]
        numbered_views = [
            (number, view) for number, image in enumerate(images) for view in self._augment(0, 0, *image.shape[-2:])
        ]
        numbered_views.sort(key=lambda pair: pair[1].scale)  # so that many consecutive views have one size
        predicted = self.predict_views([(images[number], view) for number, view in numbered_views])
        view_logits = {number: [] for number in range(len(images))}
        for (number, _), logits in zip(numbered_views, predicted, strict=True):
            view_logits[number].append(logits)
        canvases = [MapCanvas(tuple(image.shape[-2:]), folder=self.folder) for image in images]
        for number, canvas in enumerate(canvases):
            canvas.fill(view_logits.pop(number), 0, canvas.size[0])
        return [canvas.maps for canvas in canvases]

    def _predict_tiled(self, image: Tensor) -> dict[str, Tensor]:
        """Predicts one row of tiles after the other, and frees the logits that no later row overlaps."""
        height, width = image.shape[-2:]
        tile_height, tile_width = (min(edges) for edges in zip(self._tile_size(), (height, width), strict=True))
        overlap = min(self._tile_size()) // 4
        tops, lefts = tile_starts(height, tile_height, overlap), tile_starts(width, tile_width, overlap)
        canvas, view_logits = MapCanvas((height, width), overlap, self.folder), []
        (whole,) = self.predict_views([(image, View(top=0, left=0, height=height, width=width))])
        for top, next_top in zip(tops, [*tops[1:], height], strict=True):
            views = [view for left in lefts for view in self._augment(top, left, tile_height, tile_width)]
            views.sort(key=lambda view: view.scale)
            view_logits = [logits for logits in view_logits if logits.view.top + logits.view.height > top]
            predicted = self.predict_views([(image, view) for view in views])
            view_logits += [match_depth_scale(logits, whole) for logits in predicted]
            canvas.fill(view_logits, top, next_top)
        return canvas.maps

    def _tile_size(self) -> tuple[int, int]:
        """Returns height and width of a tile, in the aspect ratio of the model's input to avoid stretching and padding."""
        processor = self.image_processor
        size = processor.pad_size if processor.do_pad else processor.size if processor.do_resize else None
        edges = (size["height"], size["width"]) if size else (1, 1)
        return tuple(max(1, round(self.tile * edge / max(edges))) for edge in edges)

    def _augment(self, top: int, left: int, height: int, width: int) -> list[View]:
        """Returns the views of a part of an image: one for each scale, each also flipped if requested."""
        return [
            View(top=top, left=left, height=height, width=width, scale=scale, flipped=flipped)
            for scale in self.scales
            for flipped in ((False, True) if self.flip else (False,))
        ]

    @torch.no_grad()
    def predict_views(self, views: list[tuple[Tensor, View]]) -> Iterator[ViewLogits]:
        """Predicts views of images, in order; consecutive views of one size share a batch."""
        prepared = (self._prepare(image, view) for image, view in views)
        for _, same_size in itertools.groupby(prepared, key=lambda item: item[1].shape):
            while batch := list(itertools.islice(same_size, self.batch_size)):
                pixel_values = torch.stack([pixels for _, pixels, _ in batch])
                logits = self.model(pixel_values.to(self.model.device, self.model.dtype)).logits
                check_finite(logits, self.model.dtype)
                for index, (view, _, sizes) in enumerate(batch):
                    yield undo_view(view, {task: values[index] for task, values in logits.items()}, *sizes)

    def _prepare(self, image: Tensor, view: View) -> tuple[View, Tensor, tuple[tuple[int, int], tuple[int, int]]]:
        """Returns the view, its pixel values `(3, height, width)`, and its sizes without and with padding."""
        crop, processor = view.crop(image), self._scaled_processor(view.scale)
        if view.scale != 1 and not processor.do_resize:
            (content_size,), _ = self.image_processor.plan_sizes([(view.height, view.width)])
            crop = tvF.resize(crop, [max(1, round(edge * view.scale)) for edge in content_size], antialias=True)
        (content_size,), (padded_size,) = processor.plan_sizes([tuple(crop.shape[-2:])])
        pixel_values = processor(crop, input_data_format="channels_first", return_tensors="pt")["pixel_values"][0]
        return view, pixel_values, (content_size, padded_size)

    def _scaled_processor(self, scale: float) -> SEMImageProcessor:
        """Returns the image processor with the size of the model's input multiplied by `scale`."""
        if scale == 1:
            return self.image_processor
        processor = copy.copy(self.image_processor)
        name = "size" if processor.do_resize else "pad_size"
        size = getattr(processor, name)
        if size is not None:
            edges = {key: math.ceil(size[key] * scale) for key in ("height", "width")}
            setattr(processor, name, type(size)(**edges))
        return processor


def check_finite(logits: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Rejects NaN and infinity, which would give maps that look valid.

    Raises:
        FloatingPointError: If there are any.
    """
    tasks = [task for task, values in logits.items() if not values.isfinite().all()]
    if tasks:
        remedy = "The weights may be damaged." if dtype == torch.float32 else "Try --dtype bfloat16 or float32."
        raise FloatingPointError(f"Predictions must be finite; {tasks} are not, in {dtype}. {remedy}")


def parse_augmentations(words: list[str]) -> tuple[bool, tuple[float, ...]]:
    """Parses the values of `--tta`, such as `["flip", "0.75"]`.

    Returns:
        `tuple[bool, tuple[float, ...]]`: whether to flip, and the sorted scales, which always include 1.

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

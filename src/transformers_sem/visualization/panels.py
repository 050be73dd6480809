"""Panels of images, predictions and labels: grids of color images with titles."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..tasks import to_label
from ..utils.files import atomic_write
from .colors import colorize_map, colorize_maps


FONT_SIZE = 16
MAX_CELL_HEIGHT = 1024
MAX_FRAME_HEIGHT = 720  # of a drawn video


@dataclass
class Prediction:
    """The predictions for one image and, if it is labeled, its labels.

    Args:
        image (`Tensor`): uint8 `(3, height, width)`.
        maps (`dict[str, Tensor]`): `{task: map}` in physical units, at the size of the image.
        labels (`dict[str, Tensor]`): `{task: label}` of the same size; empty without labels.
    """

    image: Tensor
    maps: dict[str, Tensor]
    labels: dict[str, Tensor] = field(default_factory=dict)


def subsample_prediction(prediction: Prediction, max_side: int = 1024) -> Prediction:
    """Keeps every n-th pixel of a large image and its maps, so that drawing is fast and no values are mixed.

    Returns:
        `Prediction`: without labels, at most `max_side` pixels high and wide.
    """
    step = -(-max(prediction.image.shape[-2:]) // max_side)
    return Prediction(
        prediction.image[..., ::step, ::step],
        {task: values[..., ::step, ::step] for task, values in prediction.maps.items()},
    )


def to_channels_last(image: Tensor) -> np.ndarray:
    """Converts an image `(3, height, width)` to an array `(height, width, 3)`."""
    return image.movedim(0, -1).cpu().numpy()


@dataclass
class VideoFrameRenderer:
    """Draws the frames of a video next to their predictions.

    The color scale covers the frame and one earlier frame from each of the last four seconds, so that colors do not flicker.

    Args:
        reference_maps (`deque[dict[str, Tensor]]`): Predictions of those earlier frames.
        num_frames (`int`): Number of frames drawn so far.
    """

    reference_maps: deque[dict[str, Tensor]] = field(default_factory=lambda: deque(maxlen=4))
    num_frames: int = 0

    def render(self, prediction: Prediction, frames_per_second: int = 25) -> np.ndarray:
        """Draws a frame and, to its right, its predictions, as uint8 `(height, width, 3)` of even height and width."""
        maps = subsample_prediction(prediction, max_side=480).maps
        if self.reference_maps and not same_size(maps, self.reference_maps[-1]):  # the size of a video may change
            self.reference_maps.clear()
        if self.num_frames % frames_per_second == 0:
            self.reference_maps.append(maps)
        self.num_frames += 1
        cells = {
            task: colorize_maps(task, [values, *(earlier[task] for earlier in self.reference_maps)])[0]
            for task, values in maps.items()
        }
        return draw_side_by_side(to_channels_last(prediction.image), cells)


def same_size(maps: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    """Returns whether the maps of two images of the same tasks have the same sizes."""
    return all(values.shape == others[task].shape for task, values in maps.items())


def prediction_panel(predictions: list[Prediction]) -> Image.Image:
    """Draws images next to their predictions, with the labels below where there are any.

    Args:
        predictions (`list[Prediction]`): At least one; all of the same tasks.

    Returns:
        `PIL.Image.Image`: a panel with one column for the image and one for each task.
    """
    rows, titles = [], []
    for prediction in predictions:
        columns = [
            colorize_maps(task, [values, *([prediction.labels[task]] if task in prediction.labels else [])])
            for task, values in prediction.maps.items()
        ]
        rows.append([to_channels_last(prediction.image), *(column[0] for column in columns)])
        titles.append("prediction")
        if prediction.labels:
            rows.append([None, *(column[1] if len(column) > 1 else None for column in columns)])
            titles.append("ground truth")
    return draw_panel(rows, titles, ["image", *predictions[0].maps])


def comparison_panel(predictions: dict[str, list[Prediction]]) -> Image.Image:
    """Draws the predictions of several models for the same labeled images, with the labels below.

    Args:
        predictions (`dict[str, list[Prediction]]`): `{title of the model: its predictions}`, of the same images and tasks.

    Returns:
        `PIL.Image.Image`: a panel with one row per image and model and one row of labels per image; one column for the
        image and one for each task.
    """
    rows, tasks = [], None
    for same_image in zip(*predictions.values(), strict=True):
        image, labels, tasks = to_channels_last(same_image[0].image), same_image[0].labels, [*same_image[0].maps]
        columns = [
            colorize_maps(task, [*(prediction.maps[task] for prediction in same_image), labels[task]])
            for task in tasks
        ]
        rows += [[image if index == 0 else None, *cells] for index, cells in enumerate(zip(*columns, strict=True))]
    titles = [*predictions, "ground truth"] * (len(rows) // (len(predictions) + 1))
    return draw_panel(rows, titles, ["image", *tasks])


def contact_sheet(rows: list[dict[str, Any]], tasks: list[str]) -> Image.Image:
    """Draws the images of a dataset next to their labels, to check that both are aligned.

    Args:
        rows (`list[dict[str, Any]]`): Dataset rows with "id", "image" and a map or `None` for each task, all PIL images.
        tasks (`list[str]`): The labels to draw.

    Returns:
        `PIL.Image.Image`: a panel with one row per dataset row; one column for the image and one for each task, in color
        over the gray image.
    """
    cells = [
        [
            np.asarray(row["image"].convert("RGB")),
            *(None if row[task] is None else draw_overlay(row["image"], task, row[task]) for task in tasks),
        ]
        for row in rows
    ]
    return draw_panel(cells, [row["id"] for row in rows], ["image", *tasks])


def draw_overlay(image: Image.Image, task: str, label: Image.Image) -> np.ndarray:
    """Draws a label in color over the gray image, as uint8 `(height, width, 3)`."""
    colors = Image.fromarray(colorize_map(task, to_label(task, label)))
    return np.asarray(Image.blend(colors, image.convert("L").convert("RGB"), 0.25))


def draw_panel(
    rows: Sequence[Sequence[np.ndarray | None]],
    row_titles: Sequence[str],
    column_titles: Sequence[str],
    cell_width: int = 224,
) -> Image.Image:
    """Draws a grid of images with titles.

    Args:
        rows (`Sequence[Sequence[np.ndarray | None]]`): uint8 images `(height, width, 3)`; `None` leaves a cell empty.
        row_titles (`Sequence[str]`): One per row.
        column_titles (`Sequence[str]`): One per column.
        cell_width (`int`, *optional*, defaults to 224): Width of a cell in pixels; the height keeps the aspect ratio, up
            to `MAX_CELL_HEIGHT`.

    Returns:
        `PIL.Image.Image`: the panel.
    """
    font = ImageFont.load_default(size=FONT_SIZE)
    margin, gap, header = 128, 6, 28
    heights = [max(_cell_size(cell, cell_width)[1] for cell in row if cell is not None) for row in rows]
    width = margin + len(column_titles) * (cell_width + gap)
    panel = Image.new("RGB", (width, header + sum(heights) + gap * len(rows)), "white")
    draw = ImageDraw.Draw(panel)
    for column, title in enumerate(column_titles):
        draw.text((margin + column * (cell_width + gap) + cell_width / 2, 5), title, "black", font, anchor="ma")
    top = header
    for row, title, height in zip(rows, row_titles, heights, strict=True):
        draw.text((8, top + height / 2), title, "black", font, anchor="lm")
        for column, cell in enumerate(row):
            if cell is not None:
                resized = Image.fromarray(cell).resize(_cell_size(cell, cell_width), Image.Resampling.LANCZOS)
                panel.paste(resized, (margin + column * (cell_width + gap), top))
        top += height + gap
    return panel


def _cell_size(cell: np.ndarray, cell_width: int) -> tuple[int, int]:
    """Returns width and height; a very high image is narrower than its cell, because panels would have endless rows."""
    scale = min(cell_width / cell.shape[1], MAX_CELL_HEIGHT / cell.shape[0])
    return max(1, round(cell.shape[1] * scale)), max(1, round(cell.shape[0] * scale))


def draw_side_by_side(image: np.ndarray, cells: dict[str, np.ndarray]) -> np.ndarray:
    """Draws an image on the left and a grid of the same height, of smaller images with titles, on the right.

    An image that is higher than `MAX_FRAME_HEIGHT` is reduced to it.

    Args:
        image (`np.ndarray`): uint8 `(height, width, 3)`.
        cells (`dict[str, np.ndarray]`): `{title: image}`, uint8 `(height, width, 3)` of the same aspect ratio.

    Returns:
        `np.ndarray`: uint8 `(height, width, 3)` of even height and width, as video encoders require.
    """
    num_rows = max(1, round(len(cells) ** 0.5))
    num_columns = -(-len(cells) // num_rows)
    scale = min(1.0, MAX_FRAME_HEIGHT / image.shape[0])
    # even cell sizes make the total size even
    height, width = (max(2, 2 * round(edge * scale / num_rows / 2)) for edge in image.shape[:2])
    canvas = Image.new("RGB", ((num_rows + num_columns) * width, num_rows * height))
    canvas.paste(Image.fromarray(image).resize((num_rows * width, num_rows * height), Image.Resampling.BILINEAR))
    font, draw = ImageFont.load_default(size=FONT_SIZE), ImageDraw.Draw(canvas)
    for index, (title, cell) in enumerate(cells.items()):
        corner = ((num_rows + index % num_columns) * width, index // num_columns * height)
        canvas.paste(Image.fromarray(cell).resize((width, height), Image.Resampling.BILINEAR), corner)
        draw.text((corner[0] + 6, corner[1] + 4), title, "white", font, stroke_width=2, stroke_fill="black")
    return np.asarray(canvas)


def save_image(path: Path, image: Image.Image) -> None:
    """Writes an image atomically, in the format of the file's ending."""
    with atomic_write(path) as unfinished:
        image.save(unfinished)


def save_panel(path: Path, predictions: Iterable[Prediction], num_images: int = 4) -> None:
    """Writes the prediction panel of the first `num_images` predictions."""
    save_image(path, prediction_panel(list(islice(predictions, num_images))))

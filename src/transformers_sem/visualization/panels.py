"""Pictures of predictions: which task is coloured how comes from the task table."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from transformers_sem.utils.files import atomic_write
from transformers_sem.visualization.colors import colorize_alike, colorize_pair

from ..tasks import to_label


@dataclass
class Prediction:
    """One image, what the model sees in it and, where there are any, its labels.

    Args:
        image (`np.ndarray`): uint8 `(height, width, 3)`.
        maps (`dict[str, Tensor]`): `{task: map}` in physical units, at the size of the image.
        labels (`dict[str, Tensor]`): `{task: label}`, of the same size; none for a photo.
    """

    image: np.ndarray
    maps: dict[str, Tensor]
    labels: dict[str, Tensor] = field(default_factory=dict)


def shrink_prediction(prediction: Prediction, longest: int = 1024) -> Prediction:
    """Every so many pixels of a large image and its maps, so that colouring it is quick; no value is mixed with another."""
    step = -(-max(prediction.image.shape[:2]) // longest)
    return Prediction(
        prediction.image[::step, ::step],
        {task: values[..., ::step, ::step] for task, values in prediction.maps.items()},
    )


@dataclass
class VideoPanel:
    """Draws the frames of a video beside their predictions.

    Colours are on one scale with a frame of each of the last four seconds, or they would flicker.

    Args:
        kept (`deque[dict[str, Tensor]]`): Predictions of those frames.
        num_frames (`int`): How many were drawn.
    """

    kept: deque[dict[str, Tensor]] = field(default_factory=lambda: deque(maxlen=4))
    num_frames: int = 0

    def draw(self, prediction: Prediction, frames_of_a_second: int = 25) -> np.ndarray:
        """A frame, with all its predictions at the right, uint8 `(height, width, 3)` of even height and width."""
        maps = shrink_prediction(prediction, longest=480).maps
        if self.num_frames % frames_of_a_second == 0:
            self.kept.append(maps)
        self.num_frames += 1
        cells = {
            task: colorize_alike(task, [values, *(earlier[task] for earlier in self.kept)])[0]
            for task, values in maps.items()
        }
        return draw_side_by_side(prediction.image, cells)


def prediction_panel(predictions: list[Prediction]) -> Image.Image:
    """Draws images and all their predictions, with the ground truth below where there are labels.

    Args:
        predictions (`list[Prediction]`): At least one; all of the same tasks.

    Returns:
        `PIL.Image.Image`: one column for the image and each task.
    """
    rows, titles = [], []
    for prediction in predictions:
        pairs = [
            colorize_pair(task, task_map, prediction.labels.get(task)) for task, task_map in prediction.maps.items()
        ]
        rows.append([prediction.image, *(predicted for predicted, _ in pairs)])
        titles.append("prediction")
        if prediction.labels:
            rows.append([None, *(expected for _, expected in pairs)])
            titles.append("ground truth")
    return draw_panel(rows, titles, ["image", *predictions[0].maps])


def comparison_panel(predictions: dict[str, list[Prediction]]) -> Image.Image:
    """Draws what several models see in the same labelled images, with the ground truth below.

    Args:
        predictions (`dict[str, list[Prediction]]`): `{title of the model: its predictions}`, of the same images and tasks.

    Returns:
        `PIL.Image.Image`: for each image a row for each model and one for the ground truth, a column for the image and each
        task.
    """
    rows, tasks = [], None
    for same_image in zip(*predictions.values(), strict=True):
        image, labels, tasks = same_image[0].image, same_image[0].labels, [*same_image[0].maps]
        columns = [
            colorize_alike(task, [*(prediction.maps[task] for prediction in same_image), labels[task]])
            for task in tasks
        ]
        rows += [[image if index == 0 else None, *cells] for index, cells in enumerate(zip(*columns, strict=True))]
    titles = [*predictions, "ground truth"] * (len(rows) // (len(predictions) + 1))
    return draw_panel(rows, titles, ["image", *tasks])


def contact_sheet(rows: list[dict[str, Any]], tasks: list[str]) -> Image.Image:
    """Draws images of a data set beside their maps, for a person to see that all is aligned.

    Args:
        rows (`list[dict[str, Any]]`): "id", "image" and a map for each task, all pictures, as data sets give them.
        tasks (`list[str]`): The maps to draw.

    Returns:
        `PIL.Image.Image`: a row for each image, a column for the image and each task; maps in colour over the grey image.
    """
    cells = [
        [np.asarray(row["image"].convert("RGB")), *(draw_over(row["image"], task, row[task]) for task in tasks)]
        for row in rows
    ]
    return draw_panel(cells, [row["id"] for row in rows], ["image", *tasks])


def draw_over(image: Image.Image, task: str, label: Image.Image) -> np.ndarray:
    """Colours a map, with the image shining through, uint8 `(height, width, 3)`."""
    colors, _ = colorize_pair(task, to_label(task, label), None)
    return np.asarray(Image.blend(Image.fromarray(colors), image.convert("L").convert("RGB"), 0.25))


def draw_panel(
    rows: Sequence[Sequence[np.ndarray | None]],
    row_titles: Sequence[str],
    column_titles: Sequence[str],
    cell_width: int = 224,
) -> Image.Image:
    """Draws a labelled grid of pictures.

    Args:
        rows (`Sequence[Sequence[np.ndarray | None]]`): uint8 pictures `(height, width, 3)`; `None` leaves a cell empty.
        row_titles (`Sequence[str]`): One per row.
        column_titles (`Sequence[str]`): One per column.
        cell_width (`int`, *optional*, defaults to 224): Width of a cell in pixels; heights keep the aspect ratio.

    Returns:
        `PIL.Image.Image`: the panel.
    """
    font = ImageFont.load_default(size=16)
    margin, gap, header = 128, 6, 28
    heights = [max(_cell_height(cell, cell_width) for cell in row if cell is not None) for row in rows]
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
                size = (cell_width, _cell_height(cell, cell_width))
                picture = Image.fromarray(cell).resize(size, Image.Resampling.LANCZOS)
                panel.paste(picture, (margin + column * (cell_width + gap), top))
        top += height + gap
    return panel


def draw_side_by_side(image: np.ndarray, cells: dict[str, np.ndarray], max_height: int = 720) -> np.ndarray:
    """Draws a picture at the left, and others of the same shape in a grid of the same height at the right.

    Args:
        image (`np.ndarray`): uint8 `(height, width, 3)`.
        cells (`dict[str, np.ndarray]`): `{title: picture}`, uint8 `(height, width, 3)`.
        max_height (`int`, *optional*, defaults to 720): A higher picture is shrunk.

    Returns:
        `np.ndarray`: uint8 of even height and width, as videos need it.
    """
    num_rows = max(1, round(len(cells) ** 0.5))
    num_columns = -(-len(cells) // num_rows)
    shrink = min(1.0, max_height / image.shape[0])
    # an even size of a cell makes every other size even
    height, width = (max(2, 2 * round(edge * shrink / num_rows / 2)) for edge in image.shape[:2])
    canvas = Image.new("RGB", ((num_rows + num_columns) * width, num_rows * height))
    canvas.paste(Image.fromarray(image).resize((num_rows * width, num_rows * height), Image.Resampling.BILINEAR))
    font, draw = ImageFont.load_default(size=16), ImageDraw.Draw(canvas)
    for index, (title, cell) in enumerate(cells.items()):
        corner = ((num_rows + index % num_columns) * width, index // num_columns * height)
        canvas.paste(Image.fromarray(cell).resize((width, height), Image.Resampling.BILINEAR), corner)
        draw.text((corner[0] + 6, corner[1] + 4), title, "white", font, stroke_width=2, stroke_fill="black")
    return np.asarray(canvas)


def _cell_height(cell: np.ndarray, cell_width: int) -> int:
    return max(1, round(cell_width * cell.shape[0] / cell.shape[1]))


def save_picture(path: Path, picture: Image.Image) -> None:
    """Writes a picture, of the format that its name says."""
    with atomic_write(path) as unfinished:
        picture.save(unfinished)


def save_panel(path: Path, predictions: Iterable[Prediction], num_images: int = 4) -> None:
    """Draws the first images with their predictions and their ground truth."""
    save_picture(path, prediction_panel(list(islice(predictions, num_images))))

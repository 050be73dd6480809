"""Pictures of predictions: which task is coloured how comes from the task table."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from .tasks import get_task, to_label
from .visualization import draw_panel, draw_side_by_side


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


def colorize_alike(task: str, maps: Sequence[Tensor]) -> list[np.ndarray]:
    """Colours maps of one size on one scale, each uint8 `(height, width, 3)`."""
    arrays = [value.float().cpu().numpy() for value in maps]
    arrays = [value[0] if value.ndim == 3 and len(value) == 1 else value for value in arrays]
    # side by side in one call, so that one colour means one depth in all
    colors = get_task(task).colorize(np.concatenate(arrays, axis=-1))
    return np.split(colors, len(maps), axis=1)


def colorize_pair(task: str, prediction: Tensor, label: Tensor | None) -> list[np.ndarray | None]:
    """Colours a prediction and its label on one scale, each uint8 `(height, width, 3)`."""
    colors = colorize_alike(task, [value for value in (prediction, label) if value is not None])
    return [*colors, None] if label is None else colors


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

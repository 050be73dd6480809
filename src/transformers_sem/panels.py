"""Pictures of predictions: which task is coloured how comes from the task table."""

import numpy as np
from PIL import Image
from torch import Tensor

from .tasks import get_task
from .visualization import draw_panel


def colorize_pair(task: str, prediction: Tensor, label: Tensor | None) -> list[np.ndarray | None]:
    """Colours a prediction and its label on one scale, each uint8 `(height, width, 3)`."""
    maps = [value.float().cpu().numpy() for value in (prediction, label) if value is not None]
    maps = [value[0] if value.ndim == 3 and len(value) == 1 else value for value in maps]
    # side by side in one call, so that one colour means one depth in both
    colors = get_task(task).colorize(np.concatenate(maps, axis=-1))
    width = maps[0].shape[-1]
    return [colors[:, :width], colors[:, width:] if label is not None else None]


def prediction_panel(
    images: list[np.ndarray], predictions: list[dict[str, Tensor]], labels: list[dict[str, Tensor]] | None = None
) -> Image.Image:
    """Draws images and all their predictions, with the ground truth below where there are labels.

    Args:
        images (`list[np.ndarray]`): uint8 pictures `(height, width, 3)`.
        predictions (`list[dict[str, Tensor]]`): `{task: map}` in physical units for each image, of the image's size.
        labels (`list[dict[str, Tensor]]`, *optional*): `{task: label}` for each image.

    Returns:
        `PIL.Image.Image`: one column for the image and each task.
    """
    rows, titles = [], []
    for index, (image, maps) in enumerate(zip(images, predictions, strict=True)):
        truth = labels[index] if labels is not None else {}
        pairs = [colorize_pair(task, value, truth.get(task)) for task, value in maps.items()]
        rows.append([image, *(predicted for predicted, _ in pairs)])
        titles.append("prediction")
        if truth:
            rows.append([None, *(expected for _, expected in pairs)])
            titles.append("ground truth")
    return draw_panel(rows, titles, ["image", *predictions[0]])

"""."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from transformers_sem.task_kinds import colorize_range
from transformers_sem.tasks import get_task


def colorize_features(feature_map: np.ndarray) -> np.ndarray:
    """Colors the length of centered feature vectors `(channels, height, width)`, short dark and long bright."""
    return colorize_range(np.linalg.norm(feature_map - feature_map.mean(axis=(1, 2), keepdims=True), axis=0))


def colorize_alike(task: str, maps: Sequence[Tensor]) -> list[np.ndarray]:
    """Colours maps of one size on one scale, each uint8 `(height, width, 3)`."""
    arrays = [value.float().cpu().numpy() for value in maps]
    arrays = [value[0] if value.ndim == 3 and len(value) == 1 else value for value in arrays]
    # side by side in one call, so that one colour means one depth in all
    colors = get_task(task).kind.colorize(np.concatenate(arrays, axis=-1))
    return np.split(colors, len(maps), axis=1)


def colorize_pair(task: str, prediction: Tensor, label: Tensor | None) -> list[np.ndarray | None]:
    """Colours a prediction and its label on one scale, each uint8 `(height, width, 3)`."""
    colors = colorize_alike(task, [value for value in (prediction, label) if value is not None])
    return [*colors, None] if label is None else colors

"""Maps and features as RGB images. The colors of a task are those of its kind."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..task_kinds import colorize_range
from ..tasks import get_task


def colorize_maps(task: str, maps: Sequence[Tensor]) -> list[np.ndarray]:
    """Colors maps of one size on a common scale.

    Args:
        task (`str`): Name of the task.
        maps (`Sequence[Tensor]`): Labels or predictions, channels first.

    Returns:
        `list[np.ndarray]`: for each map uint8 `(height, width, 3)`.
    """
    squeezed = [values[0] if values.ndim == 3 and len(values) == 1 else values for values in maps]
    # one call on all maps, so that a color stands for the same depth in each
    joined = torch.cat([values.float().cpu() for values in squeezed], dim=-1)
    return np.split(get_task(task).kind.colorize(joined.numpy()), len(maps), axis=1)


def colorize_map(task: str, values: Tensor) -> np.ndarray:
    """Colors one label or prediction, channels first, as uint8 `(height, width, 3)`."""
    return colorize_maps(task, [values])[0]


def colorize_features(feature_map: Tensor) -> np.ndarray:
    """Colors features by the norm of their difference from the mean feature.

    Args:
        feature_map (`Tensor`): `(channels, height, width)`.

    Returns:
        `np.ndarray`: uint8 `(height, width, 3)`.
    """
    features = feature_map.float().cpu()
    centered = features - features.mean(dim=(1, 2), keepdim=True)
    return colorize_range(centered.norm(dim=0).numpy())

"""Predicted maps as files for other programs."""

from pathlib import Path

import numpy as np
from torch import Tensor

from ..tasks import get_task
from ..utils.files import atomic_write


def save_maps(folder: Path, name: str, maps: dict[str, Tensor]) -> dict[str, Path]:
    """Writes the predicted maps of one image as `folder/task/name.png`, encoded as the kind of the task defines.

    A task whose kind has no encoding is written as `.npy`.

    Returns:
        `dict[str, Path]`: `{task: path}` of the files.
    """
    paths = {}
    for task, values in maps.items():
        encode = get_task(task).kind.encode
        paths[task] = path = folder / task / f"{name}{'.png' if encode else '.npy'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as unfinished:
            if encode:
                encode(values.numpy()).save(unfinished)
            else:
                np.save(unfinished, values.numpy())
    return paths

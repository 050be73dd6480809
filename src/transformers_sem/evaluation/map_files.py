"""."""

from pathlib import Path

import numpy as np
from torch import Tensor

from transformers_sem.tasks import get_task
from transformers_sem.utils.files import atomic_write


def save_maps(folder: Path, name: str, maps: dict[str, Tensor]) -> dict[str, Path]:
    """Writes the predicted maps of one image, `folder/task/name.png`, values as `TaskKind.encode` lays them down.

    A task without `encode` has its values in `.npy`. Returns the files, `{task: path}`.
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

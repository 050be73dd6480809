"""Files of predicted maps."""

from pathlib import Path

import numpy as np
from torch import Tensor

from ..tasks import get_task
from ..utils.files import atomic_write


def save_maps(folder: Path, name: str, maps: dict[str, Tensor]) -> dict[str, Path]:
    """Writes the predicted maps of one image to `folder/TASK/NAME.png`, encoded as `TaskKind.encode` defines.

    Maps of a kind without `encode` are written to `folder/TASK/NAME.npy`.

    Returns:
        `dict[str, Path]`: `{task: path of the file}`.
    """
    paths = {}
    for task, values in maps.items():
        encode, array = get_task(task).kind.encode, values.cpu().numpy()
        paths[task] = path = folder / task / f"{name}{'.png' if encode else '.npy'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as unfinished:
            if encode:
                encode(array).save(unfinished)
            else:
                np.save(unfinished, array)
    return paths

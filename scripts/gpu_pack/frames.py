"""Frames of NYU-Depth v2 at half size as WebP, small enough to carry to a machine without a network.

`shrink` writes the folders of NYUDv2 with smaller files, and `restore` turns them into a folder NYUDv2 again, which
`transformers-sem prepare` reads. Class ids and boundaries are exact. Images and normals are lossy: decoded normals differ by 3
degrees in the mean. Depth has levels from 0.5 m on, each 3 % farther than the last.
"""

from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transformers_sem.data.nyud_v2 import FILES, LISTS, find_source, read_folder_frame
from transformers_sem.data.shrink import shrink_maps
from transformers_sem.losses import INVALID_ID
from transformers_sem.task_kinds import CLASS_IDS, METRES, UNIT_VECTORS
from transformers_sem.tasks import TASKS


FACTOR = 2
NEAREST, LEVEL_RATIO = 0.5, 1.03  # of depth: metres of the first level, and a level over the last
FOLDERS = {column: patterns[0].split("/")[0] for column, patterns in FILES.items()}
KINDS = {column: TASKS[column].kind for column in FILES if column in TASKS}  # the other column is the image


def shrink(source_dir: Path, target: Path, limits: dict[str, int | None], num_processes: int) -> None:
    """Writes the frames of a folder NYUDv2 at half size.

    Args:
        source_dir (`Path`): The folder NYUDv2.
        target (`Path`): A new folder.
        limits (`dict[str, int]`): Number of frames of each split; `None`, or no entry, is all.
        num_processes (`int`): Number of processes.
    """
    frames = {split: found[: limits.get(split)] for split, found in find_source(source_dir).frames.items()}
    make_folders(target, {split: [frame["id"] for frame in found] for split, found in frames.items()})
    with Pool(num_processes) as pool:
        pool.map(partial(shrink_frame, target=target), sum(frames.values(), []), chunksize=8)


def make_folders(target: Path, ids: dict[str, list[str]]) -> None:
    """Makes the folders of a new NYUDv2, and writes the lists of its frames."""
    for folder in FOLDERS.values():
        (target / folder).mkdir(parents=True)
    for split, path in LISTS.items():
        (target / path).parent.mkdir(exist_ok=True)
        (target / path).write_text("".join(f"{name}\n" for name in ids[split]))


def shrink_frame(frame: dict[str, Any], target: Path) -> None:
    """Writes one frame at half size."""
    for column, values in shrink_maps(read_folder_frame(frame), FACTOR).items():
        kind = KINDS.get(column)
        is_lossless = kind not in (None, UNIT_VECTORS)
        picture = Image.fromarray(np.ascontiguousarray(to_levels(kind, values))).convert("RGB")
        picture.save(target / FOLDERS[column] / f"{frame['id']}.webp", lossless=is_lossless, quality=70)


def to_levels(kind: Any, values: np.ndarray) -> np.ndarray:
    """Converts a map to 8 bits; 0 is invalid for class ids and metres."""
    if kind is CLASS_IDS:
        return np.where(values == INVALID_ID, 0, values + 1).astype(np.uint8)
    if kind is METRES:
        levels = np.round(np.log(values.clip(min=NEAREST) / NEAREST) / np.log(LEVEL_RATIO)).clip(max=254) + 1
        return np.nan_to_num(levels).astype(np.uint8)
    return values


def restore(source: Path, target: Path, limits: dict[str, int | None], num_processes: int) -> None:
    """Writes a folder NYUDv2 from a folder that `shrink` wrote; the arguments are as there."""
    ids = {split: (source / path).read_text().split()[: limits.get(split)] for split, path in LISTS.items()}
    make_folders(target, ids)
    with Pool(num_processes) as pool:
        pool.map(partial(restore_frame, source=source, target=target), sum(ids.values(), []), chunksize=8)


def restore_frame(name: str, source: Path, target: Path) -> None:
    """Converts the files of one frame."""
    for column, folder in FOLDERS.items():
        kind = KINDS.get(column)
        with Image.open(source / folder / f"{name}.webp") as opened:
            picture = opened.convert("RGB" if kind in (None, UNIT_VECTORS) else "L")
        if kind is METRES:
            levels = np.asarray(picture).astype(np.float32)
            metres = np.where(levels > 0, NEAREST * LEVEL_RATIO ** (levels - 1), 0)
            np.save(target / folder / f"{name}.npy", metres.astype(np.float32))
        else:
            picture.save(target / folder / f"{name}.png", compress_level=1)

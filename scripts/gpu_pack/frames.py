"""Frames of NYU-Depth v2 at half size as WebP, small enough to carry to a machine without a network.

`shrink` writes `images`, `segmentation`, `depth`, `normals`, `edge` and `gt_sets`; `restore` turns them into a folder NYUDv2
again, which `transformers-sem prepare` reads. Class ids and boundaries are exact. Images and normals are lossy: decoded normals
differ by 4 degrees in the mean. Depth has 255 levels of 39 mm.
"""

from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transformers_sem.data.nyud_v2 import LISTS, find_source, read_folder_frame
from transformers_sem.data.shrink import shrink_maps
from transformers_sem.losses import INVALID_ID


LOSSY, LOSSLESS = {"quality": 80}, {"lossless": True}
MAPS = {"images": LOSSY, "segmentation": LOSSLESS, "depth": LOSSLESS, "normals": LOSSY, "edge": LOSSLESS}
METRES_PER_LEVEL = 10 / 255


def shrink(source_dir: Path, target: Path, limits: dict[str, int | None], num_processes: int) -> None:
    """Writes the frames of a folder NYUDv2 at half size.

    Args:
        source_dir (`Path`): The folder NYUDv2.
        target (`Path`): A new folder.
        limits (`dict[str, int]`): Number of frames of each split; `None`, or no entry, is all.
        num_processes (`int`): Number of processes.
    """
    frames = {split: found[: limits.get(split)] for split, found in find_source(source_dir).frames.items()}
    make_folders(target)
    for split, path in LISTS.items():
        (target / path).write_text("".join(f"{frame['id']}\n" for frame in frames[split]))
    with Pool(num_processes) as pool:
        pool.map(partial(shrink_frame, target=target), [*frames["train"], *frames["validation"]], chunksize=8)


def make_folders(target: Path) -> None:
    """Makes the folders of a new NYUDv2."""
    for folder in (*MAPS, "gt_sets"):
        (target / folder).mkdir(parents=True)


def shrink_frame(frame: dict[str, Any], target: Path) -> None:
    """Writes one frame at half size."""
    maps = shrink_maps(read_folder_frame(frame), 2)
    levels = np.floor(maps["depth"] / METRES_PER_LEVEL).clip(0, 254) + 1  # 0 is invalid
    written = {
        "images": maps["image"],
        "segmentation": np.where(maps["semseg"] == INVALID_ID, 0, maps["semseg"] + 1),
        "depth": np.nan_to_num(levels),
        "normals": maps["normal"],
        "edge": maps["boundary"],
    }
    for folder, values in written.items():
        picture = Image.fromarray(np.ascontiguousarray(values, dtype=np.uint8))
        picture.convert("RGB").save(target / folder / f"{frame['id']}.webp", **MAPS[folder])


def restore(source: Path, target: Path, limits: dict[str, int | None], num_processes: int) -> None:
    """Writes a folder NYUDv2 from a folder that `shrink` wrote; the arguments are as there."""
    make_folders(target)
    names = {split: (source / path).read_text().split()[: limits.get(split)] for split, path in LISTS.items()}
    for split, path in LISTS.items():
        (target / path).write_text("".join(f"{name}\n" for name in names[split]))
    with Pool(num_processes) as pool:
        pool.map(partial(restore_frame, source=source, target=target), sum(names.values(), []), chunksize=8)


def restore_frame(name: str, source: Path, target: Path) -> None:
    """Converts the files of one frame."""
    for folder in MAPS:
        with Image.open(source / folder / f"{name}.webp") as picture:
            if folder == "depth":
                levels = np.asarray(picture.convert("L")).astype(np.float32)
                depth = np.where(levels > 0, (levels - 0.5) * np.float32(METRES_PER_LEVEL), 0)
                np.save(target / folder / f"{name}.npy", depth)
            else:
                mode = "RGB" if folder in ("images", "normals") else "L"
                picture.convert(mode).save(target / folder / f"{name}.png", compress_level=1)

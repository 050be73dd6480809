"""What the page shows of one photo: coloured maps, legends, the values under the pointer, points in space, a download."""

import base64
import html
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from transformers_sem.task_kinds import METRES

from ..evaluation.map_files import save_maps
from ..task_kinds import class_palette
from ..tasks import get_task
from ..visualization.colors import colorize_pair
from .point_cloud import FIELD_OF_VIEW, to_points, write_ply


# The table of values that the browser holds; a pointer is not finer than that
MAX_TABLE_SIDE = 320
MAX_LEGEND_CLASSES = 12
NUM_LEGEND_STEPS = 24


@dataclass(frozen=True, kw_only=True)
class Views:
    """What the page shows of one photo.

    Args:
        photo (`Path`): PNG.
        maps (`dict[str, Path]`): `{task: PNG in colour}`.
        legends (`dict[str, str]`): `{task: HTML}`.
        table (`dict`): See [`pixel_table`].
        cloud (`dict`, *optional*): See [`cloud_of`].
        archive (`Path`): Zip of all of it.
    """

    photo: Path
    maps: dict[str, Path]
    legends: dict[str, str]
    table: dict[str, Any]
    cloud: dict[str, Any] | None
    archive: Path


def write_views(
    folder: Path, photo: Image.Image, maps: dict[str, Tensor], class_names: dict[str, dict[int, str]]
) -> Views:
    """Writes all that the page shows of one photo.

    Args:
        folder (`Path`): Empty.
        photo (`PIL.Image.Image`): RGB.
        maps (`dict[str, Tensor]`): `{task: map}` in physical units, at the size of the photo.
        class_names (`dict[str, dict[int, str]]`): `{task: {id: name}}`, as `SEMConfig.task_id2label`.
    """
    colors = {task: colorize_pair(task, values, None)[0] for task, values in maps.items()}
    pictures = {task: folder / "colours" / f"{task}.png" for task in maps}
    (folder / "colours").mkdir()
    photo.save(folder / "photo.png")
    for task, path in pictures.items():
        Image.fromarray(colors[task]).save(path)
    return Views(
        photo=folder / "photo.png",
        maps=pictures,
        legends={task: legend(task, maps[task], colors[task], class_names.get(task, {})) for task in maps},
        table=pixel_table(maps, class_names),
        cloud=cloud_of(photo, maps, colors),
        archive=write_archive(folder, photo, maps),
    )


def holds_classes(values: Tensor) -> bool:
    """Whether a prediction is class ids."""
    return not values.is_floating_point()


def name_class(names: dict[int, str], class_id: int) -> str:
    """Name of a class, or its number where nobody named it."""
    return names.get(class_id, f"class {class_id}")


def legend(task: str, values: Tensor, colors: np.ndarray, names: dict[int, str]) -> str:
    """How to read a map: its classes by area, or its scale and what its colours mean, as HTML."""
    if holds_classes(values):
        return class_legend(values, names)
    spec = get_task(task)
    scale = scale_legend(values.numpy(), colors, spec.kind.unit) if values.ndim == 2 else ""
    return f"{scale}<div class='legend'>{html.escape(spec.kind.color_key or spec.kind.values)}</div>"


def class_legend(ids: Tensor, names: dict[int, str]) -> str:
    """The classes in a picture, largest first, with their colours and shares of the area."""
    present, counts = (part.numpy() for part in ids.unique(return_counts=True))
    order = np.argsort(-counts, kind="stable")
    entries = [
        f"<span><i style='background:rgb({','.join(map(str, class_palette()[present[index]]))})'></i>"
        f"{html.escape(name_class(names, int(present[index])))} {percent(counts[index] / ids.numel())}</span>"
        for index in order[:MAX_LEGEND_CLASSES]
    ]
    rest = len(order) - len(entries)
    return f"<div class='legend'>{''.join(entries)}{f'<span>and {rest} more</span>' if rest else ''}</div>"


def percent(share: float) -> str:
    """A share of the picture in whole percents."""
    return f"{share:.0%}" if share >= 0.01 else "&lt;1%"


def scale_legend(values: np.ndarray, colors: np.ndarray, unit: str) -> str:
    """A bar of the colours that the map really has, from its 2nd to its 98th percentile, with the numbers at its ends."""
    order = np.argsort(values, axis=None)
    ascending = values.ravel()[order]
    low, high = np.percentile(ascending, [2, 98])
    places = np.searchsorted(ascending, np.linspace(low, high, NUM_LEGEND_STEPS)).clip(max=len(order) - 1)
    stops = ",".join(f"rgb({r},{g},{b})" for r, g, b in colors.reshape(-1, 3)[order[places]])
    ends = [f"<span>{value:.2f} {html.escape(unit)}</span>" for value in (low, high)]
    return (
        f"<div class='legend scale'>{ends[0]}<b style='background:linear-gradient(90deg,{stops})'></b>{ends[1]}</div>"
    )


def pixel_table(maps: dict[str, Tensor], class_names: dict[str, dict[int, str]]) -> dict[str, Any]:
    """The values of all maps on a grid of pixels, small enough to be sent to the browser.

    Returns:
        `dict`: `height` and `width` of the grid; `data`, base64 of little-endian uint16 `(channels, height, width)`; `tasks`,
        for each map its `title`, `unit`, `names` (`{"id": name}`, or `None` for measurements) and `channels`, for each the
        value of level 0 and the step from level to level: value = low + level * step.
    """
    rows, columns = (grid_places(size) for size in next(iter(maps.values())).shape[-2:])
    levels, tasks = [], []
    for task, values in maps.items():
        grid = values.reshape(-1, *values.shape[-2:]).numpy()[:, rows[:, None], columns].astype(np.float64)
        is_class = holds_classes(values)
        names = (
            {str(int(id)): name_class(class_names.get(task, {}), int(id)) for id in np.unique(grid)}
            if is_class
            else None
        )
        channels = []
        for channel in grid:
            low, step = (0.0, 1.0) if is_class else (channel.min(), (np.ptp(channel) or 1.0) / 65535)
            channels.append([float(low), float(step)])
            levels.append(np.round((channel - low) / step).astype("<u2"))
        spec = get_task(task)
        tasks.append({"title": spec.title, "unit": spec.kind.unit, "names": names, "channels": channels})
    return {"height": len(rows), "width": len(columns), "data": to_base64(np.stack(levels)), "tasks": tasks}


def grid_places(size: int) -> np.ndarray:
    """The pixels in the middle of at most `MAX_TABLE_SIDE` equal parts of an edge."""
    parts = min(size, MAX_TABLE_SIDE)
    return ((np.arange(parts) + 0.5) * size / parts).astype(int)


def cloud_of(photo: Image.Image, maps: dict[str, Tensor], colors: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """The points of the first map of depth, on the same grid as [`pixel_table`], for the browser.

    Returns:
        `dict`: `points`, base64 of little-endian float32 `(num_points, 3)` in camera axes, metres; `spacing`, the distance of
        neighbours at a depth of one metre; `paints`, `{what it is: base64 of uint8 (num_points, 3)}`, the photo first and then
        each map of classes. `None` for a model without depth.
    """
    depth = next((maps[task].numpy() for task in maps if get_task(task).kind is METRES), None)
    if depth is None:
        return None
    rows, columns = (grid_places(size) for size in depth.shape)
    paints = {"photo": np.asarray(photo)}
    paints |= {get_task(task).title: colors[task] for task in maps if holds_classes(maps[task])}
    return {
        "points": to_base64(to_points(depth)[rows[:, None], columns].astype("<f4")),
        "spacing": 2 * math.tan(math.radians(FIELD_OF_VIEW / 2)) / len(columns),
        "paints": {title: to_base64(paint[rows[:, None], columns]) for title, paint in paints.items()},
    }


def to_base64(values: np.ndarray) -> str:
    """The bytes of an array, as text."""
    return base64.b64encode(np.ascontiguousarray(values)).decode()


def write_archive(folder: Path, photo: Image.Image, maps: dict[str, Tensor]) -> Path:
    """Zips what is in the folder, the raw maps as `maps.npz`, their values as pictures, and every pixel as a point."""
    save_maps(folder / "values", "photo", maps)
    np.savez_compressed(folder / "maps.npz", **{task: values.numpy() for task, values in maps.items()})
    for task, values in maps.items():
        if get_task(task).kind is METRES:
            points = to_points(values.numpy()).reshape(-1, 3)
            write_ply(folder / f"{task}_points.ply", points, np.asarray(photo).reshape(-1, 3))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with zipfile.ZipFile(folder / "maps.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in files:
            archive.write(path, path.relative_to(folder))
    return folder / "maps.zip"

"""The results that the demo page shows for one image: color maps, legends, pixel values, a point cloud and a download."""

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

from ..evaluation.map_files import save_maps
from ..task_kinds import CLASS_IDS, METRES, class_palette
from ..tasks import get_task
from ..visualization.colors import colorize_map
from .point_cloud import FIELD_OF_VIEW, to_points, write_ply


TITLE = "One image, all dense predictions"  # of the pages
MAX_TABLE_SIDE = 320  # of the table of values that is sent to the browser; pointing is not more precise
MAX_LEGEND_CLASSES = 12
NUM_LEGEND_STEPS = 24


@dataclass(frozen=True, kw_only=True)
class PageResults:
    """The results that the page shows for one image.

    Args:
        image (`Path`): The image as PNG.
        maps (`dict[str, Path]`): `{task: color map as PNG}`.
        legends (`dict[str, str]`): `{task: HTML}`.
        table (`dict`): Pixel values, see [`pixel_table`].
        cloud (`dict`, *optional*): Point cloud, see [`point_cloud`].
        archive (`Path`): Zip file with all maps.
    """

    image: Path
    maps: dict[str, Path]
    legends: dict[str, str]
    table: dict[str, Any]
    cloud: dict[str, Any] | None
    archive: Path


def write_results(
    folder: Path, image: Image.Image, maps: dict[str, Tensor], class_names: dict[str, dict[int, str]]
) -> PageResults:
    """Writes the files of the results and returns them with the data for the browser.

    Args:
        folder (`Path`): An empty folder.
        image (`PIL.Image.Image`): The RGB image.
        maps (`dict[str, Tensor]`): `{task: map}` in physical units, at the size of the image.
        class_names (`dict[str, dict[int, str]]`): `{task: {id: name}}`, as `SEMConfig.task_id2label`.
    """
    colors = {task: colorize_map(task, values) for task, values in maps.items()}
    color_paths = {task: folder / "colors" / f"{task}.png" for task in maps}
    (folder / "colors").mkdir()
    image.save(folder / "image.png")
    for task, path in color_paths.items():
        Image.fromarray(colors[task]).save(path)
    return PageResults(
        image=folder / "image.png",
        maps=color_paths,
        legends={task: legend(task, maps[task], colors[task], class_names.get(task, {})) for task in maps},
        table=pixel_table(maps, class_names),
        cloud=point_cloud(image, maps, colors),
        archive=write_archive(folder, image, maps),
    )


def name_class(names: dict[int, str], class_id: int) -> str:
    """Returns the name of a class, or its number if it has none."""
    return names.get(class_id, f"class {class_id}")


def legend(task: str, values: Tensor, colors: np.ndarray, names: dict[int, str]) -> str:
    """Returns the legend of a map as HTML: its classes, or its scale and the meaning of its colors."""
    kind = get_task(task).kind
    if kind is CLASS_IDS:
        return class_legend(values, names)
    scale = scale_legend(values.numpy(), colors, kind.unit) if values.ndim == 2 else ""
    return f"{scale}<div class='legend'>{html.escape(kind.color_key or kind.values)}</div>"


def class_legend(ids: Tensor, names: dict[int, str]) -> str:
    """Returns the classes of a map with their colors and shares of the area, largest first, as HTML."""
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
    """Formats a share of the area in whole percents, as HTML."""
    return f"{share:.0%}" if share >= 0.01 else "&lt;1%"


def scale_legend(values: np.ndarray, colors: np.ndarray, unit: str) -> str:
    """Returns a bar of the map's colors from its 2nd to its 98th percentile, with the values at both ends, as HTML."""
    order = np.argsort(values, axis=None)
    ascending = values.ravel()[order]
    low, high = np.percentile(ascending, [2, 98])
    indices = np.searchsorted(ascending, np.linspace(low, high, NUM_LEGEND_STEPS)).clip(max=len(order) - 1)
    stops = ",".join(f"rgb({r},{g},{b})" for r, g, b in colors.reshape(-1, 3)[order[indices]])
    ends = [f"<span>{value:.2f} {html.escape(unit)}</span>" for value in (low, high)]
    return (
        f"<div class='legend scale'>{ends[0]}<b style='background:linear-gradient(90deg,{stops})'></b>{ends[1]}</div>"
    )


def pixel_table(maps: dict[str, Tensor], class_names: dict[str, dict[int, str]]) -> dict[str, Any]:
    """Returns the values of all maps on a grid of pixels, small enough to be sent to the browser.

    Returns:
        `dict`: `height` and `width` of the grid; `data`, base64 of little-endian uint16 `(channels, height, width)`; `tasks`,
        a list with the `title`, `unit`, `names` (`{"id": name}`, or `None` for measurements) and `channels` of each map.
        `channels` holds for each channel the value of level 0 and the step between levels: value = low + level * step.
    """
    rows, columns = (grid_indices(size) for size in next(iter(maps.values())).shape[-2:])
    levels, tasks = [], []
    for task, values in maps.items():
        grid = values.reshape(-1, *values.shape[-2:]).numpy()[:, rows[:, None], columns].astype(np.float64)
        spec = get_task(task)
        is_class = spec.kind is CLASS_IDS
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
        tasks.append({"title": spec.title, "unit": spec.kind.unit, "names": names, "channels": channels})
    return {"height": len(rows), "width": len(columns), "data": to_base64(np.stack(levels)), "tasks": tasks}


def grid_indices(size: int) -> np.ndarray:
    """Returns the center pixels of at most `MAX_TABLE_SIDE` equal parts of an edge."""
    parts = min(size, MAX_TABLE_SIDE)
    return ((np.arange(parts) + 0.5) * size / parts).astype(int)


def point_cloud(image: Image.Image, maps: dict[str, Tensor], colors: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """Returns the point cloud of the first depth map for the browser, on the grid of [`pixel_table`].

    Returns:
        `dict`: `points`, base64 of little-endian float32 `(num_points, 3)` in camera axes, metres; `spacing`, the distance of
        neighboring points at a depth of one metre; `colors`, `{title: base64 of uint8 (num_points, 3)}` for the image and
        each map of class ids. `None` if the model does not predict depth.
    """
    depth = next((maps[task].numpy() for task in maps if get_task(task).kind is METRES), None)
    if depth is None:
        return None
    rows, columns = (grid_indices(size) for size in depth.shape)
    point_colors = {"image": np.asarray(image)}
    point_colors |= {get_task(task).title: colors[task] for task in maps if get_task(task).kind is CLASS_IDS}
    return {
        "points": to_base64(to_points(depth)[rows[:, None], columns].astype("<f4")),
        "spacing": 2 * math.tan(math.radians(FIELD_OF_VIEW / 2)) / len(columns),
        "colors": {title: to_base64(values[rows[:, None], columns]) for title, values in point_colors.items()},
    }


def to_base64(values: np.ndarray) -> str:
    """Encodes the bytes of an array as base64."""
    return base64.b64encode(np.ascontiguousarray(values)).decode()


def write_archive(folder: Path, image: Image.Image, maps: dict[str, Tensor]) -> Path:
    """Zips the folder together with the raw maps, the encoded maps and a point cloud of every depth map."""
    save_maps(folder / "values", "image", maps)
    np.savez_compressed(folder / "maps.npz", **{task: values.numpy() for task, values in maps.items()})
    for task, values in maps.items():
        if get_task(task).kind is METRES:
            points = to_points(values.numpy()).reshape(-1, 3)
            write_ply(folder / f"{task}_points.ply", points, np.asarray(image).reshape(-1, 3))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with zipfile.ZipFile(folder / "maps.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in files:
            archive.write(path, path.relative_to(folder))
    return folder / "maps.zip"

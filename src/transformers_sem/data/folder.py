"""A user's own dataset: a folder of images, a folder of maps for each task, and a few lines of YAML.

    FOLDER/dataset.yaml
    FOLDER/images/ID.jpg                 or .jpeg, .png
    FOLDER/semseg/ID.png                 class ids, 8 or 16 bits, with or without a palette; or .npy
    FOLDER/parsing/ID.png                the same
    FOLDER/depth/ID.png                  8 or 16 bits; or .npy; 0 is unknown
    FOLDER/normal/ID.png                 RGB = (n + 1) / 2 * 255; or vectors as .npy
    FOLDER/boundary/ID.png               0 or 255, or one bit
    FOLDER/saliency/ID.png               salient above 127, or one bit
    FOLDER/train.txt, validation.txt     ids, one per line; without them, every tenth image by name is for validation

Any of the tasks is optional. `dataset.yaml` names those that the folder has, and describes their files:

    allow_missing: true                  # images may lack maps, and are trained on those that they have; false by default
    tasks:
      semseg:
        classes: [road, building, tree]  # ids 0, 1, 2 in the files; or {7: road, 11: building}
        ignored: 255                     # the id of pixels without a class; 255 by default, unless it is a class
      depth:
        unit: millimetre                 # or metre, centimetre, or a number: the metres of one unit; floating-point files need none
      normal:
        axes: right-up-backward          # or right-down-forward (default)
      boundary:
      saliency:

What the files hold depends on the kind of the task, so a task of your own that has one of these kinds is read in the same
way. Maps of a kind of your own are images, or 2-D arrays of the values as .npy; the levels 0 and 255 of an 8-bit image
stand for the two ends of the `value_range` of the kind.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..losses import INVALID_ID
from ..task_kinds import CLASS_IDS, MAX_DEPTH, METRES, PROBABILITY, UNIT_VECTORS
from ..tasks import TASKS, get_task
from ..utils.settings import parse_yaml
from .files import (
    FrameReader,
    check_depth,
    find_root,
    read_gray,
    read_image_bytes,
    read_list,
    read_normals,
    read_rgb,
    read_values,
)
from .sources import DESCRIPTION_NAME, Frame, Maps, Source, SourceBuilder, SourceConfig, drop_missing


RULE = f"the folder that has images/ and {DESCRIPTION_NAME}, its parent, or a tar or zip archive of either"
LISTS = {"train": "train.txt", "validation": "validation.txt"}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# Refused, because they would be left out in silence
OTHER_IMAGE_SUFFIXES = (".webp", ".tif", ".tiff", ".bmp", ".gif", ".heic", ".heif", ".avif", ".jp2", ".ppm")
MAP_SUFFIXES = (".png", ".npy")
UNITS = {"metre": 1.0, "centimetre": 0.01, "millimetre": 0.001}
DEFAULT_UNIT, DEFAULT_AXES = "metre", "right-down-forward"
# Signs that convert the axes of the files to ours: x right, y down, z forward.
AXES = {DEFAULT_AXES: (1, 1, 1), "right-up-backward": (1, -1, -1)}
SETTINGS = {CLASS_IDS: ("classes", "ignored"), METRES: ("unit",), UNIT_VECTORS: ("axes",)}
VALIDATION_STEP = 10
Settings = dict[str, dict[str, Any]]


def is_root(folder: Path) -> bool:
    """Returns whether a folder is a user's own dataset."""
    return (folder / "images").is_dir() and (folder / DESCRIPTION_NAME).is_file()


def find_source(data_dir: str | Path | None) -> Source:
    """Reads the description of a folder and finds its files.

    Args:
        data_dir: The folder, its parent, or a tar or zip archive of either.

    Raises:
        ValueError: If `dataset.yaml` or a list is broken, or two files have the same id.
        FileNotFoundError: If there is no such folder, or a task in `dataset.yaml` has none.
    """
    root = find_root(data_dir, is_root, RULE)
    settings = read_description(root / DESCRIPTION_NAME)
    images = find_files(root / "images", IMAGE_SUFFIXES)
    maps = {task: find_files(root / task, MAP_SUFFIXES) for task in settings}
    source = Source(
        title=root.name,
        variant="a user's own folder",
        root=root,
        frames={split: find_frames(root, names, images, maps) for split, names in read_splits(root, images).items()},
        columns=["image", *settings],
        class_names=class_names(settings),
        derived={},
        read=partial(read_frame, readers={task: build_reader(task, settings[task]) for task in settings}),
        official_sizes={},
        terms="",
    )
    return drop_missing(source)


def read_description(path: Path) -> Settings:
    """Reads `dataset.yaml`.

    Returns:
        `{task: settings}`.

    Raises:
        ValueError: If the file is not YAML, or describes a task in a wrong way.
    """
    description = parse_yaml(path.read_bytes(), str(path))
    tasks = description.get("tasks") if isinstance(description, dict) else None
    if not isinstance(tasks, dict) or not tasks or set(description) - {"tasks", "allow_missing"}:
        raise ValueError(
            f"Cannot use {path}: it must name the tasks, as in 'tasks: {{depth: {{unit: metre}}}}'; got {description!r}. "
            f"Known tasks are {sorted(TASKS)}."
        )
    settings = {task: {} if values is None else values for task, values in tasks.items()}
    try:
        for task, values in settings.items():
            check_settings(task, values)
    except ValueError as error:
        raise ValueError(f"Cannot use {path}: {error}") from error
    return settings


def check_settings(task: str, values: dict[str, Any]) -> None:
    """Checks the settings of one task.

    Raises:
        ValueError: If the task is unknown, or a setting is unknown, missing or not allowed.
    """
    kind = get_task(task).kind
    known = SETTINGS.get(kind, ())
    if not isinstance(values, dict) or set(values) - set(known):
        raise ValueError(f"The settings of {task} are {list(known) or 'none'}; got {values!r}.")
    if kind is CLASS_IDS:
        check_classes(task, values.get("classes"), values.get("ignored"))
    unit = values.get("unit", DEFAULT_UNIT)
    is_known = unit in UNITS if isinstance(unit, str) else is_number(unit) and 0 < unit < float("inf")
    if not is_known:
        raise ValueError(f"The unit of {task} is one of {list(UNITS)}, or a number of metres above 0; got {unit!r}.")
    axes = values.get("axes", DEFAULT_AXES)
    if not isinstance(axes, str) or axes not in AXES:
        raise ValueError(f"The axes of {task} are one of {list(AXES)}; got {axes!r}.")


def is_number(value: Any) -> bool:
    """Returns whether a value of a YAML file is a number; `true` and `yes` are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_classes(task: str, classes: Any, ignored: Any) -> None:
    """Checks the classes of one task.

    Raises:
        ValueError: If they are not distinct names, or their ids are not those of a file.
    """
    by_id = number_classes(classes) if isinstance(classes, list | dict) else {}
    names = list(by_id.values())
    is_name = [isinstance(name, str) for name in names]
    if not 2 <= len(names) <= INVALID_ID or not all(is_name) or len(set(names)) < len(names):
        raise ValueError(
            f"The classes of {task} are 2 to {INVALID_ID} distinct names, as in 'classes: [road, tree]' or "
            f"'classes: {{7: road, 9: tree}}'; got {classes!r}. Put names that YAML does not read as text, such as yes, in quotes."
        )
    ids = [*by_id, INVALID_ID if ignored is None else ignored]
    if not all(type(index) is int and 0 <= index < 65536 for index in ids) or ignored in by_id:
        raise ValueError(
            f"The ids of {task} are whole numbers 0..65535, and none of them is the ignored one; got {list(by_id)} and "
            f"ignored {ignored!r}."
        )


def number_classes(classes: list[str] | dict[int, str]) -> dict[int, str]:
    """Returns `{id in the files: name}`."""
    return dict(classes) if isinstance(classes, dict) else dict(enumerate(classes))


def class_names(settings: Settings) -> dict[str, list[str]]:
    """Returns the class names of each task of class ids, in the order of the ids in rows."""
    return {
        task: list(number_classes(values["classes"]).values())
        for task, values in settings.items()
        if get_task(task).kind is CLASS_IDS
    }


def find_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Finds the files of a folder.

    Returns:
        `{id: path}`.

    Raises:
        FileNotFoundError: If there is no such folder, or it has no files.
        ValueError: If two files have the same id.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"Every task in {DESCRIPTION_NAME} needs a folder of its name; there is no {folder}.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != ".")
    files = {path.stem: str(path) for path in paths}
    if not files:
        raise FileNotFoundError(f"{folder} needs files that end in {', '.join(suffixes)}; there are none.")
    unnamed = [path.name for path in paths if path.name.encode(errors="ignore").decode() != path.name]
    if unnamed:
        raise ValueError(f"Names of files are text in UTF-8; {folder} has {unnamed[:5]!r}. Rename them.")
    repeated = [str(path) for path in paths if files[path.stem] != str(path)]
    if repeated:
        raise ValueError(
            f"An id has one file in a folder; these have another file with the same name: {repeated[:5]}. Remove one."
        )
    return files


def read_splits(root: Path, images: dict[str, str]) -> dict[str, list[str]]:
    """Reads the lists of ids. Without lists, every tenth image is for validation and the others for training.

    Raises:
        ValueError: If there are too few images, or some are of a format that is not read.
        FileNotFoundError: If one of the lists is missing.
    """
    if any((root / path).is_file() for path in LISTS.values()):
        return {split: read_list(root / path) for split, path in LISTS.items()}
    names = list(images)
    others = [path for path in (root / "images").iterdir() if path.suffix.lower() in OTHER_IMAGE_SUFFIXES]
    left_out = sorted(path.name for path in others if path.stem not in images and path.name[0] != ".")
    if left_out:
        raise ValueError(
            f"Images end in {', '.join(IMAGE_SUFFIXES)}; {root}/images also has {left_out[:5]}. Convert them, or list the ids to use "
            f"in {' and '.join(LISTS.values())}."
        )
    if len(names) < 2:
        raise ValueError(f"Training and validation need an image each; {root}/images has {len(names)}. Add more.")
    held_out = names[::VALIDATION_STEP]
    return {"train": [name for name in names if name not in set(held_out)], "validation": held_out}


def find_frames(root: Path, names: list[str], images: dict[str, str], maps: dict[str, dict[str, str]]) -> list[Frame]:
    """Finds the files of frames. A missing file gets the name that it should have."""
    return [
        {
            "id": name,
            "image": images.get(name, f"{root}/images/{name}{IMAGE_SUFFIXES[0]}"),
            **{task: files.get(name, f"{root}/{task}/{name}{MAP_SUFFIXES[0]}") for task, files in maps.items()},
        }
        for name in names
    ]


def build_reader(task: str, settings: dict[str, Any]) -> Callable[[str], np.ndarray]:
    """Returns the function that reads the maps of a task."""
    spec = get_task(task)
    if spec.kind is CLASS_IDS:
        ids = tuple(number_classes(settings["classes"]))
        return partial(read_classes, ids=ids, ignored=settings.get("ignored"))
    if spec.kind is METRES:
        return partial(read_metres, unit=settings.get("unit"))
    if spec.kind is UNIT_VECTORS:
        return partial(read_unit_vectors, signs=AXES[settings.get("axes", DEFAULT_AXES)])
    if spec.kind is PROBABILITY:
        return read_gray if spec.dtype.is_floating_point else read_mask
    return partial(read_map, num_channels=spec.kind.num_channels)


def read_classes(path: str, ids: tuple[int, ...], ignored: int | None) -> np.ndarray:
    """Reads class ids and renumbers them: 0, 1, ... in the order of `ids`, 255 where ignored, uint8 `(height, width)`.

    Args:
        path: The file.
        ids: The ids of the classes in the file.
        ignored: The id of pixels without a class; `None` for 255, unless that is a class.
    """
    labels = read_values(path, palette=True)
    if labels.dtype.kind not in "iu" or labels.ndim != 2:
        raise ValueError(f"ids must be whole numbers (height, width); got {labels.dtype} {labels.shape}")
    if ignored is None and len(ids) == 2 and INVALID_ID not in ids and set(np.unique(labels)) == {0, INVALID_ID}:
        raise ValueError(
            f"ids must be those of the two classes, {list(ids)}; got a mask of 0 and 255: write 'classes: {{0: ..., 255: ...}}' in "
            f"{DESCRIPTION_NAME}, or 'ignored: 255' if 255 marks pixels without a class"
        )
    ignored = INVALID_ID if ignored is None else ignored
    unknown = np.setdiff1d(labels, [*ids, ignored])
    if len(unknown) > 0:
        raise ValueError(
            f"ids must be those of the classes in {DESCRIPTION_NAME}, {list(ids)}, or the ignored {ignored}; got "
            f"{unknown[:5].tolist()}"
        )
    table = np.full(65536, INVALID_ID, np.uint8)
    table[list(ids)] = np.arange(len(ids))
    return table[labels]


def read_metres(path: str, unit: str | float | None) -> np.ndarray:
    """Reads depth of any unit as metres `(height, width)`, float32, NaN where unknown.

    Args:
        path: The file.
        unit: The unit of its values; `None` for metres, which whole numbers are only where the unit says so.
    """
    values = read_values(path)
    if values.dtype.kind not in "iuf" or values.ndim != 2:
        raise ValueError(f"depth must be numbers (height, width); got {values.dtype} {values.shape}")
    if unit is None and values.dtype.kind != "f":
        raise ValueError(
            f"depth in whole numbers needs a unit; got {values.dtype}: write 'unit: millimetre', for example, in {DESCRIPTION_NAME}"
        )
    unit = unit or DEFAULT_UNIT
    depth = values * float(UNITS.get(unit, unit))  # a whole number would wrap around in 8 bits
    if np.nanmax(depth, initial=0.0) > MAX_DEPTH and np.isfinite(np.nanmax(depth)):
        raise ValueError(
            f"depth must be at most {MAX_DEPTH:g} metres; got {np.nanmax(depth):g} in the unit {unit!r}: check the unit in "
            f"{DESCRIPTION_NAME}"
        )
    return check_depth(depth, MAX_DEPTH)


def read_unit_vectors(path: str, signs: tuple[int, int, int]) -> np.ndarray:
    """Reads unit vectors of any axes as 8-bit levels `(height, width, 3)` of vectors in our axes."""
    levels = read_normals(path)
    return np.where(np.array(signs) > 0, levels, 255 - levels)


def read_mask(path: str) -> np.ndarray:
    """Reads gray levels as ids 0 and 1 (above 127), uint8 `(height, width)`."""
    return (read_gray(path) > 127).astype(np.uint8)


def read_map(path: str, num_channels: int) -> np.ndarray:
    """Reads a map of a user's own kind: levels of an image `(height, width[, 3])` or values `(height, width)`."""
    values = read_values(path)
    if values.ndim != (3 if num_channels > 1 else 2) or (num_channels > 1 and values.shape[2] != num_channels):
        shape = f"(height, width, {num_channels})" if num_channels > 1 else "(height, width)"
        raise ValueError(f"it must have the shape {shape}; got {values.shape}")
    if values.dtype.kind != "f":
        return values
    if values.ndim == 3:
        raise ValueError(f"a map of several channels must be an 8-bit image; got {values.dtype} {values.shape}")
    return values.astype(np.float32)


def read_frame(frame: Frame, readers: dict[str, Callable[[str], np.ndarray]]) -> Maps:
    """Reads the image and the maps of one frame.

    Raises:
        BrokenFrameError: If files cannot be read, hold values that are not allowed, or have another size than the image.
    """
    reader = FrameReader(frame["id"])
    reader.read(frame["image"], read_rgb)
    maps = {task: reader.read(frame[task], read) for task, read in readers.items() if frame[task]}
    reader.finish()
    return {"image": read_image_bytes(frame["image"]), **maps}


class FolderConfig(SourceConfig):
    """Configuration of the builder; `data_dir` is an argument of `find_source`."""

    find_source = staticmethod(find_source)

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Names the cache by `dataset.yaml` too."""
        settings = read_description(find_root(self.data_dir, is_root, RULE) / DESCRIPTION_NAME)
        return super().create_config_id({**config_kwargs, "settings": settings}, custom_features)


class Folder(SourceBuilder):
    """A folder of images, maps and `dataset.yaml`, from `data_dir`."""

    BUILDER_CONFIG_CLASS = FolderConfig

"""Your own data: a folder of images, a folder of maps for each task, and a few lines of YAML.

    FOLDER/dataset.yaml
    FOLDER/images/ID.jpg                 or .jpeg, .png
    FOLDER/semseg/ID.png                 ids, 8 or 16 bits, with or without a palette; or .npy
    FOLDER/parsing/ID.png                the same
    FOLDER/depth/ID.png                  8 or 16 bits; or .npy; 0 is unknown
    FOLDER/normal/ID.png                 RGB = (n + 1) / 2 * 255; or vectors as .npy
    FOLDER/boundary/ID.png               0 or 255, or one bit
    FOLDER/saliency/ID.png               salient above 127, or one bit
    FOLDER/train.txt, validation.txt     ids, one a line; without these, every tenth image by name is for validation

Any of the tasks will do. `dataset.yaml` names those that there are, and says what their files mean:

    tasks:
      semseg:
        classes: [road, building, tree]  # ids 0, 1, 2 in the files; or {7: road, 11: building}
        ignored: 255                     # the id that marks pixels without a class; 255 if not given
      depth:
        unit: millimetre                 # or metre, centimetre, or a number, the metres of a unit; metre if not given
      normal:
        axes: right-up-backward          # or right-down-forward, which it is if not given
      boundary:
      saliency:
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import yaml

from transformers_sem.task_kinds import CLASS_IDS

from ..tasks import TASKS, get_task
from .files import FrameReader, check_depth, find_root, read_colours, read_grey, read_list, read_normals, read_values
from .sources import Frame, Maps, Source, SourceBuilder, SourceConfig


SETTINGS_NAME = "dataset.yaml"
RULE = f"the folder that has images/ and {SETTINGS_NAME}, the one that contains it, or a tar archive of either"
LISTS = {"train": "train.txt", "validation": "validation.txt"}
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
MAP_ENDINGS = (".png", ".npy")
UNITS = {"metre": 1.0, "centimetre": 0.01, "millimetre": 0.001}
# What turns the axes of the files into ours, x right, y down, z forward.
AXES = {"right-down-forward": (1, 1, 1), "right-up-backward": (1, -1, -1)}
# A laser sees some hundred metres; beyond this the unit is wrong.
MAX_DEPTH = 1000.0
VALIDATION_STEP = 10
Settings = dict[str, dict[str, Any]]


def is_root(folder: Path) -> bool:
    """Whether a folder is a data set of one's own."""
    return (folder / "images").is_dir() and (folder / SETTINGS_NAME).is_file()


def find_source(data_dir: str | Path | None) -> Source:
    """Reads what a folder says of itself, and finds its files.

    Args:
        data_dir: The folder, the one that contains it, or a tar archive of either.

    Raises:
        ValueError: If `dataset.yaml` or a list is broken, or two files go by one name.
        FileNotFoundError: If there is no such folder, or a task in `dataset.yaml` has none.
    """
    root = find_root(data_dir, is_root, RULE)
    settings = read_settings(root / SETTINGS_NAME)
    images = find_files(root / "images", IMAGE_ENDINGS)
    maps = {task: find_files(root / task, MAP_ENDINGS) for task in settings}
    return Source(
        title=root.name,
        variant="a folder of one's own",
        root=root,
        frames={split: find_frames(root, names, images, maps) for split, names in read_splits(root, images).items()},
        columns=["image", *settings],
        class_names=class_names(settings),
        derived={},
        read=partial(read_frame, readers={task: build_reader(task, settings[task]) for task in settings}),
        official_sizes={},
        terms="",
    )


def read_settings(path: Path) -> Settings:
    """Reads `dataset.yaml`.

    Returns:
        Task to its settings.

    Raises:
        ValueError: If it is anything else.
    """
    try:
        description = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise ValueError(f"Cannot use {path}: it must be YAML; {error}. Mend it.") from error
    tasks = description.get("tasks") if isinstance(description, dict) else None
    if not isinstance(tasks, dict) or not tasks or set(description) != {"tasks"}:
        raise ValueError(
            f"Cannot use {path}: it must name the tasks, as in 'tasks: {{depth: {{unit: metre}}}}'; got {description!r}. "
            f"Known tasks are {sorted(TASKS)}."
        )
    settings = {task: values or {} for task, values in tasks.items()}
    try:
        for task, values in settings.items():
            check_settings(task, values)
    except ValueError as error:
        raise ValueError(f"Cannot use {path}: {error}") from error
    return settings


def check_settings(task: str, values: dict[str, Any]) -> None:
    """Checks what is said of one task.

    Raises:
        ValueError: If the task is unknown, or a setting is unknown, missing or impossible.
    """
    get_task(task)
    known = {"classes", "ignored"} if has_classes(task) else {"depth": {"unit"}, "normal": {"axes"}}.get(task, set())
    if not isinstance(values, dict) or set(values) - known:
        raise ValueError(f"The settings of {task} are {sorted(known) or 'none'}; got {values!r}.")
    if has_classes(task):
        check_classes(task, values.get("classes"), values.get("ignored", 255))
    unit = values.get("unit", "metre")
    if unit not in UNITS and not (isinstance(unit, int | float) and 0 < unit < float("inf")):
        raise ValueError(f"The unit of {task} is one of {list(UNITS)}, or a number of metres above 0; got {unit!r}.")
    axes = values.get("axes", next(iter(AXES)))
    if axes not in AXES:
        raise ValueError(f"The axes of {task} are one of {list(AXES)}; got {axes!r}.")


def check_classes(task: str, classes: Any, ignored: Any) -> None:
    """Checks the classes of one task.

    Raises:
        ValueError: If they are not distinct names, or their ids are not those of a file.
    """
    by_id = number_classes(classes) if isinstance(classes, list | dict) else {}
    names = list(by_id.values())
    if not 1 <= len(names) <= 255 or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(
            f"The classes of {task} are 1 to 255 distinct names, as in 'classes: [road, tree]' or 'classes: {{7: road}}'; "
            f"got {classes!r}. Put names that YAML takes for something else, such as yes, in quotes."
        )
    ids = [*by_id, ignored]
    if not all(isinstance(index, int) and 0 <= index <= 65535 for index in ids) or ignored in by_id:
        raise ValueError(
            f"The ids of {task} are whole numbers 0..65535, and none of them is the ignored one; got {list(by_id)} and "
            f"ignored {ignored!r}."
        )


def has_classes(task: str) -> bool:
    """Whether the labels of a task are ids of classes."""
    return get_task(task).kind is CLASS_IDS


def number_classes(classes: list[str] | dict[int, str]) -> dict[int, str]:
    """Id in the files to name."""
    return dict(classes) if isinstance(classes, dict) else dict(enumerate(classes))


def class_names(settings: Settings) -> dict[str, list[str]]:
    """Names of the classes of each task that has any, in the order of the ids in rows."""
    return {
        task: list(number_classes(values["classes"]).values())
        for task, values in settings.items()
        if has_classes(task)
    }


def find_files(folder: Path, endings: tuple[str, ...]) -> dict[str, str]:
    """Finds the files of a folder by their ids.

    Raises:
        FileNotFoundError: If there is no such folder, or nothing in it.
        ValueError: If two files go by one id.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"Every task in {SETTINGS_NAME} needs a folder of its name; there is no {folder}.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in endings and path.name[0] != ".")
    files = {path.stem: str(path) for path in paths}
    if not files:
        raise FileNotFoundError(f"{folder} needs files that end in {', '.join(endings)}; there are none.")
    twice = [str(path) for path in paths if files[path.stem] != str(path)]
    if twice:
        raise ValueError(
            f"An id has one file in a folder; these have another with the same name: {twice[:5]}. Remove one."
        )
    return files


def read_splits(root: Path, images: dict[str, str]) -> dict[str, list[str]]:
    """Reads the lists of ids, or, where there are none, cuts the images into splits.

    Raises:
        ValueError: If there are too few images.
        FileNotFoundError: If one of the lists is missing.
    """
    if any((root / path).is_file() for path in LISTS.values()):
        return {split: read_list(root / path) for split, path in LISTS.items()}
    names = list(images)
    if len(names) < 2:
        raise ValueError(f"Training and validation need an image each; {root}/images has {len(names)}. Add more.")
    held_out = names[::VALIDATION_STEP]
    return {"train": [name for name in names if name not in set(held_out)], "validation": held_out}


def find_frames(root: Path, names: list[str], images: dict[str, str], maps: dict[str, dict[str, str]]) -> list[Frame]:
    """Finds the files of frames; those that are missing are named as they should be called."""
    return [
        {
            "id": name,
            "image": images.get(name, f"{root}/images/{name}{IMAGE_ENDINGS[0]}"),
            **{task: files.get(name, f"{root}/{task}/{name}{MAP_ENDINGS[0]}") for task, files in maps.items()},
        }
        for name in names
    ]


def build_reader(task: str, settings: dict[str, Any]) -> Callable[[str], np.ndarray]:
    """What reads the maps of a task."""
    if has_classes(task):
        ids = tuple(number_classes(settings["classes"]))
        return partial(read_classes, ids=ids, ignored=settings.get("ignored", 255))
    unit, axes = settings.get("unit", "metre"), settings.get("axes", next(iter(AXES)))
    readers = {
        "depth": partial(read_depth, unit=unit),
        "normal": partial(read_turned_normals, signs=AXES[axes]),
        "boundary": read_grey,
        "saliency": read_mask,
    }
    return readers.get(task, read_values)


def read_classes(path: str, ids: tuple[int, ...], ignored: int) -> np.ndarray:
    """Turns the ids of a file into 0, 1, ..., and the ignored one into 255, uint8 `(height, width)`."""
    labels = read_values(path, palette=True)
    if labels.dtype.kind not in "iu" or labels.ndim != 2:
        raise ValueError(f"ids must be whole numbers (height, width); got {labels.dtype} {labels.shape}")
    unknown = np.setdiff1d(labels, [*ids, ignored])
    if len(unknown) > 0:
        raise ValueError(
            f"ids must be those of the classes in {SETTINGS_NAME}, {list(ids)}, or the ignored {ignored}; got "
            f"{unknown[:5].tolist()}"
        )
    table = np.full(65536, 255, np.uint8)
    table[list(ids)] = np.arange(len(ids))
    return table[labels]


def read_depth(path: str, unit: str | float) -> np.ndarray:
    """Reads depth in any unit as metres `(height, width)`, float32, NaN where unknown."""
    values = read_values(path)
    if values.dtype.kind not in "iuf" or values.ndim != 2:
        raise ValueError(f"depth must be numbers (height, width); got {values.dtype} {values.shape}")
    depth = values * UNITS.get(unit, unit)
    if np.nanmax(depth, initial=0.0) > MAX_DEPTH and np.isfinite(np.nanmax(depth)):
        raise ValueError(
            f"depth must be at most {MAX_DEPTH:g} metres; got {np.nanmax(depth):g} in the unit {unit!r}: check the unit in "
            f"{SETTINGS_NAME}"
        )
    return check_depth(depth, MAX_DEPTH)


def read_turned_normals(path: str, signs: tuple[int, int, int]) -> np.ndarray:
    """Reads normals as 8-bit codes `(height, width, 3)` of vectors in our axes."""
    codes = read_normals(path)
    return np.where(np.array(signs) > 0, codes, 255 - codes)


def read_mask(path: str) -> np.ndarray:
    """Turns grey levels into ids 0 and 1, uint8 `(height, width)`."""
    return (read_grey(path) > 127).astype(np.uint8)


def read_frame(frame: Frame, readers: dict[str, Callable[[str], np.ndarray]]) -> Maps:
    """Reads the image and the maps of one frame.

    Raises:
        BrokenFrameError: If files cannot be read, hold what they should not, or are not of the image's size.
    """
    reader = FrameReader(frame["id"])
    reader.read(frame["image"], read_colours)
    maps = {task: reader.read(frame[task], read) for task, read in readers.items()}
    reader.finish()
    return {"image": Path(frame["image"]).read_bytes(), **maps}


class FolderConfig(SourceConfig):
    """`data_dir` is what `find_source` takes."""

    find_source = staticmethod(find_source)

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Name the cache by `dataset.yaml` too."""
        settings = read_settings(find_root(self.data_dir, is_root, RULE) / SETTINGS_NAME)
        return super().create_config_id({**config_kwargs, "settings": settings}, custom_features)


class Folder(SourceBuilder):
    """A folder of images, maps and `dataset.yaml`, from `data_dir`."""

    BUILDER_CONFIG_CLASS = FolderConfig

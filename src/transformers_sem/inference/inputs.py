"""Images, videos and cameras named on a command line."""

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image


VIDEO_ENDINGS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
# written by phones; listed so that without the extra `heic` they are reported as unreadable, not skipped silently
PHONE_ENDINGS = {".heic", ".heif"}
# What a run writes to the output folder
RESULT_FOLDERS = ("panels", "maps", "raw", "inside", "videos", "json")
UNFINISHED = re.compile("unfinished_[0-9a-f]{12}_")  # names of `atomic_write`
RESULT_ENDINGS = (".png", ".npy", ".npz", ".json", ".mp4")


@dataclass(frozen=True)
class InputItem:
    """An image file, a video file or a camera to predict.

    Args:
        path (`Path`): The file, or the number of the camera.
        name (`str`): Name of its output files, which may include folders.
        kind (`"image"`, `"video"` or `"camera"`): How it is read.
    """

    path: Path
    name: str
    kind: Literal["image", "video", "camera"]


def find_inputs(inputs: list[str], output: Path) -> list[InputItem]:
    """Finds the images, videos and cameras that the inputs name.

    Args:
        inputs (`list[str]`): Files; folders, which are searched recursively without hidden files; patterns such as
            `"shots/**/*.jpg"`; numbers of cameras.
        output (`Path`): The output folder. Within an input it is not searched; where it is an input itself, or a pattern
            matches files in it, the results of earlier runs are left out.

    Returns:
        `list[InputItem]`: sorted within each input, each file once. A name is the path relative to the deepest folder that
        contains all inputs, without the ending; names that would be equal, or that of a folder, keep their endings.

    Raises:
        FileNotFoundError: If an input does not exist, or no input contains an image or a video.
        ValueError: If an input is a result in the output folder.
    """
    cameras = [InputItem(Path(text), f"camera{text}", "camera") for text in inputs if is_camera(text)]
    paths, bases = {}, []  # keyed by absolute path, so that a file named twice is predicted once
    results = earlier_results(output)
    for text in inputs:
        for path in [] if is_camera(text) else expand_pattern(text, results):
            bases.append(os.path.abspath(path if os.path.isdir(path) else path.parent))
            found = walk(path, output) if os.path.isdir(path) else [path]
            paths.update((os.path.abspath(file), file) for file in found if os.path.realpath(file) not in results)
    items = name_items(list(paths.values()), bases)
    names = {item.name for item in items}
    inputs_only = [item.path for item in items if not is_unlisted_result(item.path, output, names)]
    if not inputs_only and not cameras:
        raise FileNotFoundError(f"There is no image and no video in {', '.join(inputs)}.")
    return name_items(inputs_only, bases) + cameras


def is_camera(text: str) -> bool:
    """Whether an input is the number of a camera. An existing file of that name takes precedence."""
    return text.isdecimal() and not os.path.exists(text)


def expand_pattern(text: str, results: set[str]) -> list[Path]:
    """Returns the file or folder of this name, or those that match the pattern, without results of earlier runs.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the name is that of a result.
    """
    if os.path.exists(text):
        if os.path.realpath(text) in results:
            raise ValueError(
                f"--input takes images and videos; {text!r} is a result in the output folder. Choose another --output."
            )
        return [Path(text)]
    paths = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
    paths = [path for path in paths if os.path.isdir(path) or path.suffix.lower() in known_endings()]
    paths = [path for path in paths if os.path.realpath(path) not in results]
    if not paths:
        raise FileNotFoundError(
            f"There is no file or folder {text!r}; --input takes images, videos, folders of them, patterns and the numbers of "
            "cameras."
        )
    return paths


def earlier_results(output: Path) -> set[str]:
    """Returns the real paths of the files that the descriptions of earlier runs in the output folder list."""
    results = set()
    for path in (output / "json").rglob("*.json"):
        try:
            results.update(os.path.realpath(output / name) for name in json.loads(path.read_bytes())["files"])
        except (OSError, ValueError, KeyError, TypeError):  # not one that a run wrote
            continue
    return results


def is_unlisted_result(path: Path, output: Path, names: set[str]) -> bool:
    """Whether a file is a result of one of the items by its name, or an unfinished one: a stopped run lists neither."""
    real_path, real_output = Path(os.path.realpath(path)), Path(os.path.realpath(output))
    if not real_path.is_relative_to(real_output):
        return False
    folder, *parts = real_path.relative_to(real_output).parts or [""]
    parts = parts[1:] if folder == "maps" else parts  # maps/TASK/NAME.png
    if folder not in RESULT_FOLDERS or not parts:
        return False
    return UNFINISHED.match(parts[-1]) is not None or Path(*parts).with_suffix("").as_posix() in names


def known_endings() -> set[str]:
    """Returns the endings of the files that are taken from a folder."""
    image_endings = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
    return (image_endings | PHONE_ENDINGS | VIDEO_ENDINGS) - {".pdf"}


def walk(folder: Path, output: Path) -> Iterator[Path]:
    """Yields the images and videos in a folder and its subfolders, sorted, then the folders that cannot be listed."""
    endings, unreadable = known_endings(), []
    for parent, folders, files in os.walk(folder, onerror=lambda error: unreadable.append(Path(error.filename))):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and Path(parent, name).resolve() != output.resolve()
        )
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in endings:
                yield Path(parent, name)
    yield from unreadable


def name_items(paths: list[Path], bases: list[str]) -> list[InputItem]:
    """Names files by their paths relative to the deepest folder that contains all `bases`."""
    base = os.path.commonpath(bases) if bases else ""
    full_names = [Path(os.path.relpath(os.path.abspath(path), base)) for path in paths]
    short_names = [name.with_suffix("").as_posix() for name in full_names]
    # Some file systems know no case: IMG.jpg and img.png would have results of one name
    taken = Counter(map(str.casefold, [*short_names, *(name.as_posix() for name in full_names if name.suffix)]))
    folders = {folder.as_posix() for name in full_names for folder in name.parents}
    for short_name in short_names:  # a result of one item must not have the name of the folder of another
        taken[short_name.casefold()] += any(f"{short_name}{ending}" in folders for ending in RESULT_ENDINGS)
    return [
        InputItem(
            path,
            full_name.as_posix() if taken[short_name.casefold()] > 1 else short_name,
            "video" if path.suffix.lower() in VIDEO_ENDINGS and not os.path.isdir(path) else "image",
        )
        for path, full_name, short_name in zip(paths, full_names, short_names, strict=True)
    ]

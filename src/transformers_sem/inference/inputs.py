"""Images, videos and cameras named on a command line."""

import glob
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image


VIDEO_ENDINGS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
# written by phones; listed so that they are reported as unreadable, not skipped silently
PHONE_ENDINGS = {".heic", ".heif"}


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
        output (`Path`): The output folder, which is never searched.

    Returns:
        `list[InputItem]`: sorted within each input, each file once. A name is the path relative to the deepest folder that
        contains all inputs, without the ending; names that would be equal keep their endings.

    Raises:
        FileNotFoundError: If an input does not exist, or no input contains an image or a video.
    """
    cameras = [InputItem(Path(text), f"camera{text}", "camera") for text in inputs if is_camera(text)]
    paths, bases = {}, []  # keyed by absolute path, so that a file named twice is predicted once
    for text in inputs:
        for path in [] if is_camera(text) else expand_pattern(text):
            bases.append(os.path.abspath(path if path.is_dir() else path.parent))
            found = walk(path, output) if path.is_dir() else [path]
            paths.update((os.path.abspath(file), file) for file in found)
    if not paths and not cameras:
        raise FileNotFoundError(f"There is no image and no video in {', '.join(inputs)}.")
    return name_items(list(paths.values()), bases) + cameras


def is_camera(text: str) -> bool:
    """Whether an input is the number of a camera. An existing file of that name takes precedence."""
    return text.isdecimal() and not os.path.exists(text)


def expand_pattern(text: str) -> list[Path]:
    """Returns the file or folder of this name, or those that match the pattern.

    Raises:
        FileNotFoundError: If there is none.
    """
    if os.path.exists(text):
        return [Path(text)]
    paths = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
    paths = [path for path in paths if path.is_dir() or path.suffix.lower() in known_endings()]
    if not paths:
        raise FileNotFoundError(
            f"There is no file or folder {text!r}; --input takes images, videos, folders of them, patterns and the numbers of "
            "cameras."
        )
    return paths


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
    taken = Counter(short_names) + Counter(name.as_posix() for name in full_names if name.suffix)
    return [
        InputItem(
            path,
            full_name.as_posix() if taken[short_name] > 1 else short_name,
            "video" if path.suffix.lower() in VIDEO_ENDINGS and not path.is_dir() else "image",
        )
        for path, full_name, short_name in zip(paths, full_names, short_names, strict=True)
    ]

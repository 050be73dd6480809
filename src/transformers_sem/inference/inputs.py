"""What a person names on a command line, as a list of photos, videos and cameras, each with a name for its results."""

import glob
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image


VIDEO_ENDINGS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
# What phones write: better named as unreadable than left out without a word
PHONE_ENDINGS = {".heic", ".heif"}


@dataclass(frozen=True)
class Source:
    """Something to predict.

    Args:
        path (`Path`): The file; of a camera its number.
        name (`str`): The name of its results, with the folders between it and the other sources.
        kind (`"photo"`, `"video"` or `"camera"`): How it is read.
    """

    path: Path
    name: str
    kind: Literal["photo", "video", "camera"]


def find_sources(inputs: list[str], output: Path) -> list[Source]:
    """Finds all photos and videos.

    Args:
        inputs (`list[str]`): Files; folders, which are searched with the folders in them, hidden ones left out; patterns
            such as `"shots/**/*.jpg"`; numbers of cameras.
        output (`Path`): A folder for results, never searched.

    Returns:
        `list[Source]`: sorted within each input; each file once. A name is the path from the deepest folder that holds
        all inputs, without the ending; where two would share it, their endings are kept.

    Raises:
        FileNotFoundError: If an input is not there, or there is nothing in any.
    """
    cameras = [Source(Path(text), f"camera{text}", "camera") for text in inputs if is_camera(text)]
    paths, bases = {}, []  # by absolute path, so that a file named twice is predicted once
    for text in inputs:
        for path in [] if is_camera(text) else expand_pattern(text):
            bases.append(os.path.abspath(path if path.is_dir() else path.parent))
            found = walk(path, output) if path.is_dir() else [path]
            paths.update((os.path.abspath(file), file) for file in found)
    if not paths and not cameras:
        raise FileNotFoundError(f"There is no picture and no video in {', '.join(inputs)}.")
    return name_sources(list(paths.values()), bases) + cameras


def is_camera(text: str) -> bool:
    """Whether an input is the number of a camera; a file of such a name is a file."""
    return text.isdecimal() and not os.path.exists(text)


def expand_pattern(text: str) -> list[Path]:
    """The file or folder of this name, or those that match it.

    Raises:
        FileNotFoundError: If there is none.
    """
    if os.path.exists(text):
        return [Path(text)]
    paths = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
    paths = [path for path in paths if path.is_dir() or path.suffix.lower() in known_endings()]
    if not paths:
        raise FileNotFoundError(
            f"There is no file or folder {text!r}; --input takes photos, videos, folders of them, patterns and cameras."
        )
    return paths


def known_endings() -> set[str]:
    """Endings of the files that are taken from a folder."""
    pictures = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return (pictures | PHONE_ENDINGS | VIDEO_ENDINGS) - {".pdf"}


def walk(folder: Path, output: Path) -> Iterator[Path]:
    """The pictures and videos in a folder and those in it, sorted; folders that cannot be listed stand for themselves."""
    endings, unreadable = known_endings(), []
    for parent, folders, files in os.walk(folder, onerror=lambda error: unreadable.append(Path(error.filename))):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and Path(parent, name).resolve() != output.resolve()
        )
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in endings:
                yield Path(parent, name)
    yield from unreadable


def name_sources(paths: list[Path], bases: list[str]) -> list[Source]:
    """Names results by the paths from the folder that holds all `bases`."""
    base = os.path.commonpath(bases) if bases else ""
    full_names = [Path(os.path.relpath(os.path.abspath(path), base)) for path in paths]
    short_names = [name.with_suffix("").as_posix() for name in full_names]
    taken = Counter(short_names) + Counter(name.as_posix() for name in full_names if name.suffix)
    return [
        Source(
            path,
            full_name.as_posix() if taken[short_name] > 1 else short_name,
            "video" if path.suffix.lower() in VIDEO_ENDINGS and not path.is_dir() else "photo",
        )
        for path, full_name, short_name in zip(paths, full_names, short_names, strict=True)
    ]

"""Files that are written whole or not at all, and locks of what one process writes at a time."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary file in the same folder, with the same suffix, and then renames it to `path`.

    After an error or a kill `path` is as it was before.
    """
    # Neither the name of another file nor, as names have 255 bytes at most, too long.
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]
    name = path.name if len(os.fsencode(path.name)) < 200 else path.suffix
    unfinished = path.with_name(f"unfinished_{digest}_{name}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, in UTF-8."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def locked(path: Path, rule: str, seconds: float = 0) -> Iterator[None]:
    """Locks a file in a `with` block. The file is created, and stays.

    Args:
        path (`Path`): The file, beside what it protects.
        rule (`str`): What one process does at a time, for the error message.
        seconds (`float`, *optional*, defaults to 0): How long to wait for another process.

    Raises:
        ValueError: If another process holds the lock.
        OSError: If the folder cannot be written to.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise ValueError(
            f"{rule}; another one holds {str(path)!r}. Wait for it or stop it; ending its launcher is not enough."
        ) from error
    except OSError as error:
        raise OSError(
            f"Cannot write to the folder {str(path.parent)!r}: {error.strerror or error}. Choose another one, or change its "
            "permissions."
        ) from error
    try:
        yield
    finally:  # left to the garbage collector, the lock would live as long as the traceback of an error, which a notebook keeps
        lock.release()


@contextmanager
def plain_disk_errors(folder: Path) -> Iterator[None]:
    """Turns what libraries raise where they cannot write, such as on a full disk, into one error that says what to do.

    Raises:
        OSError: In place of theirs.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch writes archives by its `inline_container.cc` and by streams of C++
        if isinstance(error, RuntimeError) and not re.search("inline_container|iostream", str(error)):
            raise
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise OSError(
            f"Cannot write to {folder}: {reason}. Free some space, and run the same command again; a training goes on from "
            "its last checkpoint."
        ) from error


def save_trained(
    model: PreTrainedModel,
    image_processor: ImageProcessingMixin,
    folder: Path,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Saves a model and its image processor in one folder, each file atomically.

    Args:
        model (`PreTrainedModel`): The model.
        image_processor (`ImageProcessingMixin`): Its image processor.
        folder (`Path`): Where `from_pretrained` will find both.
        weights (`dict[str, Tensor]`, *optional*): A state dict to save in place of the model's own.

    Raises:
        OSError: If they cannot be written, for example because the disk is full.
    """
    unfinished = folder / "unfinished_model"
    shutil.rmtree(unfinished, ignore_errors=True)
    with plain_disk_errors(folder):
        model.save_pretrained(unfinished, state_dict=weights)
        image_processor.save_pretrained(unfinished)
        for path in sorted(unfinished.iterdir()):
            os.replace(path, folder / path.name)
        unfinished.rmdir()

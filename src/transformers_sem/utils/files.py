"""Files that are written whole or not at all, and locks of what one process writes at a time."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary file in the same folder, with the same suffix, and then renames it to `path`.

    After an error or a kill `path` is as it was before.
    """
    # A hash, because a longer name may be too long, and may be that of another file.
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    unfinished = path.with_name(f"unfinished_{digest}{path.suffix}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def lock_file(path: Path, rule: str, seconds: float = 0) -> FileLock:
    """Locks a file until the returned lock is released or this process ends. The file is created, and stays.

    Args:
        path (`Path`): The file, beside what it protects.
        rule (`str`): What one process does at a time, for the error message.
        seconds (`float`, *optional*, defaults to 0): How long to wait for another process.

    Raises:
        ValueError: If another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise ValueError(
            f"{rule}; another one holds {str(path)!r}. Wait for it or stop it; ending its launcher is not enough."
        ) from error
    return lock


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
    """
    unfinished = folder / "unfinished_model"
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished, state_dict=weights)
    image_processor.save_pretrained(unfinished)
    for path in sorted(unfinished.iterdir()):
        os.replace(path, folder / path.name)
    unfinished.rmdir()

"""Files that are written whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary file in the same folder, with the same suffix, and then renames it to `path`.

    After an error or a kill `path` is as it was before.
    """
    unfinished = path.with_name(f"unfinished_{path.name}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


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

"""What a run leaves behind; every file is written beside and then renamed, so none is ever half there."""

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
    """Gives the path of an unfinished file in the same folder, of the same kind, and moves it to `path` once it is written."""
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
    """Writes model and image processor, so that `from_pretrained(folder)` finds both.

    `weights` are saved in the place of the model's own.
    """
    unfinished = folder / "unfinished_model"
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished, state_dict=weights)
    image_processor.save_pretrained(unfinished)
    for path in sorted(unfinished.iterdir()):
        os.replace(path, folder / path.name)
    unfinished.rmdir()

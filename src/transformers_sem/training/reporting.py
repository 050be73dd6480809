"""What a run leaves behind; every file is written beside and then renamed, so none is ever half there."""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin

from ..panels import Prediction, prediction_panel
from ..tasks import get_task


TRAINING_NAME = "training.json"


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
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


def save_report(path: Path, **facts) -> None:
    """Writes scores and how they came about as JSON: the `facts`, then command, commit, versions and hardware."""
    report = {**facts, "command": shlex.join(["python", *sys.argv]), "environment": environment()}
    with written_beside(path) as unfinished:
        unfinished.write_text(json.dumps(report, indent=2) + "\n")


def read_training(folder: str | Path) -> dict | None:
    """How the weights in a folder came about, as the training noted it; `None` where it did not."""
    path = Path(folder) / TRAINING_NAME
    return json.loads(path.read_text()) if path.is_file() else None


def save_image_scores(path: Path, image_scores: list[dict]) -> None:
    """Writes the scores of every image as a row of a Parquet table, null where an image has no labels of a task."""
    columns = dict.fromkeys(key for scores in image_scores for key in scores)
    with written_beside(path) as unfinished:
        pq.write_table(pa.table({key: [scores.get(key) for scores in image_scores] for key in columns}), unfinished)


def save_maps(folder: Path, name: str, maps: dict[str, Tensor]) -> dict[str, Path]:
    """Writes the predicted maps of one image, `folder/task/name.png`, values as `TaskSpec.encode` lays them down.

    A task without `encode` has its values in `.npy`. Returns the files, `{task: path}`.
    """
    paths = {}
    for task, values in maps.items():
        encode = get_task(task).encode
        paths[task] = path = folder / task / f"{name}{'.png' if encode else '.npy'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(path) as unfinished:
            if encode:
                encode(values.numpy()).save(unfinished)
            else:
                np.save(unfinished, values.numpy())
    return paths


def save_picture(path: Path, picture: Image.Image) -> None:
    """Writes a picture, of the format that its name says."""
    with written_beside(path) as unfinished:
        picture.save(unfinished)


def save_panel(path: Path, predictions: Iterable[Prediction], num_images: int = 4) -> None:
    """Draws the first images with their predictions and their ground truth."""
    save_picture(path, prediction_panel(list(islice(predictions, num_images))))


def environment() -> dict[str, str | None]:
    """Commit, versions and hardware, for reports."""
    packages = ("transformers-sem", "torch", "transformers", "timm", "datasets", "accelerate", "scipy", "numpy")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    hardware = gpu or f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    return {
        "commit": starting_commit(),
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "hardware": hardware,
    }


@cache
def starting_commit() -> str | None:
    """The commit at the first call, which scripts make when they start.

    Files may change while a program runs, and what it has loaded does not.
    """
    return git_commit()


def git_commit() -> str | None:
    """The commit of this code, `-dirty` appended where files differ from it; `None` where it is installed without."""
    # a virtual environment may lie in somebody else's repository: only one that knows this file is meant
    if run_git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return run_git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def run_git(*arguments: str) -> str | None:
    """What git prints about the folder of this file, or `None` where it cannot."""
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()

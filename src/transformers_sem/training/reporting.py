"""What a run leaves behind; every file is written beside and then renamed, so none is ever half there."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin

from ..panels import Prediction, prediction_panel


def save_trained(model: PreTrainedModel, image_processor: ImageProcessingMixin, folder: Path) -> None:
    """Writes model and image processor, so that `from_pretrained(folder)` finds both."""
    unfinished = folder / "unfinished_model"
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    image_processor.save_pretrained(unfinished)
    for path in sorted(unfinished.iterdir()):
        os.replace(path, folder / path.name)
    unfinished.rmdir()


def save_report(path: Path, scores: dict[str, float], constant_scores: dict[str, float], **facts) -> None:
    """Writes scores, those of the best constant predictor, and how they came about, as JSON."""
    report = {
        "scores": scores,
        "constant_scores": constant_scores,
        **facts,
        "command": " ".join(["python", *sys.argv]),
        "environment": environment(),
    }
    unfinished = path.with_name(f"unfinished_{path.name}")
    unfinished.write_text(json.dumps(report, indent=2) + "\n")
    os.replace(unfinished, path)


def save_panel(path: Path, predictions: Iterable[Prediction], num_images: int = 4) -> None:
    """Draws the first images with their predictions and their ground truth."""
    panel = prediction_panel(list(islice(predictions, num_images)))
    unfinished = path.with_name(f"unfinished_{path.name}")
    panel.save(unfinished)
    os.replace(unfinished, path)


def environment() -> dict[str, str]:
    """Versions and hardware, for reports."""
    packages = ("transformers-sem", "torch", "transformers", "timm", "datasets", "accelerate")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    hardware = gpu or f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    return {
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "hardware": hardware,
    }

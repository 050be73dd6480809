"""Snapshots: scores and predictions of a few validation images while a model trains.

Taking a snapshot changes nothing of the training: it draws no random number, changes no buffer, and every module returns to its
mode.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ..configuration_sem import SEMConfig
from ..data.benchmarks import Benchmark
from ..evaluation.evaluator import predict_rows
from ..evaluation.sums import MetricSums
from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..visualization.panels import Prediction, prediction_panel
from .history import History


NUM_DRAWN_IMAGES = 4
IMAGES_NAME = "validation/predictions"


@dataclass(kw_only=True)
class Snapshots:
    """Takes snapshots of a model on a few images, spread evenly over the validation rows.

    Args:
        image_processor (`SEMImageProcessor`): Image processor of the model.
        rows (`datasets.Dataset`): The validation rows.
        num_images (`int`): Number of rows to predict.
        benchmark (`Benchmark`): Benchmark of the rows; it says which labels count for a task.
        accelerator (`Accelerator`): Every rank predicts, because weights may be sharded; the main process logs.
        history (`History`): Gets the scores.
    """

    image_processor: SEMImageProcessor
    rows: datasets.Dataset
    num_images: int
    benchmark: Benchmark
    accelerator: Accelerator
    history: History

    def __post_init__(self):
        indices = np.linspace(0, len(self.rows) - 1, min(self.num_images, len(self.rows)))
        self.rows = self.rows.select(indices.round().astype(int))

    def take(self, model: SEMForMultiTaskDensePrediction, step: int) -> None:
        """Logs the scores of all images and a panel of the first few."""
        # A compiled model is not compiled once more for these shapes.
        with evaluation_mode(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            predictions = list(predict_rows(model, self.image_processor, self.rows, batch_size=1))
        self.history.write_scores(step, self._score(model.config, predictions))
        if self.accelerator.is_main_process:
            log_image(self.accelerator, prediction_panel(predictions[:NUM_DRAWN_IMAGES]), step)

    def _score(self, config: SEMConfig, predictions: list[Prediction]) -> dict[str, float]:
        kwargs = self.benchmark.task_metric_kwargs
        kwargs = {task: kwargs[task] for task in kwargs if task in config.task_num_labels}
        metric = MetricSums(config.task_num_labels, kwargs)
        for index, prediction in enumerate(predictions):
            references = self.benchmark.row_references(self.rows, index, prediction.labels)
            # Predictions that are not finite have no score, and must not end a training.
            scored = [t for t in metric.task_num_labels if t in references and is_finite(prediction.maps[t])]
            metric.add(
                {task: metric.image_statistics(task, prediction.maps[task], references[task]) for task in scored}
            )
        return metric.scores()


def log_evaluation(accelerator: Accelerator, report_path: Path, panel_path: Path, step: int) -> None:
    """Sends the scores of the final evaluation, of all validation images, and its panel to the trackers.

    Their names begin with that of the report.
    """
    if accelerator.is_main_process:
        scores = json.loads(report_path.read_text(encoding="utf-8"))["scores"]
        accelerator.log({f"{report_path.stem}/{name}": value for name, value in scores.items()}, step=step)
        with Image.open(panel_path) as panel:
            log_image(accelerator, panel, step, f"{report_path.stem}/predictions")


def log_image(accelerator: Accelerator, image: Image.Image, step: int, name: str = IMAGES_NAME) -> None:
    """Sends an image to the trackers that accelerate can send images to."""
    batch = np.asarray(image)[None]  # (1, height, width, 3)
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({name: batch}, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({name: batch}, step=step)


def is_finite(values: Tensor) -> bool:
    """Returns whether all values are finite."""
    return bool(values.isfinite().all())


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode, and then every module back in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode

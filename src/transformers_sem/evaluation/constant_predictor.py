"""The constant predictor: the baseline that ignores the image, and the start of the heads in training."""

import datasets
import torch
from accelerate import Accelerator
from torch import Tensor

from ..data.transforms import read_row
from ..losses import INVALID_ID
from ..task_kinds import CLASS_IDS
from ..tasks import get_task
from ..utils.cache import CachedResult
from ..utils.processes import progress


class ConstantPredictor:
    """The best constant prediction: the majority class, the mean of measurements and probabilities.

    It is the baseline that ignores the image.

    Args:
        task_num_labels (`dict[str, int]`): Head width of each task.
    """

    def __init__(self, task_num_labels: dict[str, int]):
        self.task_num_labels = task_num_labels
        self.sums = {task: torch.zeros(width, dtype=torch.float64) for task, width in task_num_labels.items()}
        self.counts = dict.fromkeys(task_num_labels, 0)

    def add(self, labels: dict[str, Tensor]) -> None:
        """Adds the labels of one image.

        Raises:
            ValueError: If a class id is beyond the head.
        """
        for task in self.task_num_labels:
            label = labels[task]
            if get_task(task).kind is CLASS_IDS:
                ids = label[label != INVALID_ID]
                if ids.numel() and ids.max() >= self.task_num_labels[task]:
                    raise ValueError(
                        f"Ids of {task} are from 0 to {self.task_num_labels[task] - 1}, {INVALID_ID} invalid; got {ids.max()}. "
                        "Map the ids of the data, or name all classes."
                    )
                self.sums[task] += torch.bincount(ids, minlength=self.task_num_labels[task]).cpu()
            else:
                values = label.cpu().double().reshape(-1, label.shape[-2] * label.shape[-1])  # (channels, pixels)
                values = values[:, (values.isfinite() & (values != INVALID_ID)).all(dim=0)]
                self.sums[task] = self.sums[task][: len(values)] + values.sum(dim=1)
                self.counts[task] += values.shape[1]

    def mean_label(self, task: str) -> Tensor:
        """Returns the share of each class `(num_labels,)`, or the mean of the values `(channels,)`; float32.

        Without a valid pixel all are 0.
        """
        return (self.sums[task] / max(self.num_pixels[task], 1)).float()

    @property
    def num_pixels(self) -> dict[str, int]:
        """Number of valid pixels of each task."""
        return {
            task: int(sums.sum()) if get_task(task).kind is CLASS_IDS else self.counts[task]
            for task, sums in self.sums.items()
        }

    def predict(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """Returns the constant maps `(height, width)` or `(channels, height, width)` of an image of `size`."""
        return {task: self._constant(task).expand(-1, *size).squeeze(0) for task in self.task_num_labels}

    def _constant(self, task: str) -> Tensor:
        mean_label = self.mean_label(task)
        return (mean_label.argmax() if get_task(task).kind is CLASS_IDS else mean_label).view(-1, 1, 1)

    def to_json(self) -> dict[str, dict]:
        """Returns the sums and counts of each task."""
        return {task: {"sums": sums.tolist(), "count": self.counts[task]} for task, sums in self.sums.items()}

    @classmethod
    def from_json(cls, values: dict[str, dict], task_num_labels: dict[str, int]) -> "ConstantPredictor":
        """Restores a predictor from what `to_json` returned."""
        constant = cls(task_num_labels)
        constant.sums = {task: torch.tensor(values[task]["sums"], dtype=torch.float64) for task in task_num_labels}
        constant.counts = {task: values[task]["count"] for task in task_num_labels}
        return constant


def fit_constant(
    rows: datasets.Dataset, task_num_labels: dict[str, int], accelerator: Accelerator
) -> ConstantPredictor:
    """Fits the constant predictor to the training rows, or loads it from the cache of `datasets`.

    It is the same on every rank.
    """
    cached = CachedResult("constant_predictor", (rows._fingerprint, task_num_labels))
    with accelerator.local_main_process_first(), cached.lock():
        if cached.read() is None:
            constant = ConstantPredictor(task_num_labels)
            for index in progress(range(len(rows)), len(rows), "constant predictor", accelerator):
                _, labels = read_row(rows, index, task_num_labels)
                constant.add(labels)
            cached.write(constant.to_json())
        return ConstantPredictor.from_json(cached.read(), task_num_labels)

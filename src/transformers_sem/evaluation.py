"""From predictions to numbers, and the constant predictor every model must beat."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .losses import INVALID_ID
from .tasks import get_task


class MultiTaskMetric:
    """Sums of statistics over images, for every task that has a metric.

    Args:
        task_num_labels (`dict[str, int]`): Head width of each task.
    """

    def __init__(self, task_num_labels: dict[str, int]):
        self.task_num_labels = {task: width for task, width in task_num_labels.items() if get_task(task).metric}
        self.statistics: dict[str, dict[str, Tensor]] = {}

    def add_batch(self, predictions: dict[str, Sequence[Tensor]], references: dict[str, Sequence[Tensor]]) -> None:
        """Adds images.

        Args:
            predictions (`dict[str, Sequence[Tensor]]`): For each task one map per image, in physical units.
            references (`dict[str, Sequence[Tensor]]`): For each task one label per image, of the same size.

        Raises:
            ValueError: If a task is missing, the numbers of images differ, or a prediction and its label differ in size.
        """
        for task, num_labels in self.task_num_labels.items():
            if task not in predictions or task not in references:
                raise ValueError(
                    f"Predictions and references need the task {task!r}; got {[*predictions]}, {[*references]}."
                )
            counts = len(predictions[task]), len(references[task])
            if counts[0] != counts[1]:
                raise ValueError(
                    f"Give one {task} label per prediction; got {counts[1]} labels for {counts[0]} predictions."
                )
            for prediction, reference in zip(predictions[task], references[task], strict=True):
                if prediction.shape[-2:] != reference.shape[-2:]:
                    raise ValueError(
                        f"A {task} prediction has the size of its label, {tuple(reference.shape[-2:])}; got "
                        f"{tuple(prediction.shape[-2:])}. Pass `target_sizes` to the post-processing."
                    )
                self._add(task, get_task(task).metric.statistics(prediction, reference, num_labels))

    def _add(self, task: str, statistics: dict[str, Tensor]) -> None:
        sums = self.statistics.setdefault(task, {})
        for name, value in statistics.items():
            sums[name] = sums.get(name, 0) + value.double().cpu()

    def reduce(self, reduce_sum: Callable[[Tensor], Tensor]) -> None:
        """Replaces every sum by its sum over ranks, as `reduce_sum` computes it."""
        for sums in self.statistics.values():
            for name, value in sums.items():
                sums[name] = reduce_sum(value)

    def compute(self) -> dict[str, float]:
        """All scores as `{"task/score": value}`: fractions, metres, degrees."""
        return {
            f"{task}/{name}": value
            for task, sums in self.statistics.items()
            for name, value in get_task(task).metric.scores(sums).items()
        }


class ConstantPredictor:
    """The best prediction that does not look at the image: majority class, mean depth, mean normal, boundary rate.

    Args:
        task_num_labels (`dict[str, int]`): Head width of each task.
    """

    def __init__(self, task_num_labels: dict[str, int]):
        self.task_num_labels = task_num_labels
        self.sums = {task: torch.zeros(width, dtype=torch.float64) for task, width in task_num_labels.items()}
        self.counts = dict.fromkeys(task_num_labels, 0)

    def add(self, labels: dict[str, Tensor]) -> None:
        """Learns from the labels of one image."""
        for task in self.task_num_labels:
            label = labels[task]
            if get_task(task).constant == "majority":
                ids = label[label != INVALID_ID]
                self.sums[task] += torch.bincount(ids, minlength=self.task_num_labels[task])
            else:
                values = label.double().reshape(-1, label.shape[-2] * label.shape[-1])  # (channels, pixels)
                values = values[:, (values.isfinite() & (values != INVALID_ID)).all(dim=0)]
                self.sums[task] = self.sums[task][: len(values)] + values.sum(dim=1)
                self.counts[task] += values.shape[1]

    def predict(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """The same map `(height, width)` or `(channels, height, width)` for every image of that size."""
        return {task: self._constant(task).expand(-1, *size).squeeze(0) for task in self.task_num_labels}

    def _constant(self, task: str) -> Tensor:
        if get_task(task).constant == "majority":
            return self.sums[task].argmax().view(1, 1, 1)
        return (self.sums[task] / max(self.counts[task], 1)).float().view(-1, 1, 1)


def main_scores(scores: dict[str, float]) -> dict[str, str]:
    """`{task: key of its main score}` for the tasks in `scores`."""
    tasks = dict.fromkeys(key.split("/")[0] for key in scores)
    return {task: f"{task}/{get_task(task).metric.main}" for task in tasks}


def format_report(scores: dict[str, float], constant_scores: dict[str, float]) -> str:
    """A table: every score beside that of the best constant predictor, the main score of each task marked."""
    main_keys = set(main_scores(scores).values())
    lines = [f"{'':2}{'score':<28}{'model':>10}{'constant':>10}"]
    for key, value in scores.items():
        mark = "* " if key in main_keys else "  "
        lines.append(f"{mark}{key:<28}{value:>10.4f}{constant_scores[key]:>10.4f}")
    return "\n".join(lines)

"""Sums of statistics over images, and the multi-task gain."""

import inspect
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from functools import partial
from numbers import Integral

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ..image_files import to_dense_tensor
from ..losses import INVALID_ID
from ..task_kinds import CLASS_IDS, PROBABILITY, is_black_and_white
from ..tasks import describe_widths, get_task
from .metrics import find_metric, metric_of, task_of


logger = logging.getLogger(__name__)

Sums = dict[str, dict[str, Tensor]]  # {task: {name: value}}, of one image, or summed over images in float64


class MetricSums:
    """Sums of statistics over images, for every task that has a metric. Only the sums are kept.

    Args:
        task_num_labels (`dict[str, int]`): Head width of each task; tasks without a metric are left out.
        task_metric_kwargs (`dict[str, dict]`, *optional*): Keyword arguments of the statistics of a task.

    Raises:
        ValueError: If a task is unknown, no head has a width, or keyword arguments are given for a task that is not
            scored, or are not those of its statistics.
    """

    def __init__(self, task_num_labels: Mapping[str, int], task_metric_kwargs: Mapping[str, Mapping] | None = None):
        self.task_num_labels = {
            task: width for task, width in task_num_labels.items() if find_metric(get_task(task).name)
        }
        self.task_metric_kwargs = dict(task_metric_kwargs or {})
        unknown = sorted(set(self.task_metric_kwargs) - set(self.task_num_labels))
        if unknown:
            raise ValueError(
                f"`task_metric_kwargs` is for tasks of the metric, {[*self.task_num_labels]}; got {unknown}."
            )
        for task, width in self.task_num_labels.items():
            check_metric(task, width, self.task_metric_kwargs.get(task, {}))
        self.reset()

    def reset(self) -> None:
        """Removes all images."""
        self.num_images = 0
        self.sums: Sums = {}

    def image_statistics(self, task: str, prediction: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """Returns the statistics of one task of one image."""
        try:
            return self._call(task, prediction, reference)()
        except ValueError as error:
            raise ValueError(f"Cannot score {task}: {error}") from error

    def start(self, task: str, prediction: Tensor, reference: Tensor, pool: Executor) -> dict[str, Tensor] | Future:
        """Returns the statistics, or for a slow metric their future in a process of the `pool`."""
        if find_metric(task).is_slow:
            return pool.submit(self._call(task, prediction, reference))
        return self.image_statistics(task, prediction, reference)

    def _call(self, task: str, prediction: Tensor, reference: Tensor) -> Callable[[], dict[str, Tensor]]:
        metric = find_metric(task)
        pair = as_map(prediction), as_map(reference)
        # Labels of the image processor are never 8-bit, nor are label maps of PASCAL-Context, where 255 is a class
        if pair[1].dtype == torch.uint8 and self._has_two_values(task) and is_black_and_white(pair[1]):
            raise ValueError(
                f"A {task} label holds values from 0 to 1, {INVALID_ID} invalid; got an 8-bit map of 0 and 255 alone, where 255 "
                "is white. Divide it by 255."
            )
        if metric.is_slow:
            pair = to_array(pair[0]), to_array(pair[1])
        return partial(metric.statistics, *pair, self.task_num_labels[task], **self.task_metric_kwargs.get(task, {}))

    def _has_two_values(self, task: str) -> bool:
        """Whether labels are masks of two values."""
        kind = get_task(task).kind
        return kind is PROBABILITY or (kind is CLASS_IDS and self.task_num_labels[task] == 2)

    def add(self, statistics: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Adds the statistics of one image, `{task: statistics}`."""
        self.num_images += 1
        self._add_up(statistics)

    def _add_up(self, sums: Mapping[str, Mapping[str, Tensor]]) -> None:
        for task, values in sums.items():
            totals = self.sums.setdefault(task, {})
            for name, value in values.items():
                totals[name] = totals.get(name, 0) + torch.as_tensor(value).cpu().double()  # MPS has no float64

    def merge(self, accelerator: Accelerator) -> None:
        """Adds up the sums of all ranks, on all ranks. A rank without an image is allowed."""
        if accelerator.num_processes > 1:
            parts = gather_object([(self.num_images, self.sums)])
            self.reset()
            for num_images, sums in parts:
                self.num_images += num_images
                self._add_up(sums)

    def scores(self) -> dict[str, float]:
        """Returns `{"task/score": value}` in fractions, metres and degrees.

        A task without a valid pixel has no scores, and a warning names it.
        """
        scores = scores_of(self.sums)
        for task in self.task_num_labels:
            if not any(key.startswith(f"{task}/") for key in scores):
                logger.warning("No image has a valid pixel of %s: it has no scores.", task)
        return scores

    def class_scores(self) -> dict[str, list[float]]:
        """Returns `{task: [score of each class]}` for the tasks with a score per class."""
        metrics = {task: find_metric(task) for task in self.sums}
        return {
            task: metric.per_class(self.sums[task]).tolist()
            for task, metric in metrics.items()
            if metric.per_class and metric.reduce(self.sums[task])
        }


def check_metric(task: str, num_labels: int, arguments: Mapping) -> None:
    """Checks the head width of a task, and the keyword arguments of its statistics.

    Raises:
        ValueError: If no head has the width, or the statistics do not have the arguments.
    """
    kind = get_task(task).kind
    is_number = isinstance(num_labels, Integral) and not isinstance(num_labels, bool)
    if not is_number or num_labels not in kind.widths:
        raise ValueError(
            f"A head for {kind.values} has {describe_widths(kind.widths)}; got {num_labels!r} for {task}. Correct it."
        )
    try:
        inspect.signature(find_metric(task).statistics).bind(None, None, num_labels, **arguments)
    except TypeError as error:
        raise ValueError(
            f"`task_metric_kwargs[{task!r}]` are arguments of its statistics: {error}. Correct or remove them."
        ) from error


def as_map(values: Tensor | np.ndarray) -> Tensor:
    """Converts a map to a tensor; unsigned integers become int64, because torch supports few operations on them.

    Raises:
        ValueError: If the map is neither a tensor nor an array of numbers.
    """
    values = to_dense_tensor(values, "A map")
    is_unsigned = values.dtype in (torch.uint16, torch.uint32, torch.uint64)
    return values.long() if is_unsigned else values


def to_array(values: Tensor) -> np.ndarray:
    """Converts a tensor of any device to a NumPy array; bfloat16, which NumPy lacks, becomes float32."""
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()


def scores_of(sums: Mapping[str, Mapping[str, Tensor]]) -> dict[str, float]:
    """Returns `{"task/score": value}` of sums over images, or of the statistics of one image."""
    return {
        f"{task}/{name}": value
        for task, statistics in sums.items()
        for name, value in find_metric(task).reduce(statistics).items()
    }


def multi_task_gain(results: Mapping[str, float], single_task_results: Mapping[str, float]) -> float:
    """Computes Delta_m, the mean relative improvement of the main scores over single-task models.

    Paper, Sec. 4.1: 100 / T * sum over tasks of (-1)^l (M - M_single) / M_single, l = 1 where lower is better.

    Args:
        results (`dict[str, float]`): `{"task/score": value}` as `MultiTaskMetric` returns it. Only the main score of each
            task is used.
        single_task_results (`dict[str, float]`): The same for the single-task models.

    Returns:
        `float`: The gain in percent.

    Raises:
        ValueError: If there is no main score, one is missing on either side, or a ratio is not finite.
    """
    results, single_task_results = (
        {key: values[key] for key in main_scores(values).values() if key in values}
        for values in (results, single_task_results)
    )
    if not results or set(results) != set(single_task_results):
        raise ValueError(
            f"The gain compares the same main scores of both; got {sorted(results)} and {sorted(single_task_results)}."
        )
    gains = []
    for key, single in single_task_results.items():
        gain = (results[key] - single) / single if single > 0 else float("nan")
        if not abs(gain) < float("inf"):
            raise ValueError(f"The gain of {key} needs numbers, the second above 0; got {results[key]} and {single}.")
        gains.append(-gain if metric_of(key).lower_is_better else gain)
    return 100 * sum(gains) / len(gains)


def main_scores(scores: dict[str, float]) -> dict[str, str]:
    """Returns `{task: key of its main score}` for the tasks in `scores`."""
    tasks = dict.fromkeys(map(task_of, scores))
    return {task: f"{task}/{find_metric(task).main}" for task in tasks if find_metric(task)}


def format_report(scores: dict[str, float], constant_scores: dict[str, float]) -> str:
    """Formats a table of all scores beside those of the constant predictor; main scores are marked with a star."""
    main_keys = set(main_scores(scores).values())
    lines = [f"{'':2}{'score':<28}{'model':>10}{'constant':>10}"]
    for key, value in scores.items():
        mark = "* " if key in main_keys else "  "
        lines.append(f"{mark}{key:<28}{value:>10.4f}{constant_scores[key]:>10.4f}")
    return "\n".join(lines)

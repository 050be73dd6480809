"""All scores of the tasks as a metric of the `evaluate` library."""

from collections.abc import Mapping, Sequence

import datasets
import evaluate
from accelerate import Accelerator
from torch import Tensor

from .sums import MetricSums


DESCRIPTION = """\
Scores of multi-task dense prediction, from sums of statistics over images. Only the sums are kept, so a set of any size
streams through."""
INPUTS_DESCRIPTION = """
Args:
    predictions (`dict[str, Sequence[Tensor]]`): For each task one map per image, in physical units. Other tasks than the
        metric's own are ignored.
    references (`dict[str, Sequence[Tensor]]`): For each task one label per image, in the task's format and of the
        prediction's size; for boundaries an integer label map too.
Raises:
    ValueError: If a task is missing, numbers of images or sizes differ, or a map holds values that are not allowed.
"""


class MultiTaskMetric(evaluate.Metric):
    """All scores of a set of images as a metric of the `evaluate` library.

    ```python
    metric = MultiTaskMetric(model.config.task_num_labels)
    for batch in batches:
        metric.add_batch(predictions={task: maps}, references={task: labels})
    scores = metric.compute()  # {"semseg/miou": 0.57, "depth/rmse": 0.49, ...}: fractions, metres, degrees
    ```

    A metric of some tasks takes these from the predictions and references, also in `evaluate.combine`.

    Args:
        task_num_labels (`dict[str, int]`): Head width of each task; tasks without a metric are left out.
        task_metric_kwargs (`dict[str, dict]`, *optional*): Keyword arguments of a task's statistics, such as
            `max_distance=0.0075` of boundaries on PASCAL-Context; the defaults are those of NYUD-v2.
        **kwargs: As `evaluate.Metric` takes them.

    Raises:
        ValueError: If a task is unknown, or keyword arguments are given for a task that is not scored.
    """

    def __init__(
        self, task_num_labels: Mapping[str, int], task_metric_kwargs: Mapping[str, Mapping] | None = None, **kwargs
    ):
        self.metric_sums = MetricSums(task_num_labels, task_metric_kwargs)
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        maps = {task: datasets.Value("binary") for task in self.metric_sums.task_num_labels}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def __len__(self) -> int:
        """Returns the number of images added so far."""
        return self.metric_sums.num_images

    def add(self, prediction: Mapping | None = None, reference: Mapping | None = None, **kwargs) -> None:
        """Adds one image: `{task: map}` and `{task: label}`."""
        # `evaluate.combine` uses plural names here, too
        prediction, reference = kwargs.get("predictions", prediction), kwargs.get("references", reference)
        check_dicts(prediction, reference)
        self.add_batch(
            predictions={task: [value] for task, value in prediction.items()},
            references={task: [value] for task, value in reference.items()},
        )

    def add_batch(
        self, predictions: Mapping[str, Sequence[Tensor]], references: Mapping[str, Sequence[Tensor]]
    ) -> None:
        """Adds images. A batch that raises adds none."""
        check_dicts(predictions, references)
        pairs = {task: self._pairs(task, predictions, references) for task in self.metric_sums.task_num_labels}
        numbers = {task: len(task_pairs) for task, task_pairs in pairs.items()}
        if len(set(numbers.values())) > 1:
            raise ValueError(f"Every task needs the same number of images; got {numbers}.")
        images = range(max(numbers.values(), default=0))
        batch = [
            {task: self.metric_sums.image_statistics(task, *task_pairs[index]) for task, task_pairs in pairs.items()}
            for index in images
        ]
        for statistics in batch:
            self.metric_sums.add(statistics)

    def _pairs(self, task: str, predictions: Mapping, references: Mapping) -> list[tuple[Tensor, Tensor]]:
        if task not in predictions or task not in references:
            raise ValueError(
                f"Predictions and references need the task {task!r}; got {[*predictions]} and {[*references]}."
            )
        counts = len(predictions[task]), len(references[task])
        if counts[0] != counts[1]:
            raise ValueError(
                f"Give one {task} label per prediction; got {counts[1]} labels for {counts[0]} predictions."
            )
        return list(zip(predictions[task], references[task], strict=True))

    def compute(
        self,
        *,
        predictions: Mapping[str, Sequence[Tensor]] | None = None,
        references: Mapping[str, Sequence[Tensor]] | None = None,
        accelerator: Accelerator | None = None,
    ) -> dict[str, float]:
        """Returns all scores as `{"task/score": value}` and resets; `predictions` and `references` are added first.

        With an `accelerator`, the images of all its ranks are counted, and every rank returns the same. A task without a
        valid pixel has no scores, and a warning names it.
        """
        if predictions is not None or references is not None:
            self.add_batch(predictions, references)
        if accelerator is not None:
            self.metric_sums.merge(accelerator)
        if not self.metric_sums.sums:
            raise ValueError("There is nothing to score; call `add` or `add_batch` before `compute`.")
        scores = self.metric_sums.scores()
        self.metric_sums.reset()
        return scores


def check_dicts(predictions: Mapping, references: Mapping) -> None:
    """Raises a ValueError unless both are dicts."""
    if not isinstance(predictions, Mapping) or not isinstance(references, Mapping):
        raise ValueError(
            f"Predictions and references are dicts by task; got {type(predictions).__name__} and "
            f"{type(references).__name__}."
        )


__all__ = ["MultiTaskMetric"]

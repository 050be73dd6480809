"""Several datasets as one: every row has the labels of its own dataset."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import datasets
from huggingface_hub.dataclasses import strict

from ..utils.errors import check_keys
from .benchmarks import Benchmark, get_benchmark


@strict
@dataclass(kw_only=True)
class DatasetConfig:
    """Settings of one of the datasets that a model is trained on.

    Args:
        dataset (`str`): Name of the dataset.
        data_dir (`str`, *optional*): Folder of the data, for datasets that are read from disk.
        dataset_kwargs (`dict`): Arguments of the dataset's loader.
        tasks (`dict[str, str]`): New names of some of its tasks, as in `{"semseg": "semseg_voc"}`, for tasks that have other
            classes than a task of the same name in another dataset.
        weight (`float`): The images of a batch are drawn from the datasets in proportion to their weights.

    Raises:
        StrictDataclassError: If a value has the wrong type or is out of range.
    """

    dataset: str
    data_dir: str | None = None
    dataset_kwargs: dict = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)
    weight: float | int = 1

    def validate_weight(self):
        """The weight is above 0."""
        if not 0 < self.weight < math.inf:
            raise ValueError(f"`weight` of a dataset is above 0, and finite; got {self.weight}.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DatasetConfig":
        """Builds the settings from a dictionary.

        Raises:
            ValueError: If a key is unknown or the name is missing.
        """
        check_keys("settings of a dataset", values, [spec.name for spec in fields(cls)])
        if "dataset" not in values:
            raise ValueError(f"Every entry of `datasets` names its `dataset`; got {values}.")
        return cls(**values)

    def get_benchmark(self) -> Benchmark:
        """Returns the benchmark, with the new names of its tasks; see [`get_benchmark`]."""
        return get_benchmark(self.dataset, self.data_dir, self.dataset_kwargs, self.tasks)

    def load(self) -> datasets.DatasetDict:
        """Returns the splits `train` and `validation`; see [`Benchmark.load`]."""
        return self.get_benchmark().load(self.data_dir, **self.dataset_kwargs)

    def count_rows(self) -> dict[str, int]:
        """Counts the rows of every split without preparing the data."""
        return self.get_benchmark().count_rows(self.data_dir, **self.dataset_kwargs)


def name_datasets(configs: Sequence[DatasetConfig]) -> dict[str, DatasetConfig]:
    """Returns the settings by a distinct name: that of the dataset, and its place in the list where it occurs twice."""
    names = [config.dataset for config in configs]
    return {
        name if names.count(name) == 1 else f"{name}_{place}": config
        for place, (name, config) in enumerate(zip(names, configs, strict=True), start=1)
    }


def merge_benchmarks(benchmarks: Sequence[Benchmark]) -> Benchmark:
    """Returns one benchmark with the tasks and classes of several, without the protocols by which each is evaluated.

    Raises:
        ValueError: If tasks of one name have different classes.
    """
    if len(benchmarks) == 1:
        return benchmarks[0]
    class_names = {}
    for benchmark in benchmarks:
        for task in benchmark.tasks:
            names = benchmark.class_names.get(task, [])
            if names != class_names.setdefault(task, names):
                raise ValueError(
                    f"Tasks of one name have the same classes in all `datasets`; {task!r} has {len(class_names[task])} classes "
                    f"in one and {len(names)} others in {benchmark.title}. Rename it there: tasks: {{{task}: {task}_2}}."
                )
    return replace(
        benchmarks[0],
        tasks=list(class_names),
        class_names={task: names for task, names in class_names.items() if names},
        title=" + ".join(benchmark.title for benchmark in benchmarks),
        task_metric_kwargs={},
        reference_columns={},
        scored_ids={},
    )


def concatenate_rows(parts: Sequence[datasets.Dataset], tasks: Iterable[str]) -> datasets.Dataset:
    """Returns the rows of several datasets one after another, with `None` for labels that a dataset does not have.

    Args:
        parts (`Sequence[datasets.Dataset]`): Rows of each dataset; those of a single one are returned as they are.
        tasks (`Iterable[str]`): The tasks to keep labels of.
    """
    if len(parts) == 1:
        return parts[0]
    columns = ["id", "image", *tasks]
    return datasets.concatenate_datasets(
        [part.select_columns([column for column in columns if column in part.column_names]) for part in parts]
    )

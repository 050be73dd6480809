"""The data sets, by the names that configurations use."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import datasets

from . import nyud_v2, scenes


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What a training run needs to know of a data set.

    Args:
        builder (`Callable`): The `datasets` builder.
        task_num_labels (`dict[str, int]`): Its tasks and their head widths.
        class_names (`dict[str, list[str]]`): Names of the classes of its tasks that have any.
        needs_data_dir (`bool`): Whether the data must be on disk already.
    """

    builder: Callable[..., datasets.DatasetBuilder]
    task_num_labels: dict[str, int]
    class_names: dict[str, list[str]]
    needs_data_dir: bool

    def num_labels(self, task: str) -> int:
        """Head width of one of its tasks.

        Raises:
            ValueError: If it has no labels for the task.
        """
        if task not in self.task_num_labels:
            raise ValueError(
                f"{self.builder.__name__} has no labels for the task {task!r}; it has {list(self.task_num_labels)}."
            )
        return self.task_num_labels[task]

    def load(self, data_dir: str | None = None, **kwargs) -> datasets.DatasetDict:
        """Builds the data set, or takes it from the cache, and returns its splits `train` and `validation`.

        Args:
            data_dir (`str`, *optional*): Folder of the data on disk.
            **kwargs: Fields of the builder's configuration.

        Raises:
            ValueError: If the data must be on disk and `data_dir` does not say where, or a field is unknown.
        """
        known = [field.name for field in fields(self.builder.BUILDER_CONFIG_CLASS)]
        unknown = sorted(set(kwargs) - set(known))
        if unknown:
            raise ValueError(f"Unknown fields {unknown} of {self.builder.__name__}; known are {known}.")
        if self.needs_data_dir:
            if data_dir is None:
                raise ValueError(f"{self.builder.__name__} is read from disk; say where with data_dir=FOLDER.")
            kwargs["data_dir"] = str(data_dir)
        builder = self.builder(**kwargs)
        builder.download_and_prepare()
        return builder.as_dataset()


BENCHMARKS = {
    "scenes": Benchmark(
        builder=scenes.Scenes,
        task_num_labels={
            "semseg": len(scenes.CLASS_NAMES["semseg"]),
            "depth": 1,
            "normal": 3,
            "boundary": 1,
            "parsing": len(scenes.CLASS_NAMES["parsing"]),
            "saliency": 2,
        },
        class_names=scenes.CLASS_NAMES,
        needs_data_dir=False,
    ),
    "nyud_v2": Benchmark(
        builder=nyud_v2.NYUDv2,
        task_num_labels={"semseg": 40, "depth": 1, "normal": 3, "boundary": 1},
        class_names=nyud_v2.CLASS_NAMES,
        needs_data_dir=True,
    ),
}


def get_benchmark(name: str) -> Benchmark:
    """Looks a data set up.

    Raises:
        ValueError: If there is no such data set.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"Unknown data set {name!r}; known data sets are {sorted(BENCHMARKS)}.")
    return BENCHMARKS[name]

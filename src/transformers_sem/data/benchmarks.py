"""The data sets, by the names that configurations use."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
from torch import Tensor

from ..data import folder, nyud_v2, pascal_context, scenes
from ..tasks import get_task


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What a training run needs to know of a data set.

    Args:
        builder (`Callable`): The `datasets` builder.
        task_num_labels (`dict[str, int]`): Its tasks and their head widths.
        class_names (`dict[str, list[str]]`): Names of the classes of its tasks that have any.
        needs_data_dir (`bool`): Whether the data must be on disk already.
        title (`str`): Its name, for people.
        terms (`str`): Where it is from, and on what terms, for model cards.
        license (`str`): The identifier that the Hub has for these terms.
        limits (`str`): What a model that has learned from it cannot know, for model cards.
        task_metric_kwargs (`dict[str, dict]`): Keyword arguments of the metrics, where the protocol has its own.
        reference_columns (`dict[str, str]`): Tasks that are judged on another column than they learn from.
        scored_ids (`dict[str, frozenset[str]]`): Tasks that are judged on these images only.
    """

    builder: Callable[..., datasets.DatasetBuilder]
    task_num_labels: dict[str, int]
    class_names: dict[str, list[str]]
    needs_data_dir: bool
    title: str = ""
    terms: str = ""
    license: str = "other"
    limits: str = ""
    task_metric_kwargs: dict[str, dict] = field(default_factory=dict)
    reference_columns: dict[str, str] = field(default_factory=dict)
    scored_ids: dict[str, frozenset[str]] = field(default_factory=dict)

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

    def describe(self) -> dict[str, str]:
        """What a model card says of the data."""
        return {name: getattr(self, name) for name in ("title", "terms", "license", "limits")}

    def protocol_columns(self, columns: list[str]) -> list[str]:
        """Those of `columns` that `references` needs."""
        return [column for column in columns if column == "id" or column in self.reference_columns.values()]

    def references(self, row: dict[str, Any], labels: dict[str, Tensor]) -> dict[str, Tensor | np.ndarray]:
        """What the predictions of an image are compared with: nothing for a task that is not judged on it.

        Args:
            row (`dict[str, Any]`): The `protocol_columns` of the image.
            labels (`dict[str, Tensor]`): Its labels for training.
        """
        references = {
            task: label
            for task, label in labels.items()
            if task not in self.scored_ids or row["id"] in self.scored_ids[task]
        }
        for task, column in self.reference_columns.items():
            if task in references and column in row:
                references[task] = np.array(row[column])
        return references

    def load(self, data_dir: str | None = None, **kwargs) -> datasets.DatasetDict:
        """Builds the data set, or takes it from the cache, and returns its splits `train` and `validation`.

        Args:
            data_dir (`str`, *optional*): Where the data is on disk, in any form, or a folder that was prepared from it.
            **kwargs: Fields of the builder's configuration.

        Raises:
            ValueError: If the data must be on disk and `data_dir` does not say where, or a field is unknown.
        """
        self._check_fields(kwargs)
        if data_dir is not None and is_prepared(data_dir):
            return self.load_prepared(data_dir)
        builder = self._build(data_dir, **kwargs)
        builder.download_and_prepare()
        return builder.as_dataset()

    def count_rows(self, data_dir: str | None = None, **kwargs) -> dict[str, int]:
        """Counts the rows of every split, and prepares nothing; arguments and errors are those of `load`."""
        self._check_fields(kwargs)
        if data_dir is not None and is_prepared(data_dir):
            shards = Path(data_dir).expanduser() / "data"
            return {
                split: sum(pq.read_metadata(path).num_rows for path in shards.glob(f"{split}-*.parquet"))
                for split in ("train", "validation")
            }
        with TemporaryDirectory() as cache_dir:  # where a builder makes folders as soon as it is built
            splits = self._build(data_dir, cache_dir=cache_dir, **kwargs)._split_generators(None)
        return {str(split.name): len(next(iter(split.gen_kwargs.values()))) for split in splits}

    def _check_fields(self, names: Iterable[str]) -> None:
        known = [field.name for field in fields(self.builder.BUILDER_CONFIG_CLASS)]
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise ValueError(f"Unknown fields {unknown} of {self.builder.__name__}; known are {known}.")

    def _build(self, data_dir: str | None, cache_dir: str | None = None, **kwargs) -> datasets.DatasetBuilder:
        if self.needs_data_dir:
            if data_dir is None:
                raise ValueError(f"{self.builder.__name__} is read from disk; say where with data_dir=FOLDER.")
            kwargs["data_dir"] = str(data_dir)
        return self.builder(cache_dir=cache_dir, **kwargs)

    def load_prepared(self, folder: str) -> datasets.DatasetDict:
        """Loads what a script has prepared.

        Raises:
            ValueError: If it is another data set.
        """
        rows = datasets.load_dataset(str(Path(folder).expanduser()))
        for task, names in self.class_names.items():
            features = rows["train"].features
            if task in features and features[f"{task}_classes"].feature.names != names:
                raise ValueError(
                    f"{folder} holds other {task} classes than {self.builder.__name__}; pass the folder of that data set."
                )
        return rows


def is_prepared(folder: str | Path) -> bool:
    """Whether a folder is one that a script has prepared: Parquet shards, not pictures."""
    return any((Path(folder).expanduser() / "data").glob("train-*.parquet"))


# the images on which every paper computes the boundary F-measure of PASCAL-Context, about half of the validation images
SCORED_BOUNDARY_IDS = frozenset(Path(__file__).with_name("pascal_context_boundary_ids.txt").read_text().split())
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
        title="procedural indoor scenes",
        terms="Scenes and labels are drawn by transformers-sem itself, and come under its licence, Apache-2.0.",
        license="apache-2.0",
        limits="It has seen drawn rooms only, never a photo.",
    ),
    "nyud_v2": Benchmark(
        builder=nyud_v2.NYUDv2,
        task_num_labels={"semseg": 40, "depth": 1, "normal": 3, "boundary": 1},
        class_names=nyud_v2.CLASS_NAMES,
        needs_data_dir=True,
        title="NYUD-v2",
        terms=nyud_v2.TERMS,
        limits="It has seen rooms of offices and homes, from the height of a person, through one camera: metres are right for "
        "images that show as much as that camera.",
        task_metric_kwargs={"boundary": {"max_distance": 0.011}},
    ),
    "pascal_context": Benchmark(
        builder=pascal_context.PASCALContext,
        task_num_labels={"semseg": 21, "parsing": 7, "saliency": 2, "normal": 3, "boundary": 1},
        class_names=pascal_context.CLASS_NAMES,
        needs_data_dir=True,
        title="PASCAL-Context",
        terms=pascal_context.TERMS,
        limits="The normals and the saliency that it learns from are predictions of other networks, with their errors.",
        task_metric_kwargs={"boundary": {"max_distance": 0.0075}},
        reference_columns={"boundary": "label_map"},
        scored_ids={"boundary": SCORED_BOUNDARY_IDS},
    ),
}


def describe_folder(data_dir: str | Path | None) -> Benchmark:
    """Describes a user's own folder, as its `dataset.yaml` does.

    Raises:
        ValueError: If `data_dir` is not given, or `dataset.yaml` is broken.
        FileNotFoundError: If there is no such folder.
    """
    source = folder.find_source(data_dir)
    tasks = source.columns[1:]
    return Benchmark(
        builder=folder.Folder,
        task_num_labels={task: len(source.class_names.get(task, [])) or get_task(task).num_labels for task in tasks},
        class_names=source.class_names,
        needs_data_dir=True,
        title=source.title,
        terms="A folder of one's own: whoever shares the weights knows the terms of the images.",
    )


def get_benchmark(name: str, data_dir: str | Path | None = None) -> Benchmark:
    """Looks a data set up.

    Args:
        name (`str`): Key of `BENCHMARKS`, or "folder", a user's own.
        data_dir (`str` or `Path`, *optional*): Where the latter is; it says what there is to know.

    Raises:
        ValueError: If there is no such data set, or the user's own is not described well.
        FileNotFoundError: If the user's own is not there.
    """
    if name == "folder":
        return describe_folder(data_dir)
    if name not in BENCHMARKS:
        raise ValueError(f"Unknown data set {name!r}; known data sets are {sorted([*BENCHMARKS, 'folder'])}.")
    return BENCHMARKS[name]

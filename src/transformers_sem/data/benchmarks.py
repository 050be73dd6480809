"""Benchmarks: the datasets by the names that configurations use, with their tasks and evaluation protocols."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
from datasets.exceptions import DatasetGenerationError
from datasets.features.features import require_decoding
from torch import Tensor

from ..tasks import get_task, register_variant
from ..utils.errors import check_keys
from . import cityscapes, folder, nyud_v2, pascal_context, scenes
from .row_format import LABEL_MAP


logger = logging.getLogger(__name__)

PREPARED_SPLITS = ("train", "validation")


def same_classes(names: Sequence[str], others: Sequence[str]) -> bool:
    """Returns whether two lists hold the same class names, each once, in any order."""
    return sorted(names) == sorted(others) and len(set(names)) == len(names)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A dataset with its tasks, classes and evaluation protocol.

    Args:
        builder (`Callable`): The `datasets` builder.
        tasks (`Sequence[str]`): The tasks that it has labels for.
        class_names (`dict[str, list[str]]`): Class names of its tasks of class ids.
        needs_data_dir (`bool`): Whether the data must be on disk already.
        title (`str`): Name of the dataset.
        terms (`str`): Origin and terms of use, for model cards.
        license (`str`): The license identifier of the Hub.
        limits (`str`): Limits of models that are trained on it, for model cards.
        task_metric_kwargs (`dict[str, dict]`): Keyword arguments of the metrics of the protocol.
        reference_columns (`dict[str, str]`): Columns that predictions of a task are compared with, where it is not the
            column of the task.
        scored_ids (`dict[str, frozenset[str]]`): Ids of the images that a task is scored on, where it is not all images.
        new_names (`dict[str, str]`): Names of the tasks that have other names than the columns of the builder.
    """

    builder: Callable[..., datasets.DatasetBuilder]
    tasks: Sequence[str]
    class_names: dict[str, list[str]]
    needs_data_dir: bool
    title: str = ""
    terms: str = ""
    license: str = "other"
    limits: str = ""
    task_metric_kwargs: dict[str, dict] = field(default_factory=dict)
    reference_columns: dict[str, str] = field(default_factory=dict)
    scored_ids: dict[str, frozenset[str]] = field(default_factory=dict)
    new_names: dict[str, str] = field(default_factory=dict)

    @property
    def task_num_labels(self) -> dict[str, int]:
        """Head width of each task: the number of its classes, or the default of the task."""
        return {task: len(self.class_names.get(task, ())) or get_task(task).num_labels for task in self.tasks}

    def num_labels(self, task: str) -> int:
        """Returns the head width of one of its tasks.

        Raises:
            ValueError: If the dataset has no labels for the task.
        """
        if task not in self.tasks:
            raise ValueError(
                f"{self.builder.__name__} has no labels for the task {task!r}; it has {list(self.tasks)}."
            )
        return self.task_num_labels[task]

    def describe(self) -> dict[str, str]:
        """Returns what a model card says about the dataset."""
        return {name: getattr(self, name) for name in ("title", "terms", "license", "limits")}

    @property
    def protocol(self) -> dict[str, Any]:
        """What scores depend on besides predictions and rows."""
        return {
            "task_metric_kwargs": self.task_metric_kwargs,
            "reference_columns": self.reference_columns,
            "scored_ids": {task: sorted(ids) for task, ids in self.scored_ids.items()},
        }

    def row_references(
        self, rows: datasets.Dataset, index: int, labels: dict[str, Tensor]
    ) -> dict[str, Tensor | np.ndarray]:
        """Returns the `references` of one of the rows, without decoding its other columns."""
        columns = [name for name in rows.column_names if name == "id" or name in self.reference_columns.values()]
        return self.references(rows.select_columns(columns)[index] if columns else {}, labels)

    def references(self, row: dict[str, Any], labels: dict[str, Tensor]) -> dict[str, Tensor | np.ndarray]:
        """Returns what the predictions of an image are compared with, without tasks that are not scored on it.

        Args:
            row (`dict[str, Any]`): The `id` and the `reference_columns` of the image, where there are any.
            labels (`dict[str, Tensor]`): Its labels for training.
        """
        references = {
            task: label
            for task, label in labels.items()
            if task not in self.scored_ids or row["id"] in self.scored_ids[task]
        }
        for task, column in self.reference_columns.items():
            if task in references and row.get(column) is not None:
                references[task] = np.array(row[column])
        return references

    def load(self, data_dir: str | None = None, **kwargs) -> datasets.DatasetDict:
        """Builds the dataset, or loads it from the cache, and returns its splits `train` and `validation`.

        Args:
            data_dir (`str`, *optional*): Path of the data on disk in any form, or of a folder that was prepared from it.
            **kwargs: Fields of the builder's configuration.

        Raises:
            ValueError: If the data must be on disk and `data_dir` is missing, a field is unknown, a prepared folder holds
                another dataset, or most validation images are training images.
        """
        self.check_fields(kwargs)
        if data_dir is not None and is_prepared(data_dir):
            rows = self.load_prepared(data_dir)
        else:
            builder = self._build(data_dir, **kwargs)
            builder.download_and_prepare()
            rows = builder.as_dataset()
        rows = self._rename_columns(rows)
        self._check_classes(rows["train"].features, data_dir)
        check_shared_ids(rows)
        if self.builder is folder.Folder:
            warn_of_absent_classes(rows["train"], self.class_names)
        return rows

    def count_rows(self, data_dir: str | None = None, **kwargs) -> dict[str, int]:
        """Counts the rows of every split without preparing the data; arguments and errors are those of `load`."""
        self.check_fields(kwargs)
        if data_dir is not None and is_prepared(data_dir):
            shards = Path(data_dir).expanduser() / "data"
            return {
                split: sum(pq.read_metadata(path).num_rows for path in shards.glob(f"{split}-*.parquet"))
                for split in PREPARED_SPLITS
            }
        with TemporaryDirectory() as cache_dir:  # a builder creates folders when it is constructed
            splits = self._build(data_dir, cache_dir=cache_dir, **kwargs)._split_generators(None)
        return {str(split.name): len(next(iter(split.gen_kwargs.values()))) for split in splits}

    def check_fields(self, names: Iterable[str]) -> None:
        """Checks the names of fields of the builder's configuration.

        Raises:
            ValueError: If one is unknown.
        """
        of_datasets = {spec.name for spec in fields(datasets.BuilderConfig)}
        known = [spec.name for spec in fields(self.builder.BUILDER_CONFIG_CLASS) if spec.name not in of_datasets]
        check_keys(f"fields of {self.builder.__name__}", names, known)

    def _build(self, data_dir: str | None, cache_dir: str | None = None, **kwargs) -> datasets.DatasetBuilder:
        if self.needs_data_dir:
            if data_dir is None:
                raise ValueError(f"{self.builder.__name__} is read from disk; pass its path with data_dir=FOLDER.")
            kwargs["data_dir"] = str(data_dir)
        elif data_dir is not None:
            raise ValueError(
                f"{self.builder.__name__} is not read from disk; got data_dir={str(data_dir)!r}. Leave it out, or name the dataset "
                "that is there, such as dataset=folder."
            )
        return self.builder(cache_dir=cache_dir, **kwargs)

    def load_prepared(self, folder: str) -> datasets.DatasetDict:
        """Loads a prepared folder.

        Raises:
            ValueError: If it is damaged, or images lie outside it.
        """
        options = pyarrow.dataset.ParquetFragmentScanOptions(page_checksum_verification=True)
        # Named here, because the card of a folder from elsewhere may name any file of this machine, or addresses
        shards = {split: str(Path(folder).expanduser() / "data" / f"{split}-*.parquet") for split in PREPARED_SPLITS}
        try:
            rows = datasets.load_dataset("parquet", data_files=shards, fragment_scan_options=options)
        except DatasetGenerationError as error:
            raise ValueError(f"Cannot read {folder}: {error.__cause__ or error}. Prepare it again.") from error
        for part in rows.values():
            check_images_inside(part, folder)
        return rows

    def rename_tasks(self, names: dict[str, str]) -> "Benchmark":
        """Returns this dataset with other names of some tasks, `{task: new name}`, which are registered as variants of them.

        Raises:
            ValueError: If it has no such task, two tasks would have one name, or the name is that of a task of another kind.
        """
        for task, name in names.items():
            self.num_labels(task)
            register_variant(name, task)
        tasks = [names.get(task, task) for task in self.tasks]
        if len(set(tasks)) < len(tasks):
            raise ValueError(f"Each task of a dataset has its own name; `tasks` {names} gives {tasks}.")
        fields_by_task = ("class_names", "task_metric_kwargs", "reference_columns", "scored_ids")
        renamed = {
            name: {names.get(task, task): value for task, value in getattr(self, name).items()}
            for name in fields_by_task
        }
        return replace(self, tasks=tasks, new_names=names, **renamed)

    def _rename_columns(self, rows: datasets.DatasetDict) -> datasets.DatasetDict:
        classes = {f"{task}_classes": f"{name}_classes" for task, name in self.new_names.items()}
        columns = {**self.new_names, **classes}
        columns = {column: columns[column] for column in columns if column in rows["train"].column_names}
        return rows.rename_columns(columns) if columns else rows

    def _check_classes(self, features: datasets.Features, data_dir: str | None) -> None:
        for task, names in self.class_names.items():
            classes = features.get(f"{task}_classes")
            if classes is not None and classes.feature.names != names:
                raise ValueError(
                    f"{data_dir} holds other {task} classes than {self.builder.__name__} with {len(names)}; pass the folder of "
                    "that dataset, prepared with these classes."
                )


def warn_of_absent_classes(rows: datasets.Dataset, class_names: dict[str, list[str]]) -> None:
    """Warns of classes that occur in no label of the training rows, which a model cannot learn."""
    for task, names in class_names.items():
        present = pc.unique(pc.list_flatten(rows.data.column(f"{task}_classes"))).to_pylist()
        absent = [name for index, name in enumerate(names) if index not in present]
        if absent:
            logger.warning(
                "No training label of %s has the classes %s; check their ids in dataset.yaml.", task, absent
            )


def check_shared_ids(rows: datasets.DatasetDict) -> None:
    """Checks that validation images are not training images: their scores say nothing about new images.

    Raises:
        ValueError: If more than half of them are; fewer are only warned of.
    """
    if not all("id" in part.column_names for part in rows.values()):
        return
    shared = sorted(set(rows["train"]["id"]).intersection(rows["validation"]["id"]))
    message = (
        f"{len(shared)} of {len(rows['validation'])} validation images are also training images ({', '.join(shared[:5])}): their "
        "scores say nothing about new images. Take them off one of the lists."
    )
    if 2 * len(shared) > len(rows["validation"]):
        raise ValueError(message)
    if shared:
        logger.warning(message)


def check_images_inside(rows: datasets.Dataset, folder: str) -> None:
    """Checks that rows hold their images themselves. `datasets` opens the path of an image without bytes, or its address.

    Raises:
        ValueError: If one does not, or another column names files.
    """
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            # `flatten` gives no bytes to rows without an image
            is_inside = all(
                chunk.flatten()[chunk.type.get_field_index("bytes")].null_count == chunk.null_count
                for chunk in rows.data.column(column).chunks
            )
        else:
            is_inside = not require_decoding(feature)
        if not is_inside:
            raise ValueError(
                f"A prepared folder holds its images; the column {column!r} of {folder} names files in other places. Prepare it "
                "again."
            )


def is_prepared(folder: str | Path) -> bool:
    """Returns whether a folder is prepared: it holds Parquet shards and no image files."""
    return any((Path(folder).expanduser() / "data").glob("train-*.parquet"))


# The images that papers compute the boundary F-measure of PASCAL-Context on: about half of the validation images.
SCORED_BOUNDARY_IDS = frozenset(Path(__file__).with_name("pascal_context_boundary_ids.txt").read_text().split())
BENCHMARKS = {
    "scenes": Benchmark(
        builder=scenes.Scenes,
        tasks=("semseg", "depth", "normal", "boundary", "parsing", "saliency"),
        class_names=scenes.CLASS_NAMES,
        needs_data_dir=False,
        title="procedural indoor scenes",
        terms="Images and labels are rendered by transformers-sem and have its license, Apache-2.0.",
        license="apache-2.0",
        limits="It has seen rendered rooms only and no photos.",
    ),
    "nyud_v2": Benchmark(
        builder=nyud_v2.NYUDv2,
        tasks=("semseg", "depth", "normal", "boundary"),
        class_names=nyud_v2.CLASS_NAMES,
        needs_data_dir=True,
        title="NYUD-v2",
        terms=nyud_v2.TERMS,
        limits="It has seen offices and homes, from the height of a person, with one camera: metres are correct for images "
        "with the field of view of that camera.",
        task_metric_kwargs={"boundary": {"max_distance": 0.011}},
    ),
    "pascal_context": Benchmark(
        builder=pascal_context.PASCALContext,
        tasks=("semseg", "parsing", "saliency", "normal", "boundary"),
        class_names=pascal_context.CLASS_NAMES,
        needs_data_dir=True,
        title="PASCAL-Context",
        terms=pascal_context.TERMS,
        limits="Its labels of normals and saliency are predictions of other networks, with their errors.",
        task_metric_kwargs={"boundary": {"max_distance": 0.0075}},
        reference_columns={"boundary": LABEL_MAP},
        scored_ids={"boundary": SCORED_BOUNDARY_IDS},
    ),
    "cityscapes": Benchmark(
        builder=cityscapes.Cityscapes,
        tasks=("semseg", "depth"),
        class_names=cityscapes.choose_classes(cityscapes.NUM_CLASSES),
        needs_data_dir=True,
        title="Cityscapes",
        terms=cityscapes.TERMS,
        limits="It has seen streets of cities in and near Germany, in daylight and good weather, from a car, with one camera: "
        f"metres are correct for images with the field of view of that camera, up to {cityscapes.MAX_DEPTH:g} m.",
    ),
}


def describe_folder(data_dir: str | Path | None) -> Benchmark:
    """Describes a user's own folder by its `dataset.yaml`.

    Raises:
        ValueError: If `data_dir` is `None`, or `dataset.yaml` is broken.
        FileNotFoundError: If there is no such folder.
    """
    source = folder.find_source(data_dir)
    return Benchmark(
        builder=folder.Folder,
        tasks=source.columns[1:],
        class_names=source.class_names,
        needs_data_dir=True,
        title=source.title,
        terms="User data; license unknown.",
    )


def get_benchmark(
    name: str,
    data_dir: str | Path | None = None,
    dataset_kwargs: dict[str, Any] | None = None,
    tasks: dict[str, str] | None = None,
) -> Benchmark:
    """Returns a benchmark by its name.

    Args:
        name (`str`): Key of `BENCHMARKS`, or "folder" for a user's own dataset.
        data_dir (`str` or `Path`, *optional*): Path of the user's own dataset, which describes it.
        dataset_kwargs (`dict`, *optional*): Fields of the builder's configuration that the dataset will be loaded with.
            `num_classes` chooses the classes of Cityscapes.
        tasks (`dict[str, str]`, *optional*): New names of some tasks, as in [`Benchmark.rename_tasks`].

    Raises:
        ValueError: If there is no such benchmark, field or task, or the description of the user's own dataset is broken.
        FileNotFoundError: If the user's own dataset does not exist.
    """
    benchmark = find_benchmark(name, data_dir, dataset_kwargs or {})
    return benchmark.rename_tasks(tasks) if tasks else benchmark


def find_benchmark(name: str, data_dir: str | Path | None, dataset_kwargs: dict[str, Any]) -> Benchmark:
    """Returns a benchmark by its name, with the task names of its builder; see [`get_benchmark`]."""
    if name == "folder":
        return describe_folder(data_dir)
    if name not in BENCHMARKS:
        raise ValueError(f"Unknown dataset {name!r}; known datasets are {sorted([*BENCHMARKS, 'folder'])}.")
    benchmark = BENCHMARKS[name]
    benchmark.check_fields(dataset_kwargs)
    if "num_classes" in dataset_kwargs:
        return replace(benchmark, class_names=cityscapes.choose_classes(dataset_kwargs["num_classes"]))
    return benchmark

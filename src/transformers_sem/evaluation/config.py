"""Settings of an evaluation, and the files in the folder of a run that they come from."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict

from ..data.benchmarks import Benchmark, get_benchmark
from ..data.mixture import DatasetConfig, name_datasets
from ..utils.errors import check_keys
from ..utils.loading import explain_failure
from ..utils.settings import apply_overrides, read_settings


REPORT_NAME = "evaluation.json"
SETTINGS_NAME = "training.yaml"
TRAINING_NAME = "training.json"  # what a training notes beside the weights


@strict
@dataclass(kw_only=True)
class EvaluationConfig:
    """Settings of an evaluation.

    Args:
        dataset (`str`): Name of the dataset.
        data_dir (`str`, *optional*): Folder of the data, for datasets that are read from disk.
        dataset_kwargs (`dict`): Fields of the builder configuration of the dataset.
        tasks (`dict[str, str]`): Names that the model has for tasks of the dataset, `{name in the dataset: name in the model}`.
        batch_size (`int`): Images that a rank predicts at once.
        num_evaluation_images (`int`, *optional*): Number of validation images; `None` is all.
        seed (`int`): Seed of the training, noted in the report.
    """

    dataset: str = "nyud_v2"
    data_dir: str | None = None
    dataset_kwargs: dict = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)
    batch_size: int = 4
    num_evaluation_images: int | None = None
    seed: int = 0

    def validate_counts(self):
        """Counts are 1 or more."""
        for name in ("batch_size", "num_evaluation_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is 1 or more; got {value}.")

    def get_benchmark(self) -> Benchmark:
        """Returns the benchmark, with the model's names of its tasks; see [`get_benchmark`]."""
        return get_benchmark(self.dataset, self.data_dir, self.dataset_kwargs, self.tasks)

    @classmethod
    def load(cls, folder: str | Path, overrides: Sequence[str] = ()) -> "EvaluationConfig":
        """Reads the settings of the run in a folder, or the defaults where there is none, and `key=value` overrides.

        Raises:
            ValueError: If a key is unknown or a value of another type, or the run has several datasets and none is chosen.
        """
        configs = cls.load_all(folder, overrides)
        if len(configs) > 1:
            raise ValueError(f"Choose one of the datasets of the run, {list(configs)}, with dataset=NAME.")
        return next(iter(configs.values()))

    @classmethod
    def load_all(cls, folder: str | Path, overrides: Sequence[str] = ()) -> dict[str, "EvaluationConfig"]:
        """Reads the settings as `load` does for each dataset of a run, `{name: settings}`.

        The override `dataset=NAME` chooses one of them, with its other settings, or another dataset.

        Raises:
            ValueError: If a key is unknown or a value of another type, or as in [`choose_datasets`].
        """
        path, names = Path(folder) / SETTINGS_NAME, [spec.name for spec in fields(cls)]
        run = read_settings(path) if path.is_file() else {}
        values = {name: run[name] for name in names if name in run and name != "tasks"}  # those of a run are a list
        with explain_failure(f"Cannot use {path}"):
            if "gradient_accumulation_steps" in run:  # `batch_size` of a run counts all micro-batches
                values["batch_size"] = run.get("batch_size", cls.batch_size) // run["gradient_accumulation_steps"]
            named = name_datasets([DatasetConfig.from_dict(entry) for entry in run.get("datasets", [])])
        changes = apply_overrides({}, overrides)
        check_keys("settings", {**values, **changes}, names)
        if changes.get("dataset", values.get("dataset")) != values.get("dataset"):  # the run's are of its own dataset
            values = {name: value for name, value in values.items() if name not in ("data_dir", "dataset_kwargs")}
        chosen = choose_datasets(named, changes)
        if not chosen:
            config = cls(**apply_overrides(values, overrides))
            return {config.dataset: config}
        return {
            name: cls(
                **apply_overrides({**values, **{key: entry[key] for key in entry if key in names}}, overrides)
                | {"dataset": entry["dataset"]}
            )
            for name, entry in chosen.items()
        }


def choose_datasets(named: dict[str, DatasetConfig], changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the settings of those datasets of a run that an evaluation with some changed settings is of.

    Raises:
        ValueError: If settings of one dataset are changed and several are chosen, or a dataset is chosen by a name of several.
    """
    chosen = {name: asdict(config) for name, config in named.items() if changes.get("dataset", name) == name}
    if len(chosen) > 1 and not changes.keys().isdisjoint(("data_dir", "dataset_kwargs", "tasks")):
        raise ValueError(
            f"`data_dir`, `dataset_kwargs` and `tasks` belong to one dataset; the run has {list(chosen)}. Choose one with "
            "dataset=NAME."
        )
    same = [name for name, config in named.items() if config.dataset == changes.get("dataset")]
    if not chosen and same and changes.keys().isdisjoint(("data_dir", "dataset_kwargs")):
        raise ValueError(
            f"The datasets of a run have names of their own; dataset={changes['dataset']} is one of {same}. Choose one of these."
        )
    return chosen


def is_only_training_data(folder: str | Path, name: str, config: EvaluationConfig) -> bool:
    """Returns whether a dataset is the one that the model in a folder was trained on; true where the training noted nothing.

    Datasets are known by their names and titles. The title of an own folder is the name of the folder.
    """
    noted = (read_training(folder) or {}).get("data")
    if noted is None:
        return True
    with explain_failure(f"Cannot use {Path(folder) / TRAINING_NAME}"):
        titles = {key: data["title"] for key, data in noted.items()}
    return titles == {name: config.get_benchmark().title}


def read_training(folder: str | Path) -> dict | None:
    """Returns what a training noted beside the weights in a folder, and `None` where there is nothing.

    Raises:
        ValueError: If the file is damaged.
    """
    path = Path(folder) / TRAINING_NAME
    with explain_failure(f"Cannot use {path}"):
        return {**json.loads(path.read_text(encoding="utf-8"))} if path.is_file() else None

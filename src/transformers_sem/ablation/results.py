"""Rows: the result of one training as a JSON file, which outlives the folder of the training and the machine.

A row has the report of the evaluation with the settings of the training (`evaluation.json`), the cost of the model and the
history of losses and scores. Weights and images are not in it, so rows may be kept in a repository.
"""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from ..configuration_sem import SEMConfig
from ..evaluation.config import REPORT_NAME, SETTINGS_NAME
from ..training.config import IF_AVAILABLE, WITHOUT_EFFECT_ON_WEIGHTS, TrainingConfig, network_size
from ..training.history import read_history
from ..utils.files import write_text
from ..utils.loading import explain_failure, load_config
from .cost import build_without_weights, count_multiply_accumulates


COSTS = ("parameters_millions", "multiply_accumulates_billions")
ROW_FIELDS = {"scores", "constant_scores", "num_images", "environment", "training", "history", *COSTS}


def save_row(folder: Path, path: Path, **further: Any) -> None:
    """Writes the row of the finished training in `folder`, with further fields."""
    with explain_failure(f"Cannot use {folder / REPORT_NAME}"):
        report = json.loads((folder / REPORT_NAME).read_text())
        training = without_command(report["training"])
    row = {
        **without_command(report),
        "training": training,
        **dict(zip(COSTS, count_cost(folder), strict=True)),
        "history": read_history(folder),
        **further,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(row, indent=1) + "\n")


def without_command(report: dict[str, Any]) -> dict[str, Any]:
    """Returns a report without its command, which has paths of the machine; the settings say the same."""
    return {key: value for key, value in report.items() if key != "command"}


@cache
def count_cost(folder: Path) -> tuple[float, float]:
    """Returns the parameters of a trained model in millions, and its multiply-accumulates for one image in billions."""
    size = network_size(TrainingConfig.load(folder / SETTINGS_NAME))
    model, image = build_without_weights(load_config(SEMConfig, folder), size)
    return model.num_parameters() / 1e6, count_multiply_accumulates(model, image)


def load_row(path: Path) -> dict[str, Any]:
    """Reads a row; settings that did not exist when it was written have their defaults.

    Raises:
        ValueError: If the file is no row.
    """
    try:
        row = json.loads(path.read_text())
        missing = ROW_FIELDS - {*row}
        row["training"]["settings"]["model"]  # noqa: B018, a row without it is none
        row["training"]["settings"] = as_json(TrainingConfig().describe()) | row["training"]["settings"]
        if missing:
            raise KeyError(*sorted(missing))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"A row is written by `transformers-sem ablation`; {path} is not: {error!r}. Remove it."
        ) from error
    return row


def load_checked_row(path: Path, config: TrainingConfig) -> dict[str, Any]:
    """Reads a row and checks that its training had the settings of `config`.

    Raises:
        ValueError: If the file is no row, or the settings differ.
    """
    row = load_row(path)
    found = row["training"]["settings"]
    expected = as_json(config.describe())
    ignored = {*WITHOUT_EFFECT_ON_WEIGHTS} | (
        {"pretrained_backbone"} if config.pretrained_backbone == IF_AVAILABLE else set()
    )
    changed = [
        f"{key} {found.get(key)!r}, here {value!r}"
        for key, value in expected.items()
        if key not in ignored and found.get(key) != value
    ]
    if changed:
        raise ValueError(
            f"Rows of one table have the same settings; {path} was trained with {'; '.join(changed)}. Choose other --results, or "
            "the settings of the row."
        )
    return row


def as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings as they are read from JSON, with lists in place of tuples."""
    return json.loads(json.dumps(settings))


def check_shared_settings(rows: dict[Path, dict[str, Any]], model_fields: dict[Path, Iterable[str]]) -> None:
    """Checks that rows of one table have the same settings and test images, but for the seed, the tasks and what models change.

    Args:
        rows (`dict`): Rows by their files.
        model_fields (`dict`): For each file the fields of `SEMConfig` that its model changes on purpose.

    Raises:
        ValueError: If settings differ.
    """
    flat = {path: flatten_settings(row) for path, row in rows.items()}
    keys = dict.fromkeys(key for settings in flat.values() for key in settings)
    shared: dict[str, Any] = {}
    for path, settings in flat.items():
        own = {f"model.{field}" for field in model_fields[path]}
        compared = {key: settings.get(key) for key in keys if key not in own}
        changed = [key for key, value in compared.items() if shared.setdefault(key, value) != value]
        if changed:
            raise ValueError(
                f"Rows of one folder share their settings; {path} has other {', '.join(changed)}. Move it."
            )


def flatten_settings(row: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a row that its table shares, those of the model as `model.*`, and the number of test images."""
    settings = row["training"]["settings"]
    changing = {"seed", "tasks", "model", *WITHOUT_EFFECT_ON_WEIGHTS}
    return {
        "num_images": row["num_images"],
        **{key: value for key, value in settings.items() if key not in changing},
        **{f"model.{key}": value for key, value in settings["model"].items()},
    }

"""The models that the ablations of the paper compare, the trainings they need, and the tables of their scores.

A training writes to a folder, for example `OUTPUT/seed0/sem`, and leaves a row, `RESULTS/seed0/sem.json`. It is finished once
its row is there, so an interrupted ablation resumes with the first training that is not.
"""

import csv
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.config import REPORT_NAME, SETTINGS_NAME
from ..evaluation.metrics import arrow
from ..evaluation.sums import main_scores, multi_task_gain
from ..training.config import TrainingConfig, claim_output_dir, network_size
from ..utils.environment import save_report
from ..utils.files import write_text
from .results import COSTS, load_checked_row, save_row


# Fields of `SEMConfig` that each model changes.
MODELS: dict[str, dict[str, Any]] = {
    "stl": {"use_decoder": False},  # one model for each task
    "mtl": {"use_decoder": False},
    "baseline": {"use_intra_task": False, "inter_task_stages": 0},
    "intra": {"inter_task_stages": 0},
    "inter": {"use_intra_task": False},
    "sem": {},
    # Fig. 6 varies one module without the other, like the rows "+ intra" and "+ inter" of Table 2; R = 3 for DS (Sec. 4.3).
    **{f"es{number}": {"num_intra_task_stages": number, "inter_task_stages": 0} for number in range(1, 5)},
    **{
        f"ds{number}": {"use_intra_task": False, "inter_task_stages": number, "num_em_iterations": 3}
        for number in range(1, 5)
    },
    **{f"r{number}": {"use_intra_task": False, "num_em_iterations": number} for number in range(1, 8)},
}
SINGLE_TASK = "stl"
TABLE_2 = {
    "STL": "stl",
    "MTL": "mtl",
    "baseline": "baseline",
    "baseline + intra-task module": "intra",
    "baseline + inter-task module": "inter",
    "SEM": "sem",
}
TABLE_3 = {"MTL": "mtl", "SEM": "sem"}  # for each encoder
FIGURE_6 = {
    "ES, encoder stages": {0: "baseline", **{number: f"es{number}" for number in range(1, 5)}},
    "DS, decoder stages": {0: "baseline", **{number: f"ds{number}" for number in range(1, 5)}},
    "R, EM iterations": {number: f"r{number}" for number in range(1, 8)},
}
GAIN = "gain"  # key of the gain in a row
NOTHING = "–"
EXPLANATION = (
    "Mean ± standard deviation over the seeds that have finished. Δm is the mean over tasks of the relative gain over the "
    "single-task models (STL) of the same seed. The costs of STL are the sum over its models, for one image."
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training.

    Args:
        model (`str`): Key of `MODELS`.
        seed (`int`): Seed of weights, data order and augmentation.
        task (`str`, *optional*): The only task of a single-task model.
        folder (`Path`): `output_dir` of the training.
        row_path (`Path`): JSON file of the result.
        config_path (`Path`): YAML file of settings.
        overrides (`tuple[str, ...]`): `key=value` settings that replace those of the file.
    """

    model: str
    seed: int
    task: str | None
    folder: Path
    row_path: Path
    config_path: Path
    overrides: tuple[str, ...]

    @property
    def is_trained(self) -> bool:
        """Whether it has been trained and evaluated in its folder."""
        return (self.folder / REPORT_NAME).is_file()

    @property
    def is_finished(self) -> bool:
        """Whether its row has been written, here or on another machine."""
        return self.row_path.is_file()

    def finish(self) -> None:
        """Writes the row of a training that has ended."""
        save_row(self.folder, self.row_path)

    def load_row(self) -> dict[str, Any]:
        """Reads the row.

        Raises:
            ValueError: If it was trained with other settings.
        """
        return load_checked_row(self.row_path, TrainingConfig.load(self.config_path, self.overrides))

    def __str__(self) -> str:
        return str(self.folder)


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Trainings of one configuration that differ in model and seed.

    Args:
        config_path (`Path`): YAML file of settings.
        overrides (`tuple[str, ...]`): `key=value` settings for all trainings.
        output (`Path`): Folder of the trainings.
        results (`Path`): Folder of the rows.
        seeds (`tuple[int, ...]`): Seeds; each model is trained with each.

    Raises:
        ValueError: If a seed is given twice, or settings name a dataset that does not exist, `seed` or `output_dir`.
        FileNotFoundError: If there is no such file.
    """

    config_path: Path
    overrides: tuple[str, ...]
    output: Path
    results: Path
    seeds: tuple[int, ...]

    def __post_init__(self):
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"Seeds must be distinct; got {list(self.seeds)}.")
        reserved = [text for text in self.overrides if text.split("=")[0] in ("seed", "output_dir")]
        if reserved:
            raise ValueError(f"An ablation sets seed and output_dir itself, by --seeds and --output; got {reserved}.")
        if self.config.datasets:
            raise ValueError(
                "An ablation compares models on one dataset; give `dataset` and `data_dir` in place of `datasets`."
            )
        # Fails now, and not when the first training starts.
        self.config.get_benchmark()

    @property
    def config(self) -> TrainingConfig:
        """The settings that all trainings share."""
        return TrainingConfig.load(self.config_path, [*self.overrides, f"output_dir={json.dumps(str(self.output))}"])

    @property
    def tasks(self) -> list[str]:
        """The tasks of the multi-task models."""
        return self.config.tasks or list(self.config.get_benchmark().tasks)

    def claim(self) -> None:
        """Writes the settings to `output`, or checks that the ablation there has the same settings.

        Raises:
            ValueError: If it has other settings.
        """
        claim_output_dir(self.config)
        earlier = TrainingConfig.load(self.output / SETTINGS_NAME).num_evaluation_images
        if earlier != self.config.num_evaluation_images:
            raise ValueError(
                f"{str(self.output)!r} holds an ablation with num_evaluation_images {earlier}, and this one has "
                f"{self.config.num_evaluation_images}: their scores cannot be compared. Choose another --output."
            )

    def run(self, model: str, seed: int, task: str | None = None) -> Run:
        """Returns the training of a model of `MODELS`, or of a single-task model for one task."""
        name = Path(f"seed{seed}") / (f"{model}_{task}" if task else model)
        values = {f"model.{field}": value for field, value in MODELS[model].items()}
        values |= {"tasks": [task]} if task else {}
        values |= {"seed": seed, "output_dir": str(self.output / name)}
        overrides = tuple(f"{key}={json.dumps(value)}" for key, value in values.items())  # JSON is YAML
        return Run(
            model=model,
            seed=seed,
            task=task,
            folder=self.output / name,
            row_path=self.results / f"{name}.json",
            config_path=self.config_path,
            overrides=(*self.overrides, *overrides),
        )

    def runs_of(self, model: str, seed: int) -> list[Run]:
        """Returns the trainings of a model with one seed: one, or one for each task for the single-task model."""
        if model == SINGLE_TASK:
            return [self.run(model, seed, task) for task in self.tasks]
        return [self.run(model, seed)]

    def plan(self, models: Iterable[str]) -> list[Run]:
        """Returns all trainings of some models, seed by seed, so that the first table is complete early."""
        models = dict.fromkeys(models)
        return [run for seed in self.seeds for model in models for run in self.runs_of(model, seed)]


# ----------------------------------------------------------------------------------------------------------------------
# Tables


def summarize(values: dict[int, float]) -> dict[str, Any] | None:
    """Returns mean and standard deviation (n - 1) of `{seed: value}`; `None` without values, no deviation for one seed."""
    if not values:
        return None
    deviation = statistics.stdev(values.values()) if len(values) > 1 else None
    return {"mean": statistics.fmean(values.values()), "std": deviation, "values": dict(values)}


def read_main_scores(runs: list[Run]) -> dict[str, float]:
    """Returns the main scores `{"task/score": value}` of the finished runs."""
    scores = {}
    for run in runs:
        if run.is_finished:
            found = run.load_row()["scores"]
            scores |= {key: found[key] for key in main_scores(found).values()}
    return scores


def describe_model(ablation: Ablation, name: str, model: str) -> dict[str, Any]:
    """Returns a row of a table: costs, scores, and the gain over the single-task models of the same seed.

    The costs of the single-task models are the sum over the tasks.
    """
    scores: dict[str, dict[int, float]] = {}
    gains, costs = {}, [None, None]
    for seed in ablation.seeds:
        runs = ablation.runs_of(model, seed)
        found = read_main_scores(runs)
        for key, value in found.items():
            scores.setdefault(key, {})[seed] = value
        single = read_main_scores(ablation.runs_of(SINGLE_TASK, seed))
        # A single-task score of 0, after a few steps, gives no ratio.
        if model != SINGLE_TASK and found and set(found) == set(single) and min(single.values()) > 0:
            gains[seed] = multi_task_gain(found, single)
        if all(run.is_finished for run in runs):
            costs = [sum(run.load_row()[name] for run in runs) for name in COSTS]
    return {
        "name": name,
        "model": model,
        **dict(zip(COSTS, costs, strict=True)),
        "scores": {key: summarize(values) for key, values in scores.items()},
        GAIN: summarize(gains),
    }


def describe_runs(ablations: Sequence[Ablation], models: Iterable[str]) -> dict[str, Any]:
    """Returns the facts below a table: settings, seeds, data, commits and hardware; all distinct values of each.

    Raises:
        ValueError: If trainings were evaluated on different numbers of images.
    """
    runs = [run for ablation in ablations for run in ablation.plan(models)]
    rows = {f"{run.row_path.parent.name}/{run.row_path.stem}": run.load_row() for run in runs if run.is_finished}
    reports = list(rows.values())
    origins = describe_origins(rows)
    configs = [ablation.config for ablation in ablations]
    names = ("dataset", "data_dir", "max_steps", "batch_size", "learning_rate")
    facts = {
        "configs": _distinct(ablation.config_path for ablation in ablations),
        "overrides": list(ablations[0].overrides),
        "seeds": list(ablations[0].seeds),
        **{name: _distinct(getattr(config, name) for config in configs) for name in names},
        "input": _distinct(" x ".join(map(str, network_size(config))) for config in configs),
        "evaluated_images": _distinct(report["num_images"] for report in reports),
        "trainings": len(runs),
        "finished": len(reports),
        "commits": _distinct(report["environment"]["commit"] for report in reports),
        "hardware": _distinct(report["environment"]["hardware"] for report in reports),
        "origins": origins if len(origins) > 1 else [],
    }
    if len(facts["evaluated_images"]) > 1:
        raise ValueError(
            f"Trainings were evaluated on different numbers of images, {facts['evaluated_images']}. Remove the "
            "evaluation.json and the rows of the trainings to evaluate again."
        )
    return facts


def describe_origins(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Returns the commits and the hardware that rows `{name: row}` come from, with the names of the rows of each."""
    origins = {}
    for name, row in rows.items():
        origins.setdefault((row["environment"]["commit"], row["environment"]["hardware"]), []).append(name)
    return [f"{commit} on {hardware}: {' '.join(names)}" for (commit, hardware), names in origins.items()]


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Returns the distinct values that are not `None`, in order; paths as text."""
    return list(
        dict.fromkeys(str(value) if isinstance(value, Path) else value for value in values if value is not None)
    )


def score_columns(rows: list[dict[str, Any]]) -> list[str]:
    """Returns the keys of the main scores of all rows, in the order of the tasks."""
    return list(dict.fromkeys(key for row in reversed(rows) for key in row["scores"]))


def format_summary(summary: dict[str, Any] | None, digits: int) -> str:
    """Formats a summary as `0.1234 ± 0.0056`, without the deviation for one seed."""
    if summary is None:
        return NOTHING
    deviation = "" if summary["std"] is None else f" ± {summary['std']:.{digits}f}"
    return f"{summary['mean']:.{digits}f}{deviation}"


def format_cost(cost: float | None) -> str:
    """Formats a cost with two decimals."""
    return NOTHING if cost is None else f"{cost:.2f}"


def format_table(header: Iterable[str], lines: Iterable[Sequence[str]]) -> str:
    """Formats a Markdown table whose first column is text."""
    header = list(header)
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


def to_markdown(title: str, rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Formats a table as Markdown, with the facts below it; empty columns are left out."""
    keys = score_columns(rows)
    columns = {
        "": [row["name"] for row in rows],
        **{f"{key} {arrow(key)}": [format_summary(row["scores"].get(key), 4) for row in rows] for key in keys},
        "Δm, % ↑": [format_summary(row[GAIN], 2) for row in rows],
        "M parameters": [format_cost(row["parameters_millions"]) for row in rows],
        "GMAC": [format_cost(row["multiply_accumulates_billions"]) for row in rows],
    }
    columns = {header: cells for header, cells in columns.items() if set(cells) != {NOTHING}}
    table = format_table(columns, zip(*columns.values(), strict=True))
    notes = "\n".join(
        f"- {name.replace('_', ' ')}: {', '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in facts.items()
        if value != []
    )
    return f"# {title}\n\n{table}\n\n{EXPLANATION}\n\n{notes}\n"


def to_csv(rows: list[dict[str, Any]]) -> str:
    """Formats a table as CSV, with mean and standard deviation of every score; missing values are empty."""
    keys = score_columns(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    statistic = [f"{key} {name}" for key in (*keys, GAIN) for name in ("mean", "std")]
    writer.writerow(["name", *statistic, *COSTS])
    for row in rows:
        summaries = [*(row["scores"].get(key) for key in keys), row[GAIN]]
        values = [summary and summary[name] for summary in summaries for name in ("mean", "std")]
        writer.writerow([row["name"], *values, *(row[name] for name in COSTS)])
    return text.getvalue()


def save_table(stem: Path, title: str, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Writes `stem`.md, `stem`.csv and `stem`.json."""
    save_report(stem.with_suffix(".json"), title=title, rows=rows, **facts)
    write_text(stem.with_suffix(".csv"), to_csv(rows))
    write_text(stem.with_suffix(".md"), to_markdown(title, rows, facts))

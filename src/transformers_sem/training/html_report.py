"""`training_report.html`: a run to look at in a browser, while it trains and afterwards.

The page is one file: pictures are inside, nothing is loaded from anywhere, and no script runs. It is drawn from what lies in
the folder of the run: `history.jsonl`, `snapshots/`, `evaluation.json`. What is missing or broken there is said on the page.
"""

import base64
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from transformers_sem.evaluation.metrics import METRICS, metric_of

from ..configuration_sem import SEMConfig
from ..evaluation.sums import main_scores
from ..utils.environment import environment
from ..utils.files import atomic_write
from .config import TrainingConfig
from .history import HISTORY_NAME, history_lines, read_history
from .plan import effective_settings
from .snapshots import SNAPSHOTS_NAME, cut_grid, list_snapshots


REPORT_NAME = "training_report.html"
# Okabe and Ito's colours, which people of any colour vision tell apart
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#4b5563",
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "report",  # the same run gives the same file
}
MAX_STEPS_SHOWN = 6  # predictions of more snapshots than that are not compared at a glance
REFRESH_SECONDS = 60
LARGEST_DRAWN = 1e30  # beyond, the axes of matplotlib overflow

STATES = ("offsets", "stage_weights")
# what JSON and pictures raise that hold something else than they should; PIL calls a broken chunk a syntax error
UNREADABLE = (
    *(ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError),
    *(SyntaxError, Image.DecompressionBombError),
)

Points = list[tuple[int, float]]  # (step, value)


@dataclass
class Records:
    """What a folder holds of a run.

    Args:
        history (`list[dict]`): Log entries, by step.
        snapshots (`list[dict]`): Numbers of the snapshots, by step, each with "cells", its pictures row by row.
        evaluation (`dict`, *optional*): The final scores.
        notes (`list[str]`): What could not be read.
    """

    history: list[dict]
    snapshots: list[dict]
    evaluation: dict | None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Chart:
    """A picture of curves, with what it shows in words."""

    title: str
    source: str  # data URI


def write_html_report(config: TrainingConfig, model_config: SEMConfig, status: str) -> Path:
    """Draws the page anew from what lies in `output_dir`.

    Args:
        config (`TrainingConfig`): Settings of the run.
        model_config (`SEMConfig`): Those of its model.
        status (`str`): "running", which lets the page reload itself, or another word for how the run ended.

    Returns:
        `Path`: the page.
    """
    output_dir = Path(config.output_dir)
    records = read_records(output_dir)
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    ).get_template("training_report.html.jinja")
    page = template.render(
        name=output_dir.resolve().name,
        status=status,
        refresh_seconds=REFRESH_SECONDS if status == "running" else None,
        facts=list_facts(config, model_config, records.history),
        notes=records.notes,
        sections=draw_sections(model_config, records),
        scores=list_scores(records.evaluation) if records.evaluation else [],
        evaluation=records.evaluation,
        num_images=records.snapshots[-1]["num_images"] if records.snapshots else 0,
        strips=film_strips(records.snapshots),
        settings=effective_settings(config, model_config),
        environment=environment(),
    )
    path = output_dir / REPORT_NAME
    with atomic_write(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def read_records(output_dir: Path) -> Records:
    """Reads what there is; what cannot be read becomes a note."""
    notes: list[str] = []
    history, num_lines = read_history(output_dir), len(history_lines(output_dir))
    if len(history) < num_lines:
        notes.append(
            f"Line {len(history) + 1} of {num_lines} of {HISTORY_NAME} could not be read; it ends the curves."
        )
    snapshots = []
    for path in list_snapshots(output_dir / SNAPSHOTS_NAME):
        try:
            snapshots.append(read_snapshot(path))
        except UNREADABLE:
            notes.append(f"The snapshot {path.name} could not be read and is left out.")
    evaluation = None
    if (output_dir / "evaluation.json").is_file():
        try:
            evaluation = read_evaluation(output_dir / "evaluation.json")
        except UNREADABLE:
            notes.append("evaluation.json could not be read: the final scores are left out.")
    return Records(history, snapshots, evaluation, notes)


def read_snapshot(path: Path) -> dict:
    """Numbers of a snapshot, and the cells of its picture."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    check_snapshot(facts)
    with Image.open(path.with_suffix(".png")) as grid:
        num_rows, num_columns = 2 * facts["num_pictures"], 1 + len(facts["tasks"])
        cells = cut_grid(grid.convert("RGB"), num_rows, num_columns)
    states = {name: {task: list(row) for task, row in dict(facts[name]).items()} for name in STATES}
    return {**facts, **states, "scores": dict(facts["scores"]), "cells": cells}


def check_snapshot(facts: dict) -> None:
    """Raises one of `UNREADABLE` unless the numbers of a snapshot can be shown."""
    step, tasks, num_images = (facts[name] for name in ("step", "tasks", "num_images"))
    are_tasks = isinstance(tasks, list) and all(isinstance(task, str) for task in tasks)
    if not (are_tasks and isinstance(step, int) and is_number(step) and is_number(num_images)):
        raise ValueError(f"A snapshot is of a step, tasks and images; got {step!r}, {tasks!r} and {num_images!r}.")


def read_evaluation(path: Path) -> dict:
    """The final scores, of which a table can be made."""
    evaluation = json.loads(path.read_text(encoding="utf-8"))
    list_scores(evaluation)
    return {name: evaluation[name] for name in ("scores", "constant_scores", "num_images")}


def is_number(value: Any) -> bool:
    """Whether a value can be drawn."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST_DRAWN


def points_of(entries: Iterable[dict], value_of: Callable[[dict], Any]) -> Points:
    """`(step, value)` of the entries that have a value."""
    pairs = ((entry["step"], value_of(entry)) for entry in entries)
    return [(step, value) for step, value in pairs if is_number(step) and is_number(value)]


# ----------------------------------------------------------------------------------------------------------------------
# Drawing


def draw_chart(
    title: str, curves: dict[str, Points], unit: str = "", *, smooth: bool = False, from_zero: bool = False
) -> Chart:
    """Draws curves over the steps, with a legend if there is more than one."""
    with rc_context(STYLE):
        figure = Figure(figsize=(3.7, 2.3), layout="constrained")
        axes = figure.add_subplot()
        for (name, points), color in zip(curves.items(), COLORS * len(curves), strict=False):
            steps, values = zip(*points, strict=True) if points else ((), ())
            if smooth and len(values) > 40:
                axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.35)
                values = moving_mean(values, len(values) // 20)
            axes.plot(steps, values, color=color, label=name, marker="o" if len(values) < 20 else None, markersize=3)
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.margins(x=0.02)
        if len(curves) > 1:
            figure.legend(loc="outside upper left", ncols=len(curves), frameon=False, fontsize=8, handlelength=1.2)
        return Chart(title, svg_uri(figure))


def moving_mean(values: Sequence[float], half_width: int) -> list[float]:
    """The mean over `half_width` neighbours on either side, fewer at the ends."""
    windows = (values[max(0, place - half_width) : place + half_width + 1] for place in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def svg_uri(figure: Figure) -> str:
    """A figure as a data URI."""
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return data_uri(buffer.getvalue(), "image/svg+xml")


def data_uri(content: bytes, media_type: str) -> str:
    """Content as an address that holds it."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def draw_sections(model_config: SEMConfig, records: Records) -> dict[str, list[Chart]]:
    """All charts, `{section: charts}`; a section without data has none."""
    history, snapshots, tasks = records.history, records.snapshots, model_config.tasks
    losses = {"total": points_of(history, lambda entry: entry.get("loss"))}
    losses |= {task: points_of(history, lambda entry, task=task: entry.get("losses", {}).get(task)) for task in tasks}
    run = {
        "learning rate": ("learning_rate", ""),
        "speed": ("images_per_second", "images/s"),
        "memory": ("memory_gigabytes", "GB"),
        "skipped steps": ("skipped_steps", ""),
    }
    speeds = {title: points_of(history, lambda entry, key=key: entry.get(key)) for title, (key, _) in run.items()}
    keys = [f"{task}/{METRICS[task].main}" for task in tasks if task in METRICS]
    scores = {key: points_of(snapshots, lambda snapshot, key=key: snapshot["scores"].get(key)) for key in keys}
    return {
        "losses": [draw_chart(name, {name: points}, smooth=True) for name, points in losses.items() if points],
        "run": [
            draw_chart(title, {title: points}, run[title][1], from_zero=True)
            for title, points in speeds.items()
            if any(value for _, value in points)  # nothing skipped is nothing to show
        ],
        "scores": [draw_chart(key + better_direction(key), {key: points}) for key, points in scores.items() if points],
        "offsets": draw_stages(snapshots, "offsets", tasks, "pixels"),
        "stage_weights": draw_stages(snapshots, "stage_weights", tasks, "share"),
    }


def better_direction(key: str) -> str:
    """An arrow to where the main score of a task is better."""
    return " ↓" if metric_of(key).lower_is_better else " ↑"


def draw_stages(snapshots: list[dict], name: str, tasks: list[str], unit: str) -> list[Chart]:
    """A chart for each task with a curve for each encoder stage, the deepest last."""
    charts = []
    for task in tasks:
        values = {shot["step"]: shot[name].get(task, []) for shot in snapshots}
        num_stages = max(map(len, values.values()), default=0)
        curves = {
            f"stage {stage + 1}": [
                (step, row[stage]) for step, row in values.items() if stage < len(row) and is_number(row[stage])
            ]
            for stage in range(num_stages)
        }
        if curves:
            charts.append(draw_chart(task, curves, unit, from_zero=True))
    return charts


# ----------------------------------------------------------------------------------------------------------------------
# Tables and pictures


def list_facts(config: TrainingConfig, model_config: SEMConfig, history: list[dict]) -> dict[str, str]:
    """What a person wants to know first."""
    step = history[-1]["step"] if history else 0
    facts = {
        "steps": f"{step:,} of {config.max_steps:,}",
        "images seen": f"{step * config.batch_size:,}",
        "time": describe_time(config, history),
        "tasks": ", ".join(model_config.tasks),
        "data": config.dataset,
        "written": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
    }
    skipped = next((entry["skipped_steps"] for entry in reversed(history) if entry.get("skipped_steps")), 0)
    return facts | ({"skipped steps": f"{skipped:,}, not finite"} if is_number(skipped) and skipped else {})


def describe_time(config: TrainingConfig, history: list[dict]) -> str:
    """How long the steps took by their logged speeds, over all interruptions, and how long the rest will at the last."""
    speeds = dict(points_of(history, lambda entry: entry.get("images_per_second")))
    speeds = {step: speed for step, speed in speeds.items() if speed > 0}
    if not speeds:
        return "not known yet"
    starts = [0, *speeds]
    spent = sum(
        (step - start) * config.batch_size / speed
        for start, (step, speed) in zip(starts, speeds.items(), strict=False)
    )
    step, speed = list(speeds.items())[-1]
    rest = (config.max_steps - step) * config.batch_size / speed
    try:
        text = f"{timedelta(seconds=round(spent))} of training"
        return f"{text}, about {timedelta(seconds=round(rest))} left" if rest > 0 else text
    except (OverflowError, ValueError):  # infinity, nan
        return f"not known: the speeds in {HISTORY_NAME} cannot be right"


def list_scores(evaluation: dict) -> list[dict]:
    """Rows of the table of final scores: name, value, that of the constant predictor, and whether the task is judged by it."""
    main_keys = set(main_scores(evaluation["scores"]).values())
    return [
        {
            "name": key,
            "model": f"{value:.4f}",
            "constant": f"{evaluation['constant_scores'][key]:.4f}",
            "is_main": key in main_keys,
            "arrow": better_direction(key) if key in main_keys else "",
        }
        for key, value in evaluation["scores"].items()
    ]


def film_strips(snapshots: list[dict]) -> list[dict]:
    """For each image its picture, and for each task the ground truth beside the predictions of some of the snapshots."""
    if not snapshots:
        return []
    last = snapshots[-1]
    alike = [
        shot for shot in snapshots if (shot["tasks"], shot["num_pictures"]) == (last["tasks"], last["num_pictures"])
    ]
    places = np.linspace(0, len(alike) - 1, min(len(alike), MAX_STEPS_SHOWN)).round().astype(int)
    shown = [alike[place] for place in places]
    strips = []
    for index in range(last["num_pictures"]):
        rows = {
            task: {"ground truth": jpeg_uri(last["cells"][2 * index + 1][column])}
            | {f"step {shot['step']:,}": jpeg_uri(shot["cells"][2 * index][column]) for shot in shown}
            for column, task in enumerate(last["tasks"], start=1)
        }
        strips.append({"image": jpeg_uri(last["cells"][2 * index][0]), "rows": rows})
    return strips


def jpeg_uri(picture: Image.Image) -> str:
    """A picture as a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88, subsampling=0)
    return data_uri(buffer.getvalue(), "image/jpeg")

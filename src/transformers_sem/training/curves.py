"""`curves.png`: losses, validation scores and learning rate over the steps of a run."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluation.metrics import arrow
from ..evaluation.sums import main_scores
from ..utils.extras import require
from ..utils.files import atomic_write
from .history import read_history


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


CURVES_NAME = "curves.png"
NUM_COLUMNS = 3
LARGEST_DRAWN = 1e30  # the axes of matplotlib overflow beyond

Points = list[tuple[int, float]]  # (step, value)


def save_curves(output_dir: Path) -> None:
    """Draws the history of a run as `output_dir/curves.png`.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    with atomic_write(output_dir / CURVES_NAME) as unfinished:
        plot_curves(read_history(output_dir)).savefig(unfinished, dpi=120)


def plot_curves(history: list[dict]) -> "Figure":
    """Draws a panel of the losses, one of the learning rate, and one for the main score of each task.

    Args:
        history (`list[dict]`): Entries as `read_history` returns them.
    """
    figure_module = require("matplotlib.figure", extra="train")
    losses = [entry for entry in history if "loss" in entry]
    scores = [entry for entry in history if "scores" in entry]
    keys = main_scores({key: value for entry in scores for key, value in entry["scores"].items()}).values()
    num_rows = math.ceil((2 + len(keys)) / NUM_COLUMNS)
    figure = figure_module.Figure(figsize=(4 * NUM_COLUMNS, 2.8 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, NUM_COLUMNS, squeeze=False).flatten()
    draw_losses(panels[0], losses)
    draw_line(panels[1], "learning rate", points_of(losses, ["learning_rate"]))
    for axes, key in zip(panels[2:], keys, strict=False):
        draw_line(axes, f"validation {key} {arrow(key)}", points_of(scores, ["scores", key]))
    for axes in panels[2 + len(keys) :]:
        axes.remove()
    for axes in panels[: 2 + len(keys)]:
        axes.set_xlim(left=0)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=8, frameon=False)
    return figure


def draw_losses(axes: "Axes", entries: list[dict]) -> None:
    """Draws the total loss and those of the tasks, on a logarithmic scale."""
    tasks = dict.fromkeys(task for entry in entries for task in entry["losses"])
    curves = {"total": points_of(entries, ["loss"]), **{task: points_of(entries, ["losses", task]) for task in tasks}}
    draw_line(axes, "training losses", [])
    for name, points in curves.items():
        axes.plot(*split(points), label=name, marker="." if len(points) < 20 else None)
    if any(value > 0 for points in curves.values() for _, value in points):
        axes.set_yscale("log", nonpositive="mask")


def draw_line(axes: "Axes", title: str, points: Points) -> None:
    """Draws one curve."""
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    if points:
        axes.plot(*split(points), marker="." if len(points) < 20 else None)


def points_of(entries: Iterable[dict], path: list[str]) -> Points:
    """Returns `(step, value)` of the entries that have a finite number at a path of keys."""
    points = []
    for entry in entries:
        value = entry
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, (int, float)) and abs(value) < LARGEST_DRAWN:
            points.append((entry["step"], value))
    return points


def split(points: Points) -> tuple[list[int], list[float]]:
    """Splits points into steps and values."""
    return [step for step, _ in points], [value for _, value in points]

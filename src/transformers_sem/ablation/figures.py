"""Figures of ablations: scores against a setting, and deep features in two dimensions."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.transforms import TransformedDataset
from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..tasks import get_task, resize_label
from ..utils.extras import require
from ..utils.files import atomic_write
from .tables import arrow, score_columns


if TYPE_CHECKING:
    from matplotlib.figure import Figure


NUM_CLASSES, NUM_POINTS = 10, 150  # number of classes, the most frequent ones, and of points of each
MAX_PIXELS = 256  # of each image; the features of a whole dataset do not fit in memory


def save_figure(figure: "Figure", path: Path) -> None:
    """Saves a figure atomically."""
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, dpi=150)


def plot_settings(panels: dict[str, dict[int, dict[str, Any]]]) -> "Figure":
    """Draws the main scores against settings: a row for each task, a column for each setting, error bars over seeds.

    Args:
        panels (`dict`): `{name of the setting: {value: row of a table}}`; rows without scores are skipped.
    """
    keys = score_columns([row for rows in panels.values() for row in rows.values()])
    figure = require("matplotlib.figure", extra="train").Figure(
        figsize=(3.4 * len(panels), 0.6 + 2.2 * max(len(keys), 1)), layout="constrained"
    )
    grid = figure.subplots(max(len(keys), 1), len(panels), sharex="col", sharey="row", squeeze=False)
    for line, key in zip(grid, keys, strict=False):
        for axes, rows in zip(line, panels.values(), strict=True):
            points = {value: row["scores"][key] for value, row in rows.items() if key in row["scores"]}
            means = [point["mean"] for point in points.values()]
            deviations = [point["std"] or 0 for point in points.values()]
            axes.errorbar([*points], means, deviations, marker="o", capsize=3)
            axes.set_xticks([*rows])
            axes.grid(alpha=0.3)
        line[0].set_ylabel(f"{key} {arrow(key)}")
    for axes, name in zip(grid[-1], panels, strict=True):
        axes.set_xlabel(name)
    return figure


@dataclass
class Features:
    """Deep features of labeled pixels.

    Args:
        states (`np.ndarray`): float32 `(points, channels)`.
        ids (`np.ndarray`): Class ids, `(points,)`.
    """

    states: np.ndarray
    ids: np.ndarray


@torch.no_grad()
def labeled_states(
    model: SEMForMultiTaskDensePrediction, image_processor: SEMImageProcessor, rows: datasets.Dataset, task: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields features before the head of a task and their class ids for each image: `(points, channels)`, `(points,)`.

    The choice of pixels depends on the labels only, so that models can be compared.
    """
    invalid = get_task(task).kind.invalid_value
    samples = TransformedDataset(rows, [task], image_processor)
    for index in tqdm(range(len(samples)), desc="features"):
        sample = samples[index]
        outputs = model.sem(sample["pixel_values"].unsqueeze(0).to(model.device))
        states = outputs.task_hidden_states[task][0]  # (C, h, w)
        ids = resize_label(task, sample["labels"][task], tuple(states.shape[-2:])).flatten()
        valid = (ids != invalid).nonzero().squeeze(1)
        chosen = valid[torch.randperm(len(valid), generator=torch.Generator().manual_seed(index))[:MAX_PIXELS]]
        yield states.flatten(1).T.cpu()[chosen], ids[chosen]


def collect_features(
    model: SEMForMultiTaskDensePrediction, image_processor: SEMImageProcessor, rows: datasets.Dataset, task: str
) -> Features:
    """Collects features of up to `NUM_POINTS` pixels of each of the most frequent classes."""
    parts = zip(*labeled_states(model.eval(), image_processor, rows, task), strict=True)
    states, ids = (torch.cat(part).numpy() for part in parts)
    classes, counts = np.unique(ids, return_counts=True)
    chosen = []
    for index in np.argsort(-counts, kind="stable")[:NUM_CLASSES]:
        step = max(1, counts[index] // NUM_POINTS)  # spread over the images
        chosen += np.flatnonzero(ids == classes[index])[::step][:NUM_POINTS].tolist()
    return Features(states[chosen], ids[chosen])


def plot_features(features: dict[str, Features], class_names: dict[int, str]) -> "Figure":
    """Draws the features of several models by t-SNE, with their silhouette score, a measure of class separation.

    Args:
        features (`dict[str, Features]`): `{title: features}` of the same pixels.
        class_names (`dict[int, str]`): Names of the classes; a class without a name is shown by its id.
    """
    TSNE = require("sklearn.manifold", extra="train").TSNE  # noqa: N806
    silhouette_score = require("sklearn.metrics", extra="train").silhouette_score
    figure = require("matplotlib.figure", extra="train").Figure(
        figsize=(5.2 * len(features), 5.6), layout="constrained"
    )
    for axes, (title, points) in zip(
        figure.subplots(1, len(features), squeeze=False)[0], features.items(), strict=True
    ):
        states = (points.states - points.states.mean(axis=0)) / points.states.std(axis=0).clip(1e-6)
        places = TSNE(init="pca", perplexity=min(30, len(states) - 1), random_state=0).fit_transform(states)
        for class_id in dict.fromkeys(points.ids.tolist()):
            axes.scatter(*places[points.ids == class_id].T, s=6, label=class_names.get(class_id, str(class_id)))
        axes.set_title(f"{title}, silhouette {silhouette_score(states, points.ids):.3f}")
        axes.set_xticks([])
        axes.set_yticks([])
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, markerscale=2.5, frameon=False)
    return figure

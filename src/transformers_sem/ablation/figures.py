"""Pictures of ablations: scores against a setting, and deep features in two dimensions."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from ..data.transforms import TransformedDataset
from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..tasks import get_task, resize_label
from ..utils.files import atomic_write
from .tables import arrow, score_columns


NUM_CLASSES, NUM_POINTS = 10, 150  # of a picture of features: the most frequent classes, and points of each
MAX_PIXELS = 256  # of an image; with all, the features of a data set would fill the memory


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure beside and then renames it."""
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, dpi=150)


def plot_settings(panels: dict[str, dict[int, dict[str, Any]]]) -> Figure:
    """Draws the main score of each task against a setting, mean and standard deviation over seeds, a column for each setting.

    Args:
        panels (`dict`): `{name of the setting: {value: row of a table}}`; rows without scores are left out.
    """
    keys = score_columns([row for rows in panels.values() for row in rows.values()])
    figure = Figure(figsize=(3.4 * len(panels), 0.6 + 2.2 * max(len(keys), 1)), layout="constrained")
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
    """Deep features of labelled pixels.

    Args:
        states (`np.ndarray`): float32 `(points, channels)`.
        ids (`np.ndarray`): The class of each, `(points,)`.
    """

    states: np.ndarray
    ids: np.ndarray


@torch.no_grad()
def labelled_states(
    model: SEMForMultiTaskDensePrediction, image_processor: SEMImageProcessor, rows: datasets.Dataset, task: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """The features of a task just before its head, and the class of each, image by image: `(points, channels)`, `(points,)`.

    Which pixels those are depends on the labels alone, so that models can be compared.
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
    """Features of some pixels of the most frequent classes, as many of each where there are."""
    parts = zip(*labelled_states(model.eval(), image_processor, rows, task), strict=True)
    states, ids = (torch.cat(part).numpy() for part in parts)
    classes, counts = np.unique(ids, return_counts=True)
    chosen = []
    for index in np.argsort(-counts, kind="stable")[:NUM_CLASSES]:
        step = max(1, counts[index] // NUM_POINTS)  # spread over the images
        chosen += np.flatnonzero(ids == classes[index])[::step][:NUM_POINTS].tolist()
    return Features(states[chosen], ids[chosen])


def plot_features(features: dict[str, Features], class_names: dict[int, str]) -> Figure:
    """Draws the features of several models by t-SNE, and how well the classes separate: the silhouette of the features.

    Args:
        features (`dict[str, Features]`): `{title: features}` of the same pixels.
        class_names (`dict[int, str]`): Names of the classes; those without one go by their id.
    """
    from sklearn.manifold import TSNE  # of the extra `analysis`
    from sklearn.metrics import silhouette_score

    figure = Figure(figsize=(5.2 * len(features), 5.6), layout="constrained")
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

"""Looks at a model while it trains: what it sees in a few validation images, how well, and where its modules look.

A snapshot is a picture `step_000200.png` and the numbers `step_000200.json`, in a folder of their own. Taking one changes
nothing of the training: no random number is drawn, no buffer moves, and every module goes on in the mode it was in.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, ImageOps
from torch import Tensor, nn

from ..configuration_sem import SEMConfig
from ..data.benchmarks import Benchmark
from ..data.transforms import row_to_tensors
from ..evaluation.sums import MetricSums
from ..image_processing_sem import SEMImageProcessor
from ..layers import Padding
from ..modeling_sem import SEMForMultiTaskDensePrediction, SEMModel, SEMStates, reference_grid
from ..utils.files import atomic_write
from ..visualization.colors import colorize_maps
from ..visualization.panels import Prediction, to_channels_last


SNAPSHOTS_NAME = "snapshots"
NUM_PICTURES = 4  # of the images that are scored, so many are drawn
CELL_WIDTH = 256


@dataclass(kw_only=True)
class Snapshots:
    """Takes snapshots of a training on a few images, spread evenly over the validation rows.

    Args:
        folder (`Path`): Where they go.
        image_processor (`SEMImageProcessor`): Of the model.
        rows (`datasets.Dataset`): The validation rows.
        num_images (`int`): How many of them to look at.
        benchmark (`Benchmark`): Where the rows are from; it knows on which labels a task is judged.
        accelerator (`Accelerator`): Every rank looks, because the weights may lie in parts; the main process writes.
    """

    folder: Path
    image_processor: SEMImageProcessor
    rows: datasets.Dataset
    num_images: int
    benchmark: Benchmark
    accelerator: Accelerator

    def __post_init__(self):
        places = np.linspace(0, len(self.rows) - 1, min(self.num_images, len(self.rows)))
        self.rows = self.rows.select(places.round().astype(int))

    def take(self, model: SEMForMultiTaskDensePrediction, step: int) -> None:
        """Writes the snapshot of a step, over one of the same step that is there already."""
        # a compiled model is not compiled once more for this
        with evaluation_mode(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            seen = [self._look(model, index) for index in range(len(self.rows))]
        if self.accelerator.is_main_process:
            predictions, states = zip(*seen, strict=True)
            facts = {"step": step, "tasks": model.config.tasks, "num_images": len(seen)}
            facts["num_pictures"] = len(predictions[:NUM_PICTURES])
            facts |= {"scores": self._score(model.config, predictions), **mean_states(states)}
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"step_{step:06d}.png"
            with atomic_write(path) as unfinished:
                draw_grid(predictions[:NUM_PICTURES]).save(unfinished)
            # last: where the numbers are, the picture is
            with atomic_write(path.with_suffix(".json")) as unfinished:
                unfinished.write_text(json.dumps(facts) + "\n")

    def truncate_after(self, step: int) -> None:
        """Removes what is of steps that a run, which resumes from `step`, has yet to take."""
        if self.accelerator.is_main_process:
            for path in list(self.folder.glob("*step_*")):
                if snapshot_step(path) is not None and snapshot_step(path) > step:
                    path.unlink()

    def _look(self, model: SEMForMultiTaskDensePrediction, index: int) -> tuple[Prediction, dict]:
        image, labels = row_to_tensors(self.rows[index], model.config.tasks)
        inputs = self.image_processor([image.as_subclass(Tensor)], return_tensors="pt").to(model.device, model.dtype)
        outputs = model(**inputs, output_sem_states=True)
        sizes = [tuple(image.shape[-2:])]
        maps = self.image_processor.post_process_dense_prediction(outputs, target_sizes=sizes)[0]
        maps = {task: value.cpu() for task, value in maps.items()}
        states = summarize_states(model.sem, outputs.sem_states, inputs["pixel_values"].shape[-2:])
        return Prediction(image.as_subclass(Tensor), maps, labels), states

    def _score(self, config: SEMConfig, predictions: list[Prediction]) -> dict[str, float]:
        kwargs = self.benchmark.task_metric_kwargs
        kwargs = {task: kwargs[task] for task in kwargs if task in config.task_num_labels}
        metric = MetricSums(config.task_num_labels, kwargs)
        columns = self.benchmark.protocol_columns(self.rows.column_names)
        for index, prediction in enumerate(predictions):
            row = self.rows.select_columns(columns)[index] if columns else {}
            references = self.benchmark.references(row, prediction.labels)
            # what is not finite has no score, and must not end a training
            scored = [t for t in metric.task_num_labels if t in references and is_finite(prediction.maps[t])]
            metric.add(
                {task: metric.image_statistics(task, prediction.maps[task], references[task]) for task in scored}
            )
        return metric.scores()


def is_finite(values: Tensor) -> bool:
    """Whether all values are numbers."""
    return bool(values.isfinite().all())


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Out of training mode, and back to the mode that each module was in; a frozen encoder is in none."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def summarize_states(model: SEMModel, states: SEMStates, size: tuple[int, int]) -> dict[str, dict[str, list[float]]]:
    """What the intra-task modules do, in one number for each task and encoder stage that they see, shallow to deep.

    Args:
        model (`SEMModel`): The model.
        states (`SEMStates`): Its states of one batch.
        size (`tuple[int, int]`): Height and width of the images as the model got them.

    Returns:
        `{"offsets": {task: [pixels]}, "stage_weights": {task: [share]}}`: the mean absolute offset of Eq. (1), in pixels of
        these images, and the mean weight of Eq. (3). Without intra-task modules, no tasks.
    """
    grids = reference_pixels(model, size) if states.points else []
    half = torch.tensor(size) / 2
    return {
        "offsets": {
            task: [
                ((points.cpu() + 1) * half - grid).abs().mean().item()
                for points, grid in zip(stage_points, grids, strict=True)
            ]
            for task, stage_points in states.points.items()
        },
        "stage_weights": {
            task: weights.float().mean(dim=(0, 1)).tolist() for task, weights in states.stage_weights.items()
        },
    }


def reference_pixels(model: SEMModel, size: tuple[int, int]) -> list[Tensor]:
    """Where the points of each stage lie without offsets, `(N_s, 2)` as (y, x) in pixels of an image of `size`."""
    padded = torch.tensor(Padding(tuple(size), model.size_divisor).padded_size)
    grids = []
    for stride, offset_stride in zip(model.strides, model.config.offset_strides, strict=True):
        height, width = (round(edge / (stride * offset_stride)) for edge in padded.tolist())
        grids.append((reference_grid(height, width, device=padded.device) + 1) / 2 * padded)
    return grids[-model.config.num_intra_task_stages :]


def mean_states(states: list[dict[str, dict[str, list[float]]]]) -> dict[str, dict[str, list[float]]]:
    """The mean over images of what `summarize_states` gives."""
    return {
        name: {task: np.mean([image[name][task] for image in states], axis=0).tolist() for task in states[0][name]}
        for name in states[0]
    }


def draw_grid(predictions: list[Prediction]) -> Image.Image:
    """Two rows of equal cells for each image: the image and its predicted maps, then an empty cell and the labels."""
    height, width = predictions[0].image.shape[-2:]
    cell = CELL_WIDTH, round(CELL_WIDTH * height / width)
    rows = []
    for prediction in predictions:
        pairs = [colorize_maps(task, [prediction.maps[task], label]) for task, label in prediction.labels.items()]
        image = to_channels_last(prediction.image)
        rows.append([image, *(predicted for predicted, _ in pairs)])
        rows.append([np.full_like(image, 255), *(expected for _, expected in pairs)])
    return Image.fromarray(np.concatenate([np.concatenate([fit(map, cell) for map in row], axis=1) for row in rows]))


def fit(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Brings a picture `(height, width, 3)` into a cell of `size` (width, height), white around it."""
    return np.asarray(ImageOps.pad(Image.fromarray(picture), size, Image.Resampling.LANCZOS, color="white"))


def cut_grid(grid: Image.Image, num_rows: int, num_columns: int) -> list[list[Image.Image]]:
    """The cells of `draw_grid`, row by row.

    Raises:
        ValueError: If the picture cannot have so many.
    """
    if not (1 <= num_rows <= grid.height and 1 <= num_columns <= grid.width):
        raise ValueError(
            f"A picture of {grid.height} x {grid.width} pixels has no {num_rows} x {num_columns} cells: it is not the picture "
            "of these numbers."
        )
    width, height = grid.width // num_columns, grid.height // num_rows
    return [
        [
            grid.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))
            for column in range(num_columns)
        ]
        for row in range(num_rows)
    ]


def list_snapshots(folder: Path) -> list[Path]:
    """The numbers of whole snapshots, oldest first."""
    paths = (path for path in folder.glob("step_*.json") if path.with_suffix(".png").is_file())
    return sorted((path for path in paths if snapshot_step(path) is not None), key=snapshot_step)


def snapshot_step(path: Path) -> int | None:
    """The step in a file name of a snapshot, finished or not; `None` for other files."""
    digits = path.stem.rpartition("step_")[2]
    return int(digits) if digits.isdecimal() else None

"""Running a model over labelled rows: the field's protocol, every image at its native size, padding ignored."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from ..data.transforms import row_to_tensors
from ..evaluation import ConstantPredictor, MultiTaskMetric, format_report
from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..panels import Prediction
from .configuration import TrainingConfig
from .reporting import save_report


@torch.no_grad()
def predict(
    model: SEMForMultiTaskDensePrediction, image_processor: SEMImageProcessor, images: list[Tensor]
) -> list[dict[str, Tensor]]:
    """Predictions in physical units, at the size of each image.

    Args:
        model (`SEMForMultiTaskDensePrediction`): In evaluation mode.
        image_processor (`SEMImageProcessor`): Of the model.
        images (`list[Tensor]`): uint8 `(3, height, width)`, of any sizes that the processor brings to one.
    """
    inputs = image_processor(images, return_tensors="pt").to(model.device, model.dtype)
    sizes = [tuple(image.shape[-2:]) for image in images]
    maps = image_processor.post_process_dense_prediction(model(**inputs), target_sizes=sizes)
    return [{task: value.cpu() for task, value in image_maps.items()} for image_maps in maps]


def predict_rows(
    model: SEMForMultiTaskDensePrediction,
    image_processor: SEMImageProcessor,
    rows: datasets.Dataset,
    batch_size: int,
) -> Iterator[Prediction]:
    """Predicts labelled rows in order, a batch at a time."""
    tasks = model.config.tasks
    for start in range(0, len(rows), batch_size):
        samples = [row_to_tensors(rows[index], tasks) for index in range(start, min(start + batch_size, len(rows)))]
        maps = predict(model, image_processor, [image.as_subclass(Tensor) for image, _ in samples])
        for (image, labels), image_maps in zip(samples, maps, strict=True):
            yield Prediction(image.permute(1, 2, 0).numpy(), image_maps, labels)


def evaluate(
    model: SEMForMultiTaskDensePrediction,
    image_processor: SEMImageProcessor,
    rows: datasets.Dataset,
    *,
    accelerator: Accelerator,
    batch_size: int,
    constant: ConstantPredictor,
) -> tuple[dict[str, float], dict[str, float]]:
    """Scores a model and the constant predictor on labelled rows, each rank on its share.

    Returns:
        `{"task/score": value}` of the model and of the constant predictor.
    """
    model.eval()
    metric, constant_metric = (MultiTaskMetric(model.config.task_num_labels) for _ in range(2))
    share = rows.shard(accelerator.num_processes, accelerator.process_index)
    predictions = predict_rows(model, image_processor, share, batch_size)
    for prediction in _progress(predictions, len(share), "evaluating", accelerator):
        _add_image(metric, prediction.maps, prediction.labels)
        _add_image(constant_metric, constant.predict(prediction.image.shape[:2]), prediction.labels)
    for sums in (metric, constant_metric):
        sums.reduce(_sum_over_ranks(accelerator))
    return metric.compute(), constant_metric.compute()


def evaluate_and_report(
    config: TrainingConfig,
    accelerator: Accelerator,
    model: SEMForMultiTaskDensePrediction,
    image_processor: SEMImageProcessor,
    rows: datasets.DatasetDict,
    path: Path,
) -> str:
    """Evaluates on the validation rows, writes the scores to `path`, and returns the table for the terminal."""
    model = model.to(accelerator.device)
    validation = rows["validation"]
    if config.num_evaluation_images is not None:
        validation = validation.select(range(min(config.num_evaluation_images, len(validation))))
    scores, constant_scores = evaluate(
        model,
        image_processor,
        validation,
        accelerator=accelerator,
        batch_size=config.images_per_forward(1),
        constant=fit_constant(rows["train"], model.config.task_num_labels, accelerator),
    )
    if accelerator.is_main_process:
        facts = {"dataset": config.dataset, "num_images": len(validation), "seed": config.seed}
        save_report(path, scores, constant_scores, **facts)
    return format_report(scores, constant_scores)


def fit_constant(
    rows: datasets.Dataset, task_num_labels: dict[str, int], accelerator: Accelerator
) -> ConstantPredictor:
    """The best constant predictor of the training rows, the same on every rank."""
    constant = ConstantPredictor(task_num_labels)
    for row in _progress(rows, len(rows), "constant predictor", accelerator):
        _, labels = row_to_tensors(row, task_num_labels)
        constant.add(labels)
    return constant


def _add_image(metric: MultiTaskMetric, maps: dict[str, Tensor], labels: dict[str, Tensor]) -> None:
    metric.add_batch(
        {task: [value] for task, value in maps.items()}, {task: [label] for task, label in labels.items()}
    )


def _sum_over_ranks(accelerator: Accelerator) -> Callable[[Tensor], Tensor]:
    # float64 counts: gloo and NCCL take them, MPS does not and is one rank anyway
    if accelerator.num_processes == 1:
        return lambda value: value
    return lambda value: accelerator.reduce(value.to(accelerator.device), reduction="sum").cpu()


def _progress(items: Iterable, total: int, title: str, accelerator: Accelerator) -> Iterable:
    return tqdm(items, total=total, desc=title, disable=not accelerator.is_main_process, mininterval=1.0)

"""Running a model over labelled rows: the field's protocol, every image at its native size, padding ignored."""

import hashlib
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from transformers_sem.utils.files import atomic_write
from transformers_sem.utils.processes import progress

from ..data.benchmarks import Benchmark, get_benchmark
from ..data.transforms import row_to_tensors
from ..hub.card import read_training
from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..training.config import TrainingConfig
from ..utils.environment import save_report
from ..utils.processes import available_cpus, process_pool
from ..visualization.panels import Prediction
from .map_files import save_maps
from .statistics_file import StatisticsFile
from .sums import ConstantPredictor, MetricSums, Sums, format_report, main_scores, scores_of


MODEL, CONSTANT = "model", "constant"  # whose statistics they are


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
            yield Prediction(image.as_subclass(Tensor), image_maps, labels)


def hash_model(model: SEMForMultiTaskDensePrediction, image_processor: SEMImageProcessor) -> "hashlib._Hash":
    """A SHA-256, to be updated further, of all that predictions depend on: weights, configuration, processing."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for part in (model.config, image_processor):
        digest.update(part.to_json_string().encode())
    return digest


@dataclass(kw_only=True)
class Evaluation:
    """An evaluation of a model on labelled rows, each rank on its share; killed, it continues where it was.

    Args:
        model (`SEMForMultiTaskDensePrediction`): The model, on its device.
        image_processor (`SEMImageProcessor`): Of the model.
        rows (`datasets.Dataset`): The labelled images.
        benchmark (`Benchmark`): Where the rows are from; it knows on which labels and images a task is judged.
        constant (`ConstantPredictor`): What the model must beat.
        accelerator (`Accelerator`): Of the ranks.
        batch_size (`int`): Images that a rank sees at once.
        num_processes (`int`): Processes of each rank that work on slow metrics beside the model.
        unfinished_dir (`Path`): Folder for the statistics of finished images; remove it when the scores are written.
        predictions_dir (`Path`, *optional*): Where to write the predicted maps.
    """

    model: SEMForMultiTaskDensePrediction
    image_processor: SEMImageProcessor
    rows: datasets.Dataset
    benchmark: Benchmark
    constant: ConstantPredictor
    accelerator: Accelerator
    batch_size: int
    num_processes: int
    unfinished_dir: Path
    predictions_dir: Path | None = None

    def __post_init__(self):
        self.model.eval()
        widths = self.model.config.task_num_labels
        kwargs = {task: kwargs for task, kwargs in self.benchmark.task_metric_kwargs.items() if task in widths}
        self.metrics = {owner: MetricSums(widths, kwargs) for owner in (MODEL, CONSTANT)}
        has_ids = "id" in self.rows.column_names
        self.ids = [str(name) for name in (self.rows["id"] if has_ids else range(len(self.rows)))]
        self.protocol_columns = self.benchmark.protocol_columns(self.rows.column_names)

    def run(self) -> tuple[MetricSums, MetricSums, list[dict]]:
        """Evaluates.

        Returns:
            The sums of the model and of the constant predictor over the images of all ranks, and the model's scores of each
            image, `{"id": name, "task/score": value}`, in the order of the rows.

        Raises:
            ValueError: If the model predicts what cannot be scored, such as NaN.
        """
        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        fingerprint = self.fingerprint()
        done = self._collect_done(fingerprint)
        share = [index for index in range(len(self.rows)) if str(index) not in done][rank::num_ranks]
        path = self.unfinished_dir / f"rank{rank}.sqlite"
        if rank > 0:
            path.unlink(missing_ok=True)  # rank 0 has what was in it, or, on another machine, it is computed again
        with StatisticsFile(path, fingerprint) as file, closing(self.image_statistics(share)) as statistics:
            statistics = progress(statistics, len(share), "evaluating", self.accelerator)
            for index, image_statistics in zip(share, statistics, strict=True):
                file.add(str(index), flatten(image_statistics))
            image_scores = [self._add(int(name), unflatten(arrays)) for name, arrays in file]
        for metric in self.metrics.values():
            metric.merge(self.accelerator)
        image_scores = sorted(gather_object(image_scores), key=itemgetter(0))
        return *self.metrics.values(), [{"id": self.ids[index], **scores} for index, scores in image_scores]

    def fingerprint(self) -> str:
        """Changes with whatever the statistics of an image depend on."""
        digest = hash_model(self.model, self.image_processor)
        constant = {task: (sums.tolist(), self.constant.counts[task]) for task, sums in self.constant.sums.items()}
        rows = self.rows._fingerprint, self.ids, self.batch_size, self.benchmark.task_metric_kwargs
        digest.update(repr((constant, rows, self.predictions_dir, version("transformers-sem"))).encode())
        return digest.hexdigest()

    def _collect_done(self, fingerprint: str) -> set[str]:
        """Names of the images that an earlier run finished, on however many ranks; rank 0 has their statistics now."""
        names = [set()]
        if self.accelerator.is_main_process:
            with StatisticsFile(self.unfinished_dir / "rank0.sqlite", fingerprint) as file:
                for path in sorted(self.unfinished_dir.glob("rank*[1-9]*.sqlite")):
                    with StatisticsFile(path, fingerprint) as other:
                        for name, statistics in other:
                            file.add(name, statistics)
                    path.unlink()
                names = [file.names()]
        return broadcast_object_list(names)[0]

    def image_statistics(self, indices: list[int]) -> Iterator[dict[str, Sums]]:
        """`{owner: {task: statistics}}` of images, in order; slow metrics run in other processes meanwhile."""
        predictions = predict_rows(self.model, self.image_processor, self.rows.select(indices), self.batch_size)
        pending: deque[dict] = deque()
        with process_pool(self.num_processes) as pool:
            for index, prediction in zip(indices, predictions, strict=True):
                pending.append(self._start(index, prediction, pool))
                if self.predictions_dir is not None:
                    save_maps(self.predictions_dir, self.ids[index].replace("/", "_"), prediction.maps)
                if len(pending) > 2 * self.num_processes:  # with more, maps would fill the memory
                    yield finish(pending.popleft())
            while pending:
                yield finish(pending.popleft())

    def _start(self, index: int, prediction: Prediction, pool: Executor) -> dict[str, dict[str, dict | Future]]:
        row = self.rows.select_columns(self.protocol_columns)[index] if self.protocol_columns else {}
        references = self.benchmark.references(row, prediction.labels)
        maps = {MODEL: prediction.maps, CONSTANT: self.constant.predict(prediction.image.shape[-2:])}
        return {
            owner: {
                task: metric.start(task, maps[owner][task], references[task], pool)
                for task in metric.task_num_labels
                if task in references
            }
            for owner, metric in self.metrics.items()
        }

    def _add(self, index: int, statistics: dict[str, Sums]) -> tuple[int, dict[str, float]]:
        for owner, metric in self.metrics.items():
            metric.add(statistics.get(owner, {}))
        return index, scores_of(statistics.get(MODEL, {}))


def finish(statistics: dict[str, dict[str, dict | Future]]) -> dict[str, Sums]:
    """Waits for what other processes still work on."""
    return {
        owner: {task: value.result() if isinstance(value, Future) else value for task, value in tasks.items()}
        for owner, tasks in statistics.items()
    }


def flatten(statistics: dict[str, Sums]) -> dict[str, np.ndarray]:
    """`{owner: {task: {name: tensor}}}` as `{"owner/task/name": array}`."""
    return {
        f"{owner}/{task}/{name}": np.asarray(value)
        for owner, tasks in statistics.items()
        for task, values in tasks.items()
        for name, value in values.items()
    }


def unflatten(arrays: dict[str, np.ndarray]) -> dict[str, Sums]:
    """The inverse of `flatten`."""
    statistics: dict[str, Sums] = {}
    for key, array in arrays.items():
        owner, task, name = key.split("/")
        statistics.setdefault(owner, {}).setdefault(task, {})[name] = torch.from_numpy(array)
    return statistics


def evaluate_and_report(
    config: TrainingConfig,
    accelerator: Accelerator,
    model: SEMForMultiTaskDensePrediction,
    image_processor: SEMImageProcessor,
    rows: datasets.DatasetDict,
    path: Path,
    *,
    num_processes: int | None = None,
    predictions_dir: Path | None = None,
) -> str:
    """Evaluates on the validation rows and returns the table for the terminal.

    Writes the scores to `path`, with what a model card says of the weights, and the scores of each image beside it as
    Parquet. `num_processes` is that of `Evaluation`; by default every core but one has one.
    """
    benchmark = get_benchmark(config.dataset, config.data_dir)
    check_widths(model.config.task_num_labels, benchmark)
    unfinished_dir = path.with_name(f"unfinished_{path.stem}")
    validation = rows["validation"]
    if config.num_evaluation_images is not None:
        validation = validation.select(range(min(config.num_evaluation_images, len(validation))))
    metric, constant_metric, image_scores = Evaluation(
        model=model.to(accelerator.device),
        image_processor=image_processor,
        rows=validation,
        benchmark=benchmark,
        constant=fit_constant(rows["train"], model.config.task_num_labels, accelerator),
        accelerator=accelerator,
        batch_size=config.images_per_forward(1),
        num_processes=num_processes or max(1, available_cpus() // accelerator.num_processes - 1),
        unfinished_dir=unfinished_dir,
        predictions_dir=predictions_dir,
    ).run()
    scores, constant_scores = metric.scores(), constant_metric.scores()
    if accelerator.is_main_process:
        save_image_scores(path.with_suffix(".parquet"), image_scores)
        save_report(
            path,
            scores=scores,
            constant_scores=constant_scores,
            class_scores=name_classes(metric.class_scores(), model.config.task_id2label),
            dataset=config.dataset,
            data=benchmark.describe(),
            num_images=len(validation),
            num_scored_images=count_scored(image_scores, scores),
            seed=config.seed,
            num_parameters=model.num_parameters(),
            training=read_training(model.name_or_path),
        )
    accelerator.wait_for_everyone()
    if accelerator.is_local_main_process:
        shutil.rmtree(unfinished_dir, ignore_errors=True)
    return format_report(scores, constant_scores)


def check_widths(task_num_labels: dict[str, int], benchmark: Benchmark) -> None:
    """Refuses a model whose classes are not those of the data.

    Raises:
        ValueError: If a task has no labels there, or another number of classes.
    """
    widths = {task: benchmark.num_labels(task) for task in task_num_labels}
    if widths != dict(task_num_labels):
        raise ValueError(
            f"A model is evaluated on the classes it has learned, {dict(task_num_labels)}; the data has {widths}. Choose "
            "the data set that it was trained on."
        )


def name_classes(class_scores: dict[str, list[float]], task_id2label: dict[str, dict]) -> dict[str, dict[str, float]]:
    """`{task: {class name: score}}`; classes without a name go by their ids."""
    return {
        task: {str(task_id2label.get(task, {}).get(index, index)): value for index, value in enumerate(values)}
        for task, values in class_scores.items()
    }


def count_scored(image_scores: list[dict], scores: dict[str, float]) -> dict[str, int]:
    """`{task: number of images}` with labels of the task that counted."""
    return {task: sum(key in image for image in image_scores) for task, key in main_scores(scores).items()}


def fit_constant(
    rows: datasets.Dataset, task_num_labels: dict[str, int], accelerator: Accelerator
) -> ConstantPredictor:
    """The best constant predictor of the training rows, the same on every rank."""
    constant = ConstantPredictor(task_num_labels)
    for row in progress(rows, len(rows), "constant predictor", accelerator):
        _, labels = row_to_tensors(row, task_num_labels)
        constant.add(labels)
    return constant


def save_image_scores(path: Path, image_scores: list[dict]) -> None:
    """Writes the scores of every image as a row of a Parquet table, null where an image has no labels of a task."""
    columns = dict.fromkeys(key for scores in image_scores for key in scores)
    with atomic_write(path) as unfinished:
        pq.write_table(pa.table({key: [scores.get(key) for scores in image_scores] for key in columns}), unfinished)

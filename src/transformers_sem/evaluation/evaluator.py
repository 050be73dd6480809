"""Evaluation of a model on labeled rows, by the field's protocol: every image at its native size, padding ignored."""

import hashlib
import inspect
import logging
import shutil
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack, closing, contextmanager
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
from datasets.fingerprint import Hasher
from torch import Tensor

from ..data.benchmarks import Benchmark, same_classes
from ..data.transforms import read_row
from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..utils.cache import CachedResult
from ..utils.environment import lock_report, save_report
from ..utils.files import atomic_write, locked
from ..utils.processes import available_cpus, leave_cores, process_pool, progress
from ..visualization.panels import Prediction
from .config import EvaluationConfig, read_training
from .constant_predictor import ConstantPredictor, fit_constant
from .map_files import save_maps
from .metrics import Metric, find_metric
from .statistics_folder import StatisticsFolder
from .sums import MetricSums, Sums, format_report, main_scores, scores_of


logger = logging.getLogger(__name__)
MODEL, CONSTANT = "model", "constant"  # whose statistics they are


@torch.no_grad()
def predict(
    model: SEMForMultiTaskDensePrediction, image_processor: SEMImageProcessor, images: list[Tensor]
) -> list[dict[str, Tensor]]:
    """Predicts images, in physical units and at the size of each image.

    Args:
        model (`SEMForMultiTaskDensePrediction`): In evaluation mode.
        image_processor (`SEMImageProcessor`): Of the model.
        images (`list[Tensor]`): uint8 `(3, height, width)`, of sizes that the processor brings to a common one.

    Returns:
        `list[dict[str, torch.Tensor]]`: `{task: prediction}` of each image, on the CPU.
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
    """Predicts labeled rows in order, `batch_size` at a time; labels are of the tasks that the rows have."""
    tasks = [task for task in model.config.tasks if task in rows.column_names]
    for start in range(0, len(rows), batch_size):
        samples = [read_row(rows, index, tasks) for index in range(start, min(start + batch_size, len(rows)))]
        maps = predict(model, image_processor, [image for image, _ in samples])
        for (image, labels), image_maps in zip(samples, maps, strict=True):
            yield Prediction(image, image_maps, labels)


def hash_model(model: SEMForMultiTaskDensePrediction, image_processor: SEMImageProcessor) -> "hashlib._Hash":
    """Returns a SHA-256 object, to be updated further, of weights, configuration and image processor."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for part in (model.config, image_processor):
        digest.update(part.to_json_string().encode())
    return digest


@dataclass(kw_only=True)
class Evaluation:
    """An evaluation of a model on labeled rows. Each rank evaluates its share; an interrupted evaluation continues.

    Args:
        model (`SEMForMultiTaskDensePrediction`): The model, on its device.
        image_processor (`SEMImageProcessor`): Of the model.
        rows (`datasets.Dataset`): The labeled images.
        benchmark (`Benchmark`): Where the rows come from; it defines on which labels and images a task is judged.
        constant (`ConstantPredictor`, *optional*): The baseline to evaluate beside the model.
        owners (`Sequence[str]`): Whose statistics to compute; without the constant predictor where its scores are known.
        accelerator (`Accelerator`): Of the ranks.
        batch_size (`int`): Images that a rank predicts at once.
        num_processes (`int`): Processes of each rank that compute slow metrics while the model predicts.
        unfinished_dir (`Path`): Folder for the statistics of finished images; remove it when the scores are written.
        predictions_dir (`Path`, *optional*): Folder to write the predicted maps to.
    """

    model: SEMForMultiTaskDensePrediction
    image_processor: SEMImageProcessor
    rows: datasets.Dataset
    benchmark: Benchmark
    constant: ConstantPredictor | None
    accelerator: Accelerator
    batch_size: int
    num_processes: int
    unfinished_dir: Path
    owners: Sequence[str] = (MODEL, CONSTANT)
    predictions_dir: Path | None = None

    def __post_init__(self):
        self.model.eval()
        self.task_num_labels = widths = scored_widths(self.model, self.benchmark, self.rows)
        kwargs = {task: kwargs for task, kwargs in self.benchmark.task_metric_kwargs.items() if task in widths}
        self.metrics = {owner: MetricSums(widths, kwargs) for owner in self.owners}
        has_ids = "id" in self.rows.column_names
        self.ids = [str(name) for name in (self.rows["id"] if has_ids else range(len(self.rows)))]

    def run(self) -> tuple[dict[str, MetricSums], list[dict]]:
        """Evaluates.

        Returns:
            The sums of each owner over the images of all ranks; and the model's scores of each image, `{"id": name,
            "task/score": value}`, in the order of the rows.

        Raises:
            ValueError: If a prediction cannot be scored, for example because it holds NaN, or an image was lost.
        """
        folder = StatisticsFolder(self.unfinished_dir, self.fingerprint())
        image_scores = self._add_finished(folder) if self.accelerator.is_main_process else []
        (finished,) = broadcast_object_list([{index for index, _ in image_scores}])
        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        indices = self.unfinished_batches(range(len(self.rows))[rank::num_ranks], finished)
        share = [index for index in indices if index not in finished]
        with closing(self.image_statistics(indices, finished)) as statistics:
            statistics = progress(statistics, len(share), "evaluating", self.accelerator)
            for index, image_statistics in zip(share, statistics, strict=True):
                folder.add(str(index), flatten(image_statistics))
                image_scores.append(self._add(index, image_statistics))
        for metric in self.metrics.values():
            metric.merge(self.accelerator)
        image_scores = sorted(gather_object(image_scores), key=itemgetter(0))
        if [index for index, _ in image_scores] != list(range(len(self.rows))):
            raise ValueError(
                f"A report has every image once; got {len(image_scores)} of {len(self.rows)}. Another process may have "
                f"written to {self.unfinished_dir}; run the command again."
            )
        return self.metrics, [{"id": self.ids[index], **scores} for index, scores in image_scores]

    def fingerprint(self) -> str:
        """Returns a digest of everything that the statistics of an image depend on."""
        digest = hash_model(self.model, self.image_processor)
        constant = self.constant and self.constant.to_json()
        rows = self.rows._fingerprint, self.ids, self.batch_size, self.benchmark.protocol
        metrics = metric_codes(self.task_num_labels)
        digest.update(repr((constant, rows, metrics, self.predictions_dir, version("transformers-sem"))).encode())
        return digest.hexdigest()

    def _add_finished(self, folder: StatisticsFolder) -> list[tuple[int, dict[str, float]]]:
        """Adds the images that an earlier run finished, on any number of ranks."""
        finished = ((int(name), folder.read(name)) for name in sorted(folder.names(), key=int))
        return [self._add(index, unflatten(arrays)) for index, arrays in finished if self._is_complete(arrays)]

    def _is_complete(self, arrays: dict[str, np.ndarray] | None) -> bool:
        """Returns whether an image that was kept has statistics of every owner, or of none because it has no labels."""
        return arrays is not None and (not arrays or unflatten(arrays).keys() >= self.metrics.keys())

    def unfinished_batches(self, share: Sequence[int], finished: set[int]) -> list[int]:
        """Returns the images of all batches that are not finished; the last bits of a prediction depend on its batch."""
        batches = [share[start : start + self.batch_size] for start in range(0, len(share), self.batch_size)]
        return [index for batch in batches if not finished.issuperset(batch) for index in batch]

    def image_statistics(self, indices: list[int], finished: Collection[int] = ()) -> Iterator[dict[str, Sums]]:
        """Yields `{owner: {task: statistics}}` of images but the finished ones, in order.

        Slow metrics are computed in other processes.
        """
        predictions = predict_rows(self.model, self.image_processor, self.rows.select(indices), self.batch_size)
        pending: deque[dict] = deque()
        with process_pool(self.num_processes) as pool:
            for index, prediction in zip(indices, predictions, strict=True):
                if index in finished:
                    continue
                pending.append(self._start(index, prediction, pool))
                if self.predictions_dir is not None:
                    save_maps(self.predictions_dir, self.ids[index].replace("/", "_"), prediction.maps)
                if len(pending) > 2 * self.num_processes:  # with more, maps would fill the memory
                    yield finish(pending.popleft())
            while pending:
                yield finish(pending.popleft())

    def _start(self, index: int, prediction: Prediction, pool: Executor) -> dict[str, dict[str, dict | Future]]:
        references = self.benchmark.row_references(self.rows, index, prediction.labels)
        maps = {MODEL: prediction.maps}
        if CONSTANT in self.owners:
            maps[CONSTANT] = self.constant.predict(prediction.image.shape[-2:])
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
    """Waits for the statistics that other processes compute."""
    return {
        owner: {task: value.result() if isinstance(value, Future) else value for task, value in tasks.items()}
        for owner, tasks in statistics.items()
    }


def flatten(statistics: dict[str, Sums]) -> dict[str, np.ndarray]:
    """Converts `{owner: {task: {name: tensor}}}` to `{"owner/task/name": array}`."""
    return {
        f"{owner}/{task}/{name}": np.asarray(value)
        for owner, tasks in statistics.items()
        for task, values in tasks.items()
        for name, value in values.items()
    }


def unflatten(arrays: dict[str, np.ndarray]) -> dict[str, Sums]:
    """Inverts `flatten`."""
    statistics: dict[str, Sums] = {}
    for key, array in arrays.items():
        owner, task, name = key.split("/")
        statistics.setdefault(owner, {}).setdefault(task, {})[name] = torch.from_numpy(array)
    return statistics


def evaluate_and_report(
    config: EvaluationConfig,
    accelerator: Accelerator,
    model: SEMForMultiTaskDensePrediction,
    image_processor: SEMImageProcessor,
    rows: datasets.DatasetDict,
    path: Path,
    *,
    num_processes: int | None = None,
    predictions_dir: Path | None = None,
) -> str:
    """Evaluates a model on the validation rows, and writes the scores.

    Writes the scores as JSON to `path`, with everything that a model card says of the weights, and the scores of each image
    beside it as Parquet. Tasks of the model that the data has no labels of are named and not scored.

    Args:
        config ([`EvaluationConfig`]): The settings.
        accelerator (`Accelerator`): Of the ranks.
        model (`SEMForMultiTaskDensePrediction`): The model.
        image_processor (`SEMImageProcessor`): Of the model.
        rows (`datasets.DatasetDict`): The splits `train`, for the constant predictor, and `validation`.
        path (`Path`): JSON file to write.
        num_processes (`int`, *optional*): As in [`Evaluation`]; half of the cores by default.
        predictions_dir (`Path`, *optional*): Folder to write the predicted maps to.

    Returns:
        `str`: A table of the scores for the terminal.

    Raises:
        ValueError: If another process evaluates into `path` or `predictions_dir`, or model and data do not fit.
    """
    with lock_outputs(path, predictions_dir, accelerator):
        benchmark = config.get_benchmark()
        unfinished_dir = path.with_name(f"unfinished_{path.stem}")
        num_processes = num_processes or max(1, available_cpus() // (2 * accelerator.num_processes))
        leave_cores(num_processes)
        validation = rows["validation"]
        if config.num_evaluation_images is not None:
            validation = validation.select(range(min(config.num_evaluation_images, len(validation))))
        widths = scored_widths(model, benchmark, validation)
        match_classes(model, benchmark, widths)
        constant = fit_constant(rows["train"], widths, accelerator)
        cached = cached_constant_scores(constant, validation, benchmark)
        (constant_scores,) = broadcast_object_list([cached.read()])  # the same on ranks with other caches
        evaluation = Evaluation(
            model=model.to(accelerator.device),
            image_processor=image_processor,
            rows=validation,
            benchmark=benchmark,
            constant=constant,
            owners=(MODEL, CONSTANT) if constant_scores is None else (MODEL,),
            accelerator=accelerator,
            batch_size=config.batch_size,
            num_processes=num_processes,
            unfinished_dir=unfinished_dir,
            predictions_dir=predictions_dir,
        )
        metrics, image_scores = evaluation.run()
        scores = metrics[MODEL].scores()
        if constant_scores is None:
            constant_scores = metrics[CONSTANT].scores()
            if accelerator.is_main_process:
                with cached.lock():  # another evaluation of the same rows may write them now
                    cached.write(constant_scores)
        if accelerator.is_main_process:
            save_image_scores(path.with_suffix(".parquet"), image_scores)
            save_report(
                path,
                scores=scores,
                constant_scores=constant_scores,
                class_scores=name_classes(metrics[MODEL].class_scores(), model.config.task_id2label),
                num_scored_images=count_scored(image_scores, scores),
                **describe_evaluation(config, evaluation),
            )
        accelerator.wait_for_everyone()
        if accelerator.is_local_main_process:
            shutil.rmtree(unfinished_dir, ignore_errors=True)
        accelerator.wait_for_everyone()  # the lock is held until nothing is written any more
    return format_report(scores, constant_scores) + describe_unscored(model, evaluation)


@contextmanager
def lock_outputs(path: Path, predictions_dir: Path | None, accelerator: Accelerator) -> Iterator[None]:
    """Locks a report, its table, the statistics of its images, and the predicted maps against other evaluations.

    Raises:
        ValueError: On the main process, if another evaluation holds a lock.
    """
    with ExitStack() as locks:
        if accelerator.is_main_process:
            locks.enter_context(lock_report(path))
            if predictions_dir is not None:
                folder = predictions_dir.resolve()  # the lock is beside it, because other programs read the folder
                rule = "One evaluation writes predictions to a folder at a time"
                locks.enter_context(locked(folder.with_name(f".{folder.name}_predictions.lock"), rule))
        yield


def describe_unscored(model: SEMForMultiTaskDensePrediction, evaluation: Evaluation) -> str:
    """Returns a line about the tasks of a model that the data has no labels of, or nothing."""
    unscored = [task for task in model.config.tasks if task not in evaluation.task_num_labels]
    return f"\nNot scored, because the data has no labels of them: {', '.join(unscored)}." if unscored else ""


def cached_constant_scores(constant: ConstantPredictor, rows: datasets.Dataset, benchmark: Benchmark) -> CachedResult:
    """Returns the cached scores of the constant predictor on labeled rows, which metrics of a user change too."""
    metrics = metric_codes(constant.task_num_labels)
    return CachedResult("constant_scores", (constant.to_json(), rows._fingerprint, benchmark.protocol, metrics))


def metric_codes(tasks: Iterable[str]) -> dict[str, str]:
    """Returns digests that change with the metrics of some tasks, and with the files that their functions are written in."""
    metrics = {task: find_metric(task) for task in tasks}
    return {task: Hasher.hash((metric, source_files(metric))) for task, metric in metrics.items() if metric}


def source_files(metric: Metric) -> list[bytes]:
    """Returns the files of the functions of a metric, which a hash of the functions alone would only name."""
    modules = map(inspect.getmodule, (metric.statistics, metric.reduce))
    paths = {Path(module.__file__) for module in modules if getattr(module, "__file__", None)}
    return [path.read_bytes() for path in sorted(paths) if path.is_file()]


def describe_evaluation(config: EvaluationConfig, evaluation: Evaluation) -> dict:
    """Returns everything that a report says besides the scores: data, model and training."""
    return {
        "dataset": config.dataset,
        "data": evaluation.benchmark.describe(),
        "num_images": len(evaluation.rows),
        "seed": config.seed,
        "num_parameters": evaluation.model.num_parameters(),
        "training": read_training(evaluation.model.name_or_path),
    }


def scored_widths(
    model: SEMForMultiTaskDensePrediction, benchmark: Benchmark, rows: datasets.Dataset
) -> dict[str, int]:
    """Returns the head widths of the tasks that both the model and the data have.

    Raises:
        ValueError: If there is none, or a task has another number of classes in the data.
    """
    labeled = [task for task in benchmark.tasks if task in rows.column_names]
    scored = {task: width for task, width in model.config.task_num_labels.items() if task in labeled}
    if not scored:
        raise ValueError(
            f"A model is evaluated on the tasks that the data has labels of, {labeled}; it predicts {model.config.tasks}. "
            "Choose another dataset."
        )
    widths = {task: benchmark.num_labels(task) for task in scored}
    if widths != scored:
        raise ValueError(
            f"A model is evaluated on the classes it has learned, {scored}; the data has {widths}. Choose the dataset that "
            "it was trained on."
        )
    return scored


def match_classes(model: SEMForMultiTaskDensePrediction, benchmark: Benchmark, tasks: Iterable[str]) -> None:
    """Gives the classes of some tasks of a model the ids that the data has for the same names.

    Raises:
        ValueError: If a class of the model has another name than those of the data.
    """
    for task in tasks:
        names, expected = model.config.class_names(task), list(benchmark.class_names.get(task, ()))
        if not names or not expected or names == expected:
            continue
        if not same_classes(names, expected):
            raise ValueError(
                f"A model is evaluated on the classes it has learned. Those of {task!r} are {names}; the data has {expected}. "
                "Choose the dataset that it was trained on, or give one class one name in both."
            )
        model.reorder_classes(task, expected)
        logger.warning("The model has the classes of %r in another order; it is evaluated in that of the data.", task)


def name_classes(class_scores: dict[str, list[float]], task_id2label: dict[str, dict]) -> dict[str, dict[str, float]]:
    """Returns `{task: {class name: score}}`; the name of a class without one is its id."""
    return {
        task: {str(task_id2label.get(task, {}).get(index, index)): value for index, value in enumerate(values)}
        for task, values in class_scores.items()
    }


def count_scored(image_scores: list[dict], scores: dict[str, float]) -> dict[str, int]:
    """Returns `{task: number of images}` with a valid label of the task."""
    return {task: sum(key in image for image in image_scores) for task, key in main_scores(scores).items()}


def save_image_scores(path: Path, image_scores: list[dict]) -> None:
    """Writes the scores of every image as a row of a Parquet table, null where an image has no labels of a task."""
    columns = dict.fromkeys(key for scores in image_scores for key in scores)
    with atomic_write(path) as unfinished:
        pq.write_table(pa.table({key: [scores.get(key) for scores in image_scores] for key in columns}), unfinished)

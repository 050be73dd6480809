"""A training run: builds the model, trains it, saves it, evaluates it."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.optim.lr_scheduler import PolynomialLR
from tqdm.auto import tqdm

from ..data.mixture import DatasetConfig, concatenate_rows, name_datasets
from ..data.row_format import count_labels
from ..data.transforms import TrainingAugmentation, TransformedDataset
from ..evaluation.config import TRAINING_NAME, EvaluationConfig
from ..evaluation.constant_predictor import fit_constant
from ..evaluation.evaluator import evaluate_and_report, predict_rows
from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..utils.environment import save_report
from ..utils.errors import plain_errors
from ..utils.extras import require
from ..utils.files import save_trained
from ..utils.loading import load_model
from ..utils.processes import leave_cores
from ..visualization.panels import save_panel
from .accelerator import build_accelerator, choose_sharded_modules, start_trackers
from .checkpoint import resume, save_checkpoint
from .config import TrainingConfig, claim_classes, hold_output_dir, label_fields
from .curves import CURVES_NAME, save_curves
from .data_order import build_train_loader, open_batches, seed_step
from .history import History
from .model import build_image_processor, build_model, decide_pretrained_backbone
from .optimizer import NonFiniteGuard, OptimizerStep, build_average, build_optimizer
from .plan import compare_sizes, describe_labels, format_plan, measure_step
from .signals import StopRequest
from .snapshots import Snapshots, log_evaluation


class TrainingRun:
    """State and step of a training run, prepared for its devices and its checkpoints.

    Args:
        config (`TrainingConfig`): Settings of the run.
        accelerator (`Accelerator`): Prepares model and optimizer; its checkpoints hold the whole state.
        model (`SEMForMultiTaskDensePrediction`): The model to train.
        stop (`StopRequest`): Signals, on which the ranks agree in every step.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        model: SEMForMultiTaskDensePrediction,
        stop: StopRequest,
    ):
        self.config, self.accelerator = config, accelerator
        optimizer = build_optimizer(config, model)
        self.schedule = PolynomialLR(optimizer, total_iters=config.max_steps, power=config.decay_power)
        self.average = build_average(config, accelerator, model)
        if config.compile:
            model.compile()
        choose_sharded_modules(accelerator, model)
        self.model, optimizer = accelerator.prepare(model, optimizer)
        self.guard = NonFiniteGuard(accelerator, config.max_skipped_steps)
        self.history = History(accelerator, Path(config.output_dir), config.batch_size)
        accelerator.register_for_checkpointing(self.schedule, self.guard, self.history)
        if self.average is not None:
            accelerator.register_for_checkpointing(self.average)
        self.take_step = OptimizerStep(accelerator, self.model, optimizer, config.max_grad_norm, stop)
        self.model.train()
        if config.freeze_backbone:
            self.unwrapped_model.sem.backbone.eval()

    @property
    def unwrapped_model(self) -> SEMForMultiTaskDensePrediction:
        """The model without the wrappers of the accelerator."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def evaluated_model(self) -> SEMForMultiTaskDensePrediction:
        """The model with the weights to save: their average where there is one."""
        return self.unwrapped_model if self.average is None else self.average.module

    def step(self, step: int, micro_batches: Iterable[dict]) -> int:
        """Takes the optimizer step number `step`, counted from 1.

        Returns:
            `int`: the signal that asks to stop, or 0.

        Raises:
            FloatingPointError: If too many consecutive steps were not finite.
        """
        seed_step(self.config.seed, step, self.accelerator.process_index)
        report = self.take_step(micro_batches)
        self.schedule.step()
        self.guard.count(step, report.not_finite)
        if self.average is not None and not report.not_finite:
            self.average.update_parameters(self.unwrapped_model)
        self.history.add(report.losses)
        return report.signum

    def write_losses(self, step: int) -> dict[str, str]:
        """Writes a log entry and returns it, formatted for a progress bar."""
        return self.history.write_losses(step, self.schedule.get_last_lr()[0], self.guard.total)

    def weights(self) -> dict[str, Tensor]:
        """Returns the weights to save, the average where there is one. All ranks call it."""
        if self.average is not None:
            return self.average.module.state_dict()
        return self.accelerator.get_state_dict(self.model)


def train(
    config: TrainingConfig,
    accelerator: Accelerator,
    model: SEMForMultiTaskDensePrediction,
    image_processor: SEMImageProcessor,
    rows: dict,
    parts: Sequence[tuple[int, float]],
    stop: StopRequest,
) -> dict[str, Tensor]:
    """Trains for `max_steps` optimizer steps, from the newest checkpoint if there is one, and returns the weights.

    Args:
        config (`TrainingConfig`): Settings of the run.
        accelerator (`Accelerator`): Of the ranks.
        model (`SEMForMultiTaskDensePrediction`): The model to train.
        image_processor (`SEMImageProcessor`): Of the model.
        rows (`dict`): The splits `train` and `validation`, each of all datasets one after another.
        parts (`Sequence[tuple[int, float]]`): Number of training rows and weight of each dataset.
        stop (`StopRequest`): Signals, on which the ranks agree in every step.
    """
    run = TrainingRun(config, accelerator, model, stop)
    output_dir = Path(config.output_dir)
    checkpoints = output_dir / "checkpoints"
    first_step = resume(accelerator, checkpoints)
    run.history.truncate_after(first_step)
    start_trackers(config, accelerator, first_step)
    snapshots = Snapshots(
        image_processor=image_processor,
        rows=rows["validation"],
        num_images=config.num_snapshot_images,
        benchmark=config.get_benchmark(),
        accelerator=accelerator,
        history=run.history,
    )
    augmentation = TrainingAugmentation(tuple(config.input_size), zoom=tuple(config.zoom))
    samples = TransformedDataset(rows["train"], model.config.tasks, image_processor, augmentation)
    if config.keep_in_memory:
        samples.decode_all(show_progress=accelerator.is_main_process)
    loader = build_train_loader(
        samples,
        batch_size=config.images_per_forward(accelerator.num_processes),
        first_sample=first_step * config.batch_size,
        num_samples=config.max_steps * config.batch_size,
        seed=config.seed,
        num_workers=config.num_workers,
        parts=parts,
    )
    bar = tqdm(initial=first_step, total=config.max_steps, desc="training", disable=not accelerator.is_main_process)
    with bar, open_batches(accelerator.prepare(loader)) as batches:
        for step in range(first_step + 1, config.max_steps + 1):
            signum = run.step(step, islice(batches, config.gradient_accumulation_steps))
            bar.update()
            if step % config.log_every == 0 or step == config.max_steps:
                bar.set_postfix(run.write_losses(step))
            if config.is_snapshot(step):
                snapshots.take(run.evaluated_model, step)
                accelerator.on_main_process(save_curves)(output_dir)
            if step % config.save_every == 0 or step == config.max_steps or signum:
                save_checkpoint(accelerator, checkpoints, step, config.keep_checkpoints)
            if signum:
                stop.leave(signum, step, checkpoints)
    if signum := stop.agree():  # it arrived while the last checkpoint was saved
        stop.leave(signum, config.max_steps, checkpoints)
    return run.weights()


def dry_run(config: TrainingConfig) -> None:
    """Prints what a run would do and measures one step of it.

    Nothing is prepared, downloaded or written; only a dataset in an archive is unpacked to the cache.
    """
    leave_cores(config.num_workers)
    with plain_errors():
        benchmark = config.get_benchmark()
        accelerator = build_accelerator(config)
        num_rows = [dataset.count_rows()["train"] for dataset in config.dataset_configs]
        model = build_model(replace(config, pretrained_backbone=False), benchmark)
        accelerator.print(format_plan(config, model, num_rows, accelerator.num_processes))
        accelerator.print(measure_step(config, model, accelerator))


class TrainingData(NamedTuple):
    """The rows that a model is trained and evaluated on."""

    parts: dict[str, tuple[DatasetConfig, dict]]  # {name: (settings, splits)} of each dataset
    rows: dict  # the splits, each of all datasets one after another

    @property
    def sizes(self) -> list[int]:
        """Number of training rows of each dataset."""
        return [len(splits["train"]) for _, splits in self.parts.values()]

    @property
    def weighted_sizes(self) -> list[tuple[int, float]]:
        """Number of training rows and weight of each dataset."""
        weights = [dataset.weight for dataset, _ in self.parts.values()]
        return list(zip(self.sizes, weights, strict=True))


def load_data(config: TrainingConfig, tasks: Iterable[str], accelerator: Accelerator) -> TrainingData:
    """Loads all datasets of a run, with the labels of its tasks.

    Raises:
        ValueError: If a dataset cannot be used, or no training image has a map of a task.
    """
    with accelerator.main_process_first():
        parts = {name: (dataset, dataset.load()) for name, dataset in name_datasets(config.dataset_configs).items()}
    rows = {
        split: concatenate_rows([splits[split] for _, splits in parts.values()], tasks)
        for split in ("train", "validation")
    }
    columns = [task for task in tasks if task in rows["train"].column_names]  # it may lack some that papers have
    check_present(tasks, count_labels(rows["train"], columns), "map")
    return TrainingData(parts, rows)


def check_present(tasks: Iterable[str], counts: dict[str, int], what: str) -> None:
    """Checks that the training images have something to learn each task from.

    Raises:
        ValueError: If the count of a task is 0, or it has none.
    """
    absent = [task for task in tasks if not counts.get(task)]
    if absent:
        present = [task for task in tasks if task not in absent]
        remedy = f"Add them, or set tasks={present}" if present else "Add them"
        raise ValueError(f"Every task has a {what} in some training image; got none of {absent}. {remedy}.")


def run_training(config: TrainingConfig) -> None:
    """Trains a model, saves it with its image processor, evaluates it, and draws curves and predictions.

    Everything goes to `output_dir`. A run that was interrupted there is resumed.
    """
    leave_cores(config.num_workers)
    with plain_errors():
        require("matplotlib", extra="train")  # before the training
        benchmark = config.get_benchmark()
        task_num_labels = label_fields(config, benchmark)["task_num_labels"]
        accelerator = build_accelerator(config)
        data = load_data(config, task_num_labels, accelerator)
        constant = None
        if config.init_heads_from_data:
            constant = fit_constant(data.rows["train"], task_num_labels, accelerator)
            check_present(task_num_labels, constant.num_pixels, "valid pixel")
        config = decide_pretrained_backbone(config, benchmark)
        set_seed(config.seed)
        model = build_model(config, benchmark, constant)
        image_processor = build_image_processor(config, model.config.backbone_config)
        # last: a run that cannot start claims no folder
        with hold_output_dir(config) if accelerator.is_main_process else nullcontext():
            if accelerator.is_main_process:
                claim_classes(Path(config.output_dir), model.config)
            train_and_evaluate(config, accelerator, model, image_processor, data)
    accelerator.end_training()


def train_and_evaluate(
    config: TrainingConfig,
    accelerator: Accelerator,
    model: SEMForMultiTaskDensePrediction,
    image_processor: SEMImageProcessor,
    data: TrainingData,
) -> None:
    """Prints the plan, trains the model, saves it, and evaluates it on each dataset."""
    accelerator.print(format_plan(config, model, data.sizes, accelerator.num_processes))
    accelerator.print(describe_labels(count_labels(data.rows["train"], model.config.tasks), len(data.rows["train"])))
    if accelerator.is_main_process:
        for _, splits in data.parts.values():
            compare_sizes(splits["validation"], config.input_size)
    with StopRequest(accelerator) as stop:
        weights = train(config, accelerator, model, image_processor, data.rows, data.weighted_sizes, stop)
    output_dir = Path(config.output_dir)
    if accelerator.is_main_process:
        save_trained(model, image_processor, output_dir, weights)
        descriptions = {name: dataset.get_benchmark().describe() for name, (dataset, _) in data.parts.items()}
        save_report(output_dir / TRAINING_NAME, settings=config.describe(), data=descriptions)
        save_curves(output_dir)
    accelerator.wait_for_everyone()
    written = [f"{output_dir}/ (for from_pretrained)"]
    for name, (dataset, splits) in data.parts.items():
        suffix = f"_{name}" if len(data.parts) > 1 else ""
        written += evaluate_trained(config, accelerator, image_processor, dataset, splits, suffix)
    accelerator.print(f"Written: {', '.join(map(str, [*written, output_dir / CURVES_NAME]))}.")


def evaluate_trained(
    config: TrainingConfig,
    accelerator: Accelerator,
    image_processor: SEMImageProcessor,
    dataset: DatasetConfig,
    rows: dict,
    suffix: str,
) -> list[Path]:
    """Evaluates the saved model of a run on all ranks, on one of its datasets, and draws its predictions.

    Returns:
        `list[Path]`: The files that it has written; their names end in `suffix`.
    """
    output_dir = Path(config.output_dir)
    model = load_model(SEMForMultiTaskDensePrediction, output_dir, local_files_only=True)
    report_path, panel_path = output_dir / f"evaluation{suffix}.json", output_dir / f"predictions{suffix}.png"
    evaluation_config = EvaluationConfig(
        dataset=dataset.dataset,
        data_dir=dataset.data_dir,
        dataset_kwargs=dataset.dataset_kwargs,
        tasks=dataset.tasks,
        batch_size=config.images_per_forward(1),
        num_evaluation_images=config.num_evaluation_images,
        seed=config.seed,
    )
    report = evaluate_and_report(evaluation_config, accelerator, model, image_processor, rows, report_path)
    accelerator.print(f"\n{suffix[1:]}\n{report}" if suffix else report)
    if accelerator.is_main_process:
        save_panel(panel_path, predict_rows(model, image_processor, rows["validation"], batch_size=4))
    log_evaluation(accelerator, report_path, panel_path, config.max_steps)
    return [report_path, panel_path]

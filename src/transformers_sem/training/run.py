"""A training run: builds the model, trains it, saves it, evaluates it."""

import logging
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.optim.lr_scheduler import PolynomialLR
from tqdm.auto import tqdm
from transformers import PreTrainedConfig

from ..backbone import build_backbone, load_backbone_weights
from ..configuration_sem import SEMConfig
from ..data.benchmarks import Benchmark, get_benchmark
from ..data.transforms import TrainingAugmentation, TransformedDataset
from ..evaluation.constant_predictor import ConstantPredictor, fit_constant
from ..evaluation.evaluator import TRAINING_NAME, EvaluationConfig, evaluate_and_report, predict_rows
from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..utils.environment import save_report
from ..utils.errors import plain_errors
from ..utils.extras import require
from ..utils.files import save_trained
from ..visualization.panels import save_panel
from .accelerator import build_accelerator, choose_sharded_modules, start_trackers
from .checkpoint import resume, save_checkpoint
from .config import (
    IF_AVAILABLE,
    TrainingConfig,
    claim_output_dir,
    label_fields,
    lock_output_dir,
    model_config,
    network_size,
)
from .curves import CURVES_NAME, save_curves
from .data_order import build_train_loader, seed_step
from .heads import init_heads
from .history import History
from .optimizer import NonFiniteGuard, OptimizerStep, build_average, build_optimizer
from .plan import format_plan, measure_step
from .signals import StopRequest
from .snapshots import Snapshots


logger = logging.getLogger(__name__)


def build_model(
    config: TrainingConfig, benchmark: Benchmark, constant: ConstantPredictor | None = None
) -> SEMForMultiTaskDensePrediction:
    """Builds the model of a run: tasks and class names of the dataset, everything else from the settings.

    New heads start at the `constant` predictor, if it is given.
    """
    labels = label_fields(config, benchmark)
    if config.pretrained_model:
        model, new_tasks = load_trained_model(config, labels)
    else:
        model, new_tasks = (
            build_new_model(config, model_config(config, benchmark)),
            list(labels["task_num_labels"]),
        )
    if constant is not None:
        init_heads(model, constant, new_tasks)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if config.freeze_backbone:
        model.sem.backbone.requires_grad_(False)
    # The momentum of the bases is per optimizer step, whatever the number of micro-batches.
    model.sem.bases_momentum = model.config.bases_momentum ** (1 / config.gradient_accumulation_steps)
    return model


def load_trained_model(config: TrainingConfig, labels: dict) -> tuple[SEMForMultiTaskDensePrediction, list[str]]:
    """Loads `pretrained_model`, for tasks and classes that may be others; returns it with the tasks whose heads are new."""
    try:
        model, info = SEMForMultiTaskDensePrediction.from_pretrained(
            config.pretrained_model, ignore_mismatched_sizes=True, output_loading_info=True, **labels, **config.model
        )
    except OSError as error:
        raise OSError(
            f"`pretrained_model` is the folder or Hub name of a trained SEM; got {config.pretrained_model!r}: {error}"
        ) from error
    new_names = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    return model, [task for task in model.config.tasks if f"heads.{task}.classifier.bias" in new_names]


def build_new_model(config: TrainingConfig, new_config: SEMConfig) -> SEMForMultiTaskDensePrediction:
    """Builds a model with random weights, except for the encoder's if `pretrained_backbone` is set."""
    if not config.pretrained_backbone:
        return SEMForMultiTaskDensePrediction(new_config)
    return SEMForMultiTaskDensePrediction.from_pretrained_backbone(new_config, backbone_source(config))


def backbone_source(config: TrainingConfig) -> str | None:
    """Returns the file, folder or Hub name of the encoder's weights; `None` is that of the encoder's configuration."""
    named = isinstance(config.pretrained_backbone, str) and config.pretrained_backbone != IF_AVAILABLE
    return config.pretrained_backbone if named else None


def decide_pretrained_backbone(config: TrainingConfig, benchmark: Benchmark) -> TrainingConfig:
    """Returns the settings with `pretrained_backbone` true or false instead of `if_available`."""
    if config.pretrained_backbone != IF_AVAILABLE:
        return config
    if config.pretrained_model:
        return replace(config, pretrained_backbone=False)
    try:
        load_backbone_weights(build_backbone(model_config(config, benchmark).backbone_config), None)
    except OSError as error:
        logger.warning("The encoder starts from random weights. %s", error)
        return replace(config, pretrained_backbone=False)
    return replace(config, pretrained_backbone=True)


def build_image_processor(config: TrainingConfig, backbone_config: PreTrainedConfig) -> SEMImageProcessor:
    """Builds a processor that pads to `input_size`, as is usual in the field, and stretches to `network_size`.

    Pixels are normalized as the settings say, else as for the `pretrained_model`, else as in the encoder's pretraining.
    """
    (height, width), (rows, columns) = config.input_size, network_size(config)
    settings = {
        "pad_size": {"height": height, "width": width},
        "size": {"height": rows, "width": columns},
        "do_pad": True,
        "do_resize": config.network_size is not None,
    }
    for name in ("image_mean", "image_std"):
        if getattr(config, name) is not None:
            settings[name] = getattr(config, name)
    if config.pretrained_model:
        return SEMImageProcessor.from_pretrained(config.pretrained_model, **settings)
    return SEMImageProcessor.for_backbone(backbone_config, backbone_source(config), **settings)


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
        return self.history.write_losses(step, max(self.schedule.get_last_lr()), self.guard.total)

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
    stop: StopRequest,
) -> dict[str, Tensor]:
    """Trains for `max_steps` optimizer steps, from the newest checkpoint if there is one, and returns the weights."""
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
        benchmark=get_benchmark(config.dataset, config.data_dir),
        accelerator=accelerator,
        history=run.history,
    )
    augmentation = TrainingAugmentation(tuple(config.input_size), zoom=tuple(config.zoom))
    loader = build_train_loader(
        TransformedDataset(rows["train"], model.config.tasks, image_processor, augmentation),
        batch_size=config.images_per_forward(accelerator.num_processes),
        first_sample=first_step * config.batch_size,
        num_samples=config.max_steps * config.batch_size,
        seed=config.seed,
        num_workers=config.num_workers,
    )
    bar = tqdm(initial=first_step, total=config.max_steps, desc="training", disable=not accelerator.is_main_process)
    with bar, closing(iter(accelerator.prepare(loader))) as batches:
        for step in range(first_step + 1, config.max_steps + 1):
            signum = run.step(step, islice(batches, config.gradient_accumulation_steps))
            bar.update()
            if step % config.log_every == 0 or step == config.max_steps:
                bar.set_postfix(run.write_losses(step))
            if config.is_snapshot(step):
                snapshots.take(run.unwrapped_model, step)
                accelerator.on_main_process(save_curves)(output_dir)
            if step % config.save_every == 0 or step == config.max_steps or signum:
                save_checkpoint(accelerator, checkpoints, step, config.keep_checkpoints)
            if signum:
                stop.leave(signum, step, checkpoints)
    if signum := stop.agree():  # it arrived while the last checkpoint was saved
        stop.leave(signum, config.max_steps, checkpoints)
    return run.weights()


def check_extra() -> None:
    """Checks that the packages of the extra `train` are installed, before the run starts.

    Raises:
        MissingExtraError: If one is missing.
    """
    require("matplotlib", extra="train")


def dry_run(config: TrainingConfig) -> None:
    """Prints what a run would do and measures one step of it; nothing is prepared, downloaded or written."""
    with plain_errors():
        benchmark = get_benchmark(config.dataset, config.data_dir)
        accelerator = build_accelerator(config)
        num_rows = benchmark.count_rows(config.data_dir, **config.dataset_kwargs)["train"]
        model = build_model(replace(config, pretrained_backbone=False), benchmark)
        accelerator.print(format_plan(config, model, num_rows, accelerator.num_processes))
        accelerator.print(measure_step(config, model, accelerator))


def run_training(config: TrainingConfig) -> None:
    """Trains a model, saves it with its image processor, evaluates it, and draws curves and predictions.

    Everything goes to `output_dir`. A run that was interrupted there is resumed.
    """
    output_dir = Path(config.output_dir)
    with plain_errors():
        check_extra()
        benchmark = get_benchmark(config.dataset, config.data_dir)
        accelerator = build_accelerator(config)
        with accelerator.main_process_first():
            rows = benchmark.load(config.data_dir, **config.dataset_kwargs)
        constant = None
        if config.init_heads_from_data:
            constant = fit_constant(rows["train"], label_fields(config, benchmark)["task_num_labels"], accelerator)
        config = decide_pretrained_backbone(config, benchmark)
        set_seed(config.seed)
        model = build_model(config, benchmark, constant)
        if accelerator.is_main_process:
            claim_output_dir(config)  # last: a run that cannot start claims no folder
            lock = lock_output_dir(output_dir)  # noqa: F841, held until the end
    image_processor = build_image_processor(config, model.config.backbone_config)
    accelerator.print(format_plan(config, model, len(rows["train"]), accelerator.num_processes))
    with plain_errors(), StopRequest(accelerator) as stop:
        weights = train(config, accelerator, model, image_processor, rows, stop)
    if accelerator.is_main_process:
        save_trained(model, image_processor, output_dir, weights)
        save_report(output_dir / TRAINING_NAME, settings=config.describe())
    accelerator.wait_for_everyone()
    evaluate_trained(config, accelerator, image_processor, rows)
    accelerator.end_training()


def evaluate_trained(
    config: TrainingConfig, accelerator: Accelerator, image_processor: SEMImageProcessor, rows: dict
) -> None:
    """Evaluates the saved model of a run on all ranks and draws its predictions."""
    output_dir = Path(config.output_dir)
    model = SEMForMultiTaskDensePrediction.from_pretrained(output_dir, local_files_only=True)
    report_path, panel_path = output_dir / "evaluation.json", output_dir / "predictions.png"
    evaluation_config = EvaluationConfig(
        dataset=config.dataset,
        data_dir=config.data_dir,
        dataset_kwargs=config.dataset_kwargs,
        batch_size=config.images_per_forward(1),
        num_evaluation_images=config.num_evaluation_images,
        seed=config.seed,
    )
    with plain_errors():
        report = evaluate_and_report(evaluation_config, accelerator, model, image_processor, rows, report_path)
    accelerator.print(report)
    if accelerator.is_main_process:
        save_panel(panel_path, predict_rows(model, image_processor, rows["validation"], batch_size=4))
    accelerator.print(
        f"Written: {output_dir}/ (for from_pretrained), {report_path}, {panel_path}, {output_dir / CURVES_NAME}."
    )

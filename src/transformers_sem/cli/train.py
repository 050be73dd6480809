"""Train a model, evaluate it, save it, and draw its predictions.

    transformers-sem train --config quickstart [key=value ...] [--dry-run]
    accelerate launch -m transformers_sem.cli.train --config vit_large_nyud_v2 data_dir=FOLDER

--config is a YAML file, or the name of a recipe that comes with the package. The same command resumes a run that was interrupted;
Ctrl-C and SIGTERM save first. Everything is written to `output_dir`: model and image processor (for `from_pretrained`),
`training.json` and `.yaml`, `evaluation.json` and `.parquet`, `predictions.png`, `history.jsonl`, `training_report.html`,
`logs/` for TensorBoard, `checkpoints/`. With --dry-run nothing is written: the command prints what the run would do, and measures
one step.
"""

import argparse
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from tqdm.auto import tqdm

from ..configuration_sem import SEMConfig
from ..data.benchmarks import Benchmark, get_benchmark
from ..data.transforms import TrainingAugmentation, TransformedDataset
from ..evaluation.evaluator import TRAINING_NAME, EvaluationConfig, evaluate_and_report, predict_rows
from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..training.accelerator import build_accelerator, start_trackers
from ..training.checkpoint import resume, save_checkpoint
from ..training.config import (
    TrainingConfig,
    claim_output_dir,
    label_fields,
    lock_output_dir,
)
from ..training.data_order import build_train_loader
from ..training.html_report import write_html_report
from ..training.plan import format_plan, measure_step
from ..training.run import TrainingRun, failure_reported
from ..training.signals import StopRequest
from ..training.snapshots import SNAPSHOTS_NAME, Snapshots
from ..utils.environment import save_report, starting_commit
from ..utils.errors import plain_errors
from ..utils.files import save_trained
from ..visualization.panels import save_panel
from .arguments import command_parser, find_recipe


def build_model(config: TrainingConfig, benchmark: Benchmark) -> SEMForMultiTaskDensePrediction:
    """The model of a run: the data set's tasks and class names, and what the configuration says of the rest."""
    labels = label_fields(config, benchmark)
    if config.pretrained_model:
        model = load_trained_model(config, labels)
    else:
        model = build_new_model(config, SEMConfig(**labels, **config.model))
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if config.freeze_backbone:
        model.sem.backbone.requires_grad_(False)
    # the memory of the bases is per optimiser step, however many micro-batches make one
    model.sem.bases_momentum = model.config.bases_momentum ** (1 / config.gradient_accumulation_steps)
    return model


def load_trained_model(config: TrainingConfig, labels: dict) -> SEMForMultiTaskDensePrediction:
    """The model that `pretrained_model` names, for tasks and classes that may be others."""
    try:
        return SEMForMultiTaskDensePrediction.from_pretrained(
            config.pretrained_model, ignore_mismatched_sizes=True, **labels, **config.model
        )
    except OSError as error:
        raise OSError(
            f"`pretrained_model` is the folder or Hub name of a trained SEM; got {config.pretrained_model!r}: {error}"
        ) from error


def build_new_model(config: TrainingConfig, model_config: SEMConfig) -> SEMForMultiTaskDensePrediction:
    """Random weights, but for the encoder's where the run starts from what that was pretrained to."""
    if not config.pretrained_backbone:
        return SEMForMultiTaskDensePrediction(model_config)
    source = config.pretrained_backbone if isinstance(config.pretrained_backbone, str) else None
    return SEMForMultiTaskDensePrediction.from_pretrained_backbone(model_config, source)


def build_image_processor(config: TrainingConfig) -> SEMImageProcessor:
    """Pads to `input_size`, the field's protocol, or stretches to `network_size`."""
    height, width = config.network_size or config.input_size
    size, stretch = {"height": height, "width": width}, config.network_size is not None
    return SEMImageProcessor(size=size, pad_size=size, do_resize=stretch, do_pad=not stretch)


def train(
    config: TrainingConfig,
    accelerator: Accelerator,
    model,
    dataset: TransformedDataset,
    snapshots: Snapshots,
    stop: StopRequest,
) -> dict[str, Tensor]:
    """Trains for `max_steps` optimiser steps, from the newest checkpoint where there is one; returns the weights."""
    run = TrainingRun(config, accelerator, model, stop)
    checkpoints = Path(config.output_dir) / "checkpoints"
    first_step = resume(accelerator, checkpoints)
    run.log.truncate_after(first_step)
    snapshots.truncate_after(first_step)
    report = accelerator.on_main_process(partial(write_html_report, config, model.config))
    report("running")
    start_trackers(config, accelerator, first_step)
    loader = build_train_loader(
        dataset,
        batch_size=config.images_per_forward(accelerator.num_processes),
        first_sample=first_step * config.batch_size,
        num_samples=config.max_steps * config.batch_size,
        seed=config.seed,
        num_workers=config.num_workers,
    )
    bar = tqdm(initial=first_step, total=config.max_steps, desc="training", disable=not accelerator.is_main_process)
    with failure_reported(report), bar, closing(iter(accelerator.prepare(loader))) as batches:
        for step in range(first_step + 1, config.max_steps + 1):
            signum = run.step(step, islice(batches, config.gradient_accumulation_steps))
            bar.update()
            if step % config.log_every == 0 or step == config.max_steps:
                bar.set_postfix(run.flush_log(step))
            if config.is_snapshot(step):
                snapshots.take(accelerator.unwrap_model(run.model), step)
            if step % config.save_every == 0 or step == config.max_steps or signum:
                save_checkpoint(accelerator, checkpoints, step, config.keep_checkpoints)
                report("stopped" if signum else "running")
            if signum:
                stop.leave(signum, step, checkpoints)
    if signum := stop.agree():  # it came while the last step was saved
        stop.leave(signum, config.max_steps, checkpoints)
    return run.weights()


def dry_run(config: TrainingConfig, accelerator: Accelerator, benchmark: Benchmark) -> None:
    """Says what a run would do, and measures one step of it; nothing is prepared, fetched or written."""
    num_rows = benchmark.count_rows(config.data_dir, **config.dataset_kwargs)["train"]
    model = build_model(replace(config, pretrained_backbone=False), benchmark)
    accelerator.print(format_plan(config, model, num_rows, accelerator.num_processes))
    accelerator.print(measure_step(config, model, accelerator))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    parser = command_parser("train", __doc__)
    parser.add_argument("--config", required=True, help="settings of the run: a YAML file or the name of a recipe")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what the run would do, measure one step, write nothing"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, for example max_steps=100")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Set up, train, save, evaluate, draw."""
    parsed = build_parser().parse_intermixed_args(arguments)  # intermixed: --dry-run may follow the settings
    starting_commit()  # before files change
    with plain_errors():
        config = TrainingConfig.load(find_recipe(parsed.config), parsed.overrides)
        benchmark = get_benchmark(config.dataset, config.data_dir)
        output_dir = Path(config.output_dir)
        accelerator = build_accelerator(config)
        if parsed.dry_run:
            dry_run(config, accelerator, benchmark)
            return
        with accelerator.main_process_first():
            rows = benchmark.load(config.data_dir, **config.dataset_kwargs)
        set_seed(config.seed)
        model = build_model(config, benchmark)
        if accelerator.is_main_process:
            claim_output_dir(config)  # last: a run that could not start holds no folder
            lock = lock_output_dir(output_dir)  # noqa: F841, held until the end
    image_processor = build_image_processor(config)
    augmentation = TrainingAugmentation(tuple(config.input_size), zoom=tuple(config.zoom))
    dataset = TransformedDataset(rows["train"], model.config.tasks, image_processor, augmentation)
    snapshots = Snapshots(
        folder=output_dir / SNAPSHOTS_NAME,
        image_processor=image_processor,
        rows=rows["validation"],
        num_images=config.num_snapshot_images,
        benchmark=benchmark,
        accelerator=accelerator,
    )
    accelerator.print(format_plan(config, model, len(rows["train"]), accelerator.num_processes))
    with plain_errors(), StopRequest(accelerator) as stop:
        weights = train(config, accelerator, model, dataset, snapshots, stop)
    if accelerator.is_main_process:
        save_trained(model, image_processor, output_dir, weights)
        save_report(output_dir / TRAINING_NAME, settings=config.describe())
    accelerator.wait_for_everyone()
    # what was saved is what is judged, the same on every rank
    model = SEMForMultiTaskDensePrediction.from_pretrained(output_dir, local_files_only=True)
    report_path = output_dir / "evaluation.json"
    with plain_errors():
        report = evaluate_and_report(
            EvaluationConfig.load(output_dir), accelerator, model, image_processor, rows, report_path
        )
    accelerator.print(report)
    if accelerator.is_main_process:
        panel_path = output_dir / "predictions.png"
        save_panel(panel_path, predict_rows(model, image_processor, rows["validation"], batch_size=4))
        html_path = write_html_report(config, model.config, "finished")
        print(f"Written: {output_dir}/ (for from_pretrained), {report_path}, {panel_path}, {html_path}.")
    accelerator.end_training()


if __name__ == "__main__":
    main()

"""The plan of a run: settings, length, memory and files; and the measurement of one step on random images."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from transformers import PreTrainedConfig

from ..configuration_sem import SEMConfig
from ..data.mixture import name_datasets
from ..data.transforms import read_row
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..tasks import get_task
from ..utils.memory import peak_memory
from .config import TrainingConfig, network_size


logger = logging.getLogger(__name__)

NUM_COMPARED_IMAGES = 8  # with `input_size`
# Files that a run writes to `output_dir`.
FILES = {
    "training.yaml": "settings; the same command resumes the run",
    "checkpoints/": "state of the run, to resume it",
    "history.jsonl": "losses, learning rate, speed, memory and validation scores",
    "logs/": "the same for TensorBoard, with predictions for a few validation images",
    "curves.png": "losses, learning rate and validation scores over the steps",
    "model.safetensors, config.json, preprocessor_config.json": "the model, for from_pretrained",
    "evaluation.json, evaluation.parquet, predictions.png": "scores and predictions of the model; of several datasets, "
    "files for each, such as evaluation_nyud_v2.json",
}
# Fields of every transformers configuration, and fields that follow from others.
NOT_SETTINGS = {"transformers_version", "architectures", "dtype", "stage_names", "out_features", "is_decoder"}


class Setting(NamedTuple):
    """One setting: its name as in an override, its value, and whether that is the default."""

    name: str
    value: Any
    is_default: bool


def effective_settings(config: TrainingConfig, model_config: SEMConfig) -> list[Setting]:
    """Returns all settings of a run and of its model, including defaults."""
    default = TrainingConfig()
    settings = [
        Setting(spec.name, getattr(config, spec.name), getattr(config, spec.name) == getattr(default, spec.name))
        for spec in fields(config)
        if spec.name != "model"
    ]
    return settings + model_settings(model_config)


def model_settings(config: SEMConfig) -> list[Setting]:
    """Returns the fields of a model configuration and of its encoder."""
    default = SEMConfig()
    inherited = {spec.name for spec in fields(PreTrainedConfig)}
    names = [spec.name for spec in fields(config) if spec.name not in inherited | {"backbone_config"}]
    encoder, default_encoder = config.backbone_config.to_diff_dict(), default.backbone_config.to_diff_dict()
    return [
        *(
            Setting(f"model.backbone_config.{name}", value, default_encoder.get(name) == value)
            for name, value in encoder.items()
            if name not in NOT_SETTINGS
        ),
        *(
            Setting(f"model.{name}", getattr(config, name), getattr(config, name) == getattr(default, name))
            for name in names
        ),
    ]


@dataclass(kw_only=True, frozen=True)
class Memory:
    """Static memory of a run in bytes; activations are not included."""

    parameters: int
    gradients: int
    optimizer: int
    average: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.parameters + self.gradients + self.optimizer + self.average


def permanent_memory(config: TrainingConfig, model: SEMForMultiTaskDensePrediction) -> Memory:
    """Returns the static memory: parameters and buffers, gradients, two moments and a step count of Adam, the average."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parameters, gradients = model.get_memory_footprint(), sum(parameter.nbytes for parameter in trainable)
    return Memory(
        parameters=parameters,
        gradients=gradients,
        optimizer=2 * gradients + 4 * len(trainable),
        average=0 if config.weight_average_decay is None else parameters,
    )


def format_plan(
    config: TrainingConfig, model: SEMForMultiTaskDensePrediction, num_rows: Sequence[int], num_processes: int
) -> str:
    """Describes what a run will do, as text for a terminal.

    Args:
        config (`TrainingConfig`): Settings of the run.
        model (`SEMForMultiTaskDensePrediction`): Model of the run.
        num_rows (`Sequence[int]`): Number of training images of each dataset.
        num_processes (`int`): Number of ranks.
    """
    settings = effective_settings(config, model.config)
    width = max(len(setting.name) for setting in settings)
    lines = ["Settings (* is not the default):"]
    lines += [f"{' *'[not is_default]} {name:{width}}  {shorten_value(value)}" for name, value, is_default in settings]
    facts = {
        "parameters": describe_parameters(model),
        "training": describe_length(config, num_rows, num_processes),
        "memory": describe_memory(permanent_memory(config, model)),
    }
    lines += ["", *(f"{name:12}{text}" for name, text in facts.items())]
    lines += ["", f"Files in {Path(config.output_dir)}/:"]
    lines += [f"  {name}: {text}" for name, text in FILES.items()]
    return "\n".join(lines)


def shorten_value(value: Any) -> str:
    """Returns a value on one line, shortened; the names of forty classes do not fit."""
    return shorten(str(value), width=100, placeholder=" ...")


def describe_parameters(model: SEMForMultiTaskDensePrediction) -> str:
    """Describes the number of parameters of the encoder and the rest, and how many are trainable."""
    encoder, total = model.sem.backbone.num_parameters(), model.num_parameters()
    trainable = model.num_parameters(only_trainable=True)
    return (
        f"{total / 1e6:.1f} M: encoder {encoder / 1e6:.1f} M, the rest {(total - encoder) / 1e6:.1f} M; "
        f"{trainable / 1e6:.1f} M trainable"
    )


def describe_length(config: TrainingConfig, num_rows: Sequence[int], num_processes: int) -> str:
    """Describes the number of steps, images and epochs."""
    num_images = config.max_steps * config.batch_size
    named = name_datasets(config.dataset_configs)
    total_weight = sum(dataset.weight for dataset in named.values())
    epochs = [
        f"{num_images * dataset.weight / total_weight / size:.1f} epochs of {size:,}"
        + (f" ({name}, {dataset.weight / total_weight:.0%} of the images)" if len(named) > 1 else "")
        for (name, dataset), size in zip(named.items(), num_rows, strict=True)
    ]
    return (
        f"{config.max_steps:,} steps of {config.batch_size} images (ranks: {num_processes}, micro-batches: "
        f"{config.gradient_accumulation_steps}, images in each: {config.images_per_forward(num_processes)}), "
        f"{num_images:,} images, {', '.join(epochs)}"
    )


def compare_sizes(rows: datasets.Dataset, input_size: Sequence[int]) -> None:
    """Warns if one of a few images is larger than `input_size`: training crops it, evaluation and prediction shrink it whole."""
    count = min(NUM_COMPARED_IMAGES, len(rows))
    sizes = [read_row(rows, place * len(rows) // count, [])[0].shape[-2:] for place in range(count)]
    size = [max(sides) for sides in zip(*sizes, strict=True)]
    if size[0] > input_size[0] or size[1] > input_size[1]:
        logger.warning(
            "Images are up to %d x %d, and `input_size` is %s: training sees crops of them, evaluation and prediction whole images "
            "shrunk to that size, so objects are smaller there and depth comes out too far. Set input_size=%s; `network_size` then is "
            "a smaller input of the network for both.",
            *size,
            list(input_size),
            f"[{size[0]},{size[1]}]",
        )


def describe_labels(counts: dict[str, int], num_rows: int) -> str:
    """Describes how many of the training images have a label of each task."""
    return f"{'labels':12}{', '.join(f'{task} {count:,}' for task, count in counts.items())} of {num_rows:,} images"


def describe_memory(memory: Memory) -> str:
    """Describes the static memory and its parts."""
    parts = {"parameters": memory.parameters, "gradients": memory.gradients, "Adam": memory.optimizer}
    parts |= {"average": memory.average} if memory.average else {}
    return (
        f"{memory.total / 1e9:.2f} GB per device: {', '.join(f'{name} {size / 1e9:.2f}' for name, size in parts.items())} "
        "(counted; less where FSDP or DeepSpeed shard it); activations need more, which --dry-run measures"
    )


def random_batch(config: TrainingConfig, model_config: SEMConfig, num_images: int) -> dict[str, Any]:
    """Returns random images and labels with the shapes and types of a training batch."""
    size = network_size(config)
    generator = torch.Generator().manual_seed(0)
    labels = {}
    for task, num_labels in model_config.task_num_labels.items():
        spec = get_task(task)
        if not spec.dtype.is_floating_point:
            labels[task] = torch.randint(num_labels, (num_images, *size), generator=generator)
        else:
            labels[task] = torch.rand(spec.label_shape(num_images, size), generator=generator)
    num_channels = model_config.backbone_config.num_channels
    return {"pixel_values": torch.randn(num_images, num_channels, *size, generator=generator), "labels": labels}


def measure_step(config: TrainingConfig, model: SEMForMultiTaskDensePrediction, accelerator: Accelerator) -> str:
    """Measures one forward and backward pass on random images, on all ranks, and describes its time and memory.

    Raises:
        ValueError: If the pass does not fit in the memory of the device.
    """
    num_images = config.images_per_forward(accelerator.num_processes)
    model.to(accelerator.device).train()
    try:
        batch = send_to_device(random_batch(config, model.config, num_images), accelerator.device)
        started = time.perf_counter()
        with accelerator.autocast():
            loss = model(**batch).loss
        loss.backward()
        loss.item()  # waits for the device
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "alloc" not in str(error):  # what a CPU raises
            raise
        raise ValueError(
            f"A forward and backward pass of {num_images} images does not fit in the memory of {accelerator.device}. Use more "
            "gradient_accumulation_steps or ranks, gradient_checkpointing=true or mixed_precision=bf16."
        ) from error
    seconds, peak, memory = (
        time.perf_counter() - started,
        peak_memory(accelerator.device),
        permanent_memory(config, model),
    )
    height, width = batch["pixel_values"].shape[-2:]
    return (
        f"{'measured':12}one forward and backward pass on {accelerator.device} (images: {num_images}, each {height} x "
        f"{width}) took {seconds:.2f} s, including the start of the kernels; peak {peak / 1e9:.2f} GB "
        f"{'on the device' if accelerator.device.type == 'cuda' else 'of this process, including libraries'}, so "
        f"{(peak + memory.optimizer + memory.average) / 1e9:.2f} GB are expected with the state of Adam"
    )

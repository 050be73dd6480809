"""What a run is going to do, before it does it: settings, length, memory, files; and one step of it on made-up images."""

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import PreTrainedConfig

from ..configuration_sem import SEMConfig
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..tasks import get_task
from .config import TrainingConfig, network_size


# What `output_dir` holds in the end
FILES = {
    "training.yaml": "settings, by which the same command resumes the run",
    "checkpoints/": "all that the run needs to go on",
    "history.jsonl": "losses, learning rate, speed and memory of every log entry",
    "logs/": "the same for TensorBoard",
    "snapshots/": "predictions for a few validation images during training",
    "training_report.html": "all of this to look at, also while it trains",
    "model.safetensors, config.json, preprocessor_config.json": "the model, for from_pretrained",
    "evaluation.json, evaluation.parquet, predictions.png": "its scores and its pictures",
}
# what every configuration of transformers holds, and what follows from the rest
NOT_SETTINGS = {"transformers_version", "architectures", "dtype", "stage_names", "out_features", "is_decoder"}


class Setting(NamedTuple):
    """One setting: its name as an override has it, its value, and whether that is the default."""

    name: str
    value: Any
    is_default: bool


def effective_settings(config: TrainingConfig, model_config: SEMConfig) -> list[Setting]:
    """All settings of a run and of its model, with what was filled in."""
    default = TrainingConfig()
    settings = [
        Setting(spec.name, getattr(config, spec.name), getattr(config, spec.name) == getattr(default, spec.name))
        for spec in fields(config)
        if spec.name != "model"
    ]
    return settings + model_settings(model_config)


def model_settings(config: SEMConfig) -> list[Setting]:
    """The fields of a model's configuration, those of its encoder among them."""
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
    """Bytes of what lies in memory all the time, exactly; what a forward pass leaves for the backward pass is not in it."""

    parameters: int
    gradients: int
    optimizer: int
    average: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.parameters + self.gradients + self.optimizer + self.average


def permanent_memory(config: TrainingConfig, model: SEMForMultiTaskDensePrediction) -> Memory:
    """Of parameters and buffers, the gradients of those that learn, Adam's two moments and step count of each, and the average."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parameters, gradients = num_bytes([*model.parameters(), *model.buffers()]), num_bytes(learning)
    return Memory(
        parameters=parameters,
        gradients=gradients,
        optimizer=2 * gradients + 4 * len(learning),
        average=0 if config.weight_average_decay is None else parameters,
    )


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Of the values of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def format_plan(
    config: TrainingConfig, model: SEMForMultiTaskDensePrediction, num_rows: int, num_processes: int
) -> str:
    """What a run is going to do, as text for a terminal.

    Args:
        config (`TrainingConfig`): Its settings.
        model (`SEMForMultiTaskDensePrediction`): Its model.
        num_rows (`int`): Training images.
        num_processes (`int`): Ranks.
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


def shorten_value(value: Any, width: int = 100) -> str:
    """A value on one line; the names of forty classes do not fit."""
    return shorten(str(value), width, placeholder=" ...")


def describe_parameters(model: SEMForMultiTaskDensePrediction) -> str:
    """How many there are, where, and how many learn."""
    encoder, total = model.sem.backbone.num_parameters(), model.num_parameters()
    learning = model.num_parameters(only_trainable=True)
    return (
        f"{total / 1e6:.1f} M: encoder {encoder / 1e6:.1f} M, the rest {(total - encoder) / 1e6:.1f} M; "
        f"{learning / 1e6:.1f} M learn"
    )


def describe_length(config: TrainingConfig, num_rows: int, num_processes: int) -> str:
    """Steps, images and epochs."""
    num_images = config.max_steps * config.batch_size
    return (
        f"{config.max_steps:,} steps of {config.batch_size} images (ranks: {num_processes}, micro-batches: "
        f"{config.gradient_accumulation_steps}, images in each: {config.images_per_forward(num_processes)}), "
        f"{num_images:,} images, {num_images / num_rows:.1f} epochs of {num_rows:,}"
    )


def describe_memory(memory: Memory) -> str:
    """Parts and sum, and what they leave out."""
    parts = {"parameters": memory.parameters, "gradients": memory.gradients, "Adam": memory.optimizer}
    parts |= {"average": memory.average} if memory.average else {}
    return (
        f"{memory.total / 1e9:.2f} GB per device: {', '.join(f'{name} {size / 1e9:.2f}' for name, size in parts.items())} "
        "(counted; less where FSDP or DeepSpeed share it out); activations come on top, and --dry-run measures them"
    )


def random_batch(config: TrainingConfig, model_config: SEMConfig, num_images: int) -> dict[str, Any]:
    """Images and labels of the shapes and formats of the training, from random numbers."""
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
    """Takes one forward and backward pass of made-up images, all ranks at once, and says how long it took and what it needed.

    Raises:
        ValueError: If it does not fit in the memory of the device.
    """
    num_images = config.images_per_forward(accelerator.num_processes)
    batch = send_to_device(random_batch(config, model.config, num_images), accelerator.device)
    model.to(accelerator.device).train()
    started = time.perf_counter()
    try:
        with accelerator.autocast():
            loss = model(**batch).loss
        loss.backward()
        loss.item()  # waits for the device
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"The forward and backward pass of {num_images} images does not fit in the memory of {accelerator.device}. Use more "
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
        f"{width}) took {seconds:.2f} s, the start of the kernels included; at most {peak / 1e9:.2f} GB "
        f"{'on the device' if accelerator.device.type == 'cuda' else 'in this process, libraries included'}, so "
        f"{(peak + memory.optimizer + memory.average) / 1e9:.2f} GB are expected with what Adam keeps"
    )


def peak_memory(device: torch.device) -> int:
    """Bytes that were held at most on a GPU, or by this process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

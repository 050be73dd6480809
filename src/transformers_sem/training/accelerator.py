"""The accelerator of a run: devices, engine, precision, determinism and trackers."""

import os
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration, patch_environment
from torch.torch_version import TorchVersion
from transformers import PreTrainedModel
from transformers.trainer_utils import enable_full_determinism

from ..utils.processes import start_accelerator
from .config import TrainingConfig


MIN_TORCH_TO_COMPILE = "2.14"  # the oldest for which compiled gradients were compared with those of eager steps
PROJECT_NAME = "transformers-sem"
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


def build_accelerator(config: TrainingConfig) -> Accelerator:
    """Builds the accelerator that the settings ask for.

    Raises:
        ValueError: If a tracker is not installed, or launcher, devices or torch do not fit the settings.
    """
    check_trackers(config.trackers)
    check_launcher(config)
    check_compiler(config)
    if config.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise ValueError("`mixed_precision` fp16 needs a GPU, and there is none. Set mixed_precision=bf16 or no.")
    if config.deterministic:
        # torch warns about operations that have no deterministic form on this device
        enable_full_determinism(config.seed, warn_only=True)
    num_micro_batches = config.gradient_accumulation_steps
    # A launcher with DeepSpeed sets its default, which would win over the argument
    with patch_environment(ACCELERATE_GRADIENT_ACCUMULATION_STEPS=num_micro_batches):
        accelerator = start_accelerator(
            gradient_accumulation_steps=num_micro_batches,
            mixed_precision=config.mixed_precision,
            log_with=config.trackers or None,  # accelerate warns about an empty list
            project_config=ProjectConfiguration(config.output_dir, logging_dir=str(Path(config.output_dir) / "logs")),
        )
    images_per_forward = config.images_per_forward(accelerator.num_processes)
    if config.weight_average_decay is not None and accelerator.distributed_type in SHARDED:
        raise ValueError(
            f"`weight_average_decay` needs unsharded weights on every rank; got {config.weight_average_decay} with "
            f"{accelerator.distributed_type.value}. Launch with DDP, or leave it null."
        )
    if accelerator.distributed_type == DistributedType.FSDP:
        # Sharded checkpoints hold pickles, which execute code, and fit one number of ranks only.
        accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"] = images_per_forward
        settings["gradient_clipping"] = config.max_grad_norm
    return accelerator


def choose_sharded_modules(accelerator: Accelerator, model: PreTrainedModel) -> None:
    """Sets the modules that FSDP shards: those that the launcher names, or `_no_split_modules`, that the model has."""
    if accelerator.distributed_type == DistributedType.FSDP:
        plugin, present = accelerator.state.fsdp_plugin, {type(module).__name__ for module in model.modules()}
        names = plugin.transformer_cls_names_to_wrap or model._no_split_modules
        plugin.transformer_cls_names_to_wrap = sorted(present.intersection(names))


def check_launcher(config: TrainingConfig) -> None:
    """Checks that flags of `accelerate launch` do not contradict the settings, which accelerate would silently ignore.

    Raises:
        ValueError: If one does.
    """
    for variable, setting, default in (
        ("ACCELERATE_MIXED_PRECISION", "mixed_precision", "no"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "gradient_accumulation_steps", "1"),
    ):
        launched, wanted = os.environ.get(variable, default), str(getattr(config, setting))
        if launched not in (default, wanted):
            raise ValueError(
                f"accelerate launch sets {setting} to {launched}, the settings of the run to {wanted}. Pass {setting}={launched} "
                "after --config, which records it with the run, and keep the default in the launcher."
            )


def compiles_training() -> bool:
    """Returns whether torch is known to compile a training step with the right gradients."""
    return TorchVersion(torch.__version__) >= MIN_TORCH_TO_COMPILE


def check_compiler(config: TrainingConfig) -> None:
    """Checks that torch is new enough to compile a training step.

    Raises:
        ValueError: If it is not.
    """
    if config.compile and not compiles_training():
        raise ValueError(
            f"`compile` needs torch {MIN_TORCH_TO_COMPILE}: torch 2.11 compiles a step with wrong gradients (CPU); got "
            f"{torch.__version__}. Update torch, or set compile=false."
        )


def check_trackers(trackers: list[str]) -> None:
    """Checks that trackers are installed; accelerate would silently ignore missing ones.

    Raises:
        ValueError: If one is not.
    """
    missing = [name for name in trackers if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"`trackers` must be installed; {missing} are not. Run pip install {' '.join(missing)}, or leave them out."
        )


def start_trackers(config: TrainingConfig, accelerator: Accelerator, step: int) -> None:
    """Starts the trackers, or continues their logs of a run that is resumed at `step`."""
    run = {"name": Path(config.output_dir).name, "config": asdict(config)}
    accelerator.init_trackers(
        PROJECT_NAME,
        init_kwargs={
            "tensorboard": {"purge_step": step + 1},
            "wandb": {**run, "dir": config.output_dir, "resume": "auto"},
            "trackio": {**run, "resume": "allow"},
        },
    )

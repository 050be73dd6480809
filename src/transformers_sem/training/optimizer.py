"""The optimizer, layer-wise learning rates, and a step that skips losses and gradients that are not finite."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from timm.models import group_parameters
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel

from ..backbone_timm import SEMTimmBackbone
from ..modeling_sem import SEMForMultiTaskDensePrediction
from .config import TrainingConfig
from .signals import StopRequest


logger = logging.getLogger(__name__)

# The smallest learning rate of log variances; the paper's 1e-5 moves them by 0.2 in a whole training.
VARIANCE_RATE = 1e-3
# Layers of transformers' encoders, in the form of timm's `group_matcher`: the first match counts, numbers are depths.
LAST = (99999,)
TRANSFORMERS_LAYERS = {
    "stem": r".*\b(?:embeddings|embedder)\b",
    "blocks": [
        (r".*\bstages\.(\d+)\.downsampl", (0,)),  # ConvNeXt downsamples before the blocks of a stage
        (r".*\bstages\.(\d+)\.(?:layers|blocks)\.(\d+)", None),
        (r".*\blayers\.(\d+)\.downsample", LAST),  # Swin after them
        (r".*\blayers\.(\d+)\.blocks\.(\d+)", None),
        (r".*\blayers?\.(\d+)", None),  # ViT, DINOv2, DINOv3
        (r".*", LAST),  # norms of the feature maps
    ],
}


def layer_depths(backbone: PreTrainedModel) -> dict[str, int]:
    """Returns the layer number of each encoder parameter, counted from 0 at the image.

    Raises:
        ValueError: If timm does not name the layers of the encoder.
    """
    if isinstance(backbone, SEMTimmBackbone):
        encoder = backbone.encoder.model
        if not hasattr(encoder, "group_matcher"):
            raise ValueError(
                f"`layer_decay` needs an encoder whose layers timm names; got {backbone.config.model_name!r}. Leave it at 1."
            )
        return {
            f"encoder.model.{name}": depth
            for name, depth in group_parameters(encoder, encoder.group_matcher(coarse=False), reverse=True).items()
        }
    return group_parameters(backbone, TRANSFORMERS_LAYERS, reverse=True)


def learning_rate_scales(backbone: PreTrainedModel, layer_decay: float) -> dict[str, float]:
    """Returns the learning rate factors of layer-wise decay (BEiT): `layer_decay` for the last layer, its square below."""
    depths = layer_depths(backbone)
    num_layers = max(depths.values()) + 1
    return {name: layer_decay ** (num_layers - depth) for name, depth in depths.items()}


def build_optimizer(config: TrainingConfig, model: SEMForMultiTaskDensePrediction) -> torch.optim.Adam:
    """Builds Adam over all trainable parameters, in groups of one learning rate, the largest first.

    Learned log variances of the tasks move by about the learning rate in each step, so theirs is at least `VARIANCE_RATE`, and
    without weight decay. Their group is the last.
    """
    scales = learning_rate_scales(model.sem.backbone, config.layer_decay) if config.layer_decay != 1 else {}
    groups, log_variances = defaultdict(list), []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("task_log_variances."):
            log_variances.append(parameter)
        else:
            groups[scales.get(name.removeprefix("sem.backbone."), 1.0)].append(parameter)
    rates = [{"params": groups[scale], "lr": config.learning_rate * scale} for scale in sorted(groups, reverse=True)]
    if log_variances:
        rate = max(config.learning_rate, VARIANCE_RATE)
        rates.append({"params": log_variances, "lr": rate, "weight_decay": 0.0})
    # fused: one kernel per parameter instead of a dozen
    return torch.optim.Adam(rates, weight_decay=config.weight_decay, fused=True)


def build_average(config: TrainingConfig, accelerator: Accelerator, model: nn.Module) -> AveragedModel | None:
    """Builds the exponential moving average of the weights; `None` if the settings ask for none.

    The decay grows to `weight_average_decay` as (1 + n) / (10 + n) after n steps, so that the first weights do not stay in the
    average of a short training. Buffers are copied from the model: the bases are moving averages of unit length already.
    """
    if config.weight_average_decay is None:
        return None

    def average_weights(averages: list[Tensor], weights: list[Tensor], num_averaged: Tensor) -> None:
        count = int(num_averaged)
        decay = min(config.weight_average_decay, (1 + count) / (10 + count))
        get_ema_multi_avg_fn(decay)(averages, weights, num_averaged)

    return AveragedModel(model, device=accelerator.device, multi_avg_fn=average_weights)


class StepReport(NamedTuple):
    """Result of an optimizer step, the same on all ranks: losses, names of numbers that are not finite, a signal or 0."""

    losses: dict[str, float]
    not_finite: list[str]
    signum: int


class OptimizerStep:
    """One optimizer step on all ranks, which is skipped on all if a loss or the gradient of any is not finite.

    A skipped step does not change weights, optimizer and buffers (bases, statistics of batch norms). DeepSpeed steps inside
    `backward`, and skips overflows of half precision itself.

    Args:
        accelerator (`Accelerator`): Accelerator of the run.
        model (`nn.Module`): Model prepared by the accelerator.
        optimizer (`AcceleratedOptimizer`): Optimizer prepared by the accelerator.
        max_grad_norm (`float`): Norm to which gradients are clipped.
        stop (`StopRequest`): Signals, on which the ranks agree.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        max_grad_norm: float,
        stop: StopRequest,
    ):
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.max_grad_norm, self.stop = max_grad_norm, stop

    def __call__(self, batches: Iterable[dict]) -> StepReport:
        """Takes a step on micro-batches."""
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        micro_losses = [self._accumulate(batch) for batch in batches]
        names = list(micro_losses[0])
        losses = torch.stack([torch.stack(list(values.values())) for values in micro_losses]).mean(dim=0)
        report = self._agree(names, losses, self._clip())
        if report.not_finite:
            self._undo(buffers)
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return report

    def _accumulate(self, batch: dict) -> dict[str, Tensor]:
        with self.accelerator.accumulate(self.model):
            outputs = self.model(**batch)
            self.accelerator.backward(outputs.loss)
        return {name: value.detach().float() for name, value in {"loss": outputs.loss, **outputs.losses}.items()}

    def _clip(self) -> Tensor:
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return torch.zeros((), device=self.accelerator.device)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _agree(self, names: list[str], losses: Tensor, norm: Tensor) -> StepReport:
        """Averages over the ranks, in one exchange and one wait for the device."""
        signum = torch.tensor([float(self.stop.signum)], device=losses.device)
        rows = self.accelerator.gather(torch.cat([losses, norm.reshape(1), signum])[None]).cpu()
        *means, mean_norm, _ = rows.mean(dim=0).tolist()
        losses = dict(zip(names, means, strict=True))
        numbers = {**losses, "gradient": mean_norm}
        return StepReport(
            losses, [name for name, value in numbers.items() if not math.isfinite(value)], int(rows[:, -1].max())
        )

    def _undo(self, buffers: list[Tensor]) -> None:
        for buffer, value in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(value)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()


class NonFiniteGuard:
    """Counts skipped steps, and ends the run after too many consecutive ones. Checkpoints hold the counts.

    In half precision the loss scale starts too large on purpose. Gradients that overflow while the scale is above 1 serve to
    find it and are not counted.

    Args:
        accelerator (`Accelerator`): Holds the gradient scaler; its main process logs.
        max_skipped_steps (`int`): Maximum number of consecutive skipped steps.
    """

    def __init__(self, accelerator: Accelerator, max_skipped_steps: int):
        self.accelerator, self.max_skipped_steps = accelerator, max_skipped_steps
        if accelerator.distributed_type == DistributedType.DEEPSPEED and accelerator.mixed_precision != "fp16":
            self.max_skipped_steps = 0  # DeepSpeed has taken the step when its loss is known
        self.total = self.consecutive = 0

    def state_dict(self) -> dict:
        """Returns the counts."""
        return {"total": self.total, "consecutive": self.consecutive}

    def load_state_dict(self, state: dict) -> None:
        """Restores the counts."""
        self.total, self.consecutive = state["total"], state["consecutive"]

    def count(self, step: int, not_finite: list[str]) -> None:
        """Counts a step.

        Raises:
            FloatingPointError: If more than `max_skipped_steps` consecutive steps were skipped.
        """
        scaler = self.accelerator.scaler
        if scaler is not None and not_finite == ["gradient"] and scaler.get_scale() >= 1:
            return
        self.consecutive = self.consecutive + 1 if not_finite else 0
        self.total += bool(not_finite)
        if not_finite and self.accelerator.is_main_process:
            logger.warning("Step %d is skipped; not finite: %s.", step, ", ".join(not_finite))
        if self.consecutive > self.max_skipped_steps:
            raise FloatingPointError(
                f"At most {self.max_skipped_steps} consecutive steps (`max_skipped_steps`) may have a loss or gradient that is not "
                f"finite; got {self.consecutive} at step {step} ({', '.join(not_finite)}). Earlier checkpoints are intact. Lower "
                "learning_rate, use mixed_precision=bf16 instead of fp16, or check the data."
            )

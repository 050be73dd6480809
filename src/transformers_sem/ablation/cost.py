"""What a model costs, counted and not timed: parameters and multiply-accumulates."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..configuration_sem import SEMConfig
from ..modeling_sem import SEMForMultiTaskDensePrediction


def count_multiply_accumulates(function: Callable, *inputs: torch.Tensor) -> float:
    """In billions; torch counts a multiplication and an addition as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*inputs)
    return counter.get_total_flops() / 2e9


def build_without_weights(
    config: SEMConfig, size: tuple[int, int]
) -> tuple[SEMForMultiTaskDensePrediction, torch.Tensor]:
    """A model whose operations can be counted, and an image `(1, 3, *size)` for it; neither takes memory."""
    with torch.device("meta"):
        model = SEMForMultiTaskDensePrediction(config).eval()
        image = torch.empty(1, 3, *size)
    model.set_attn_implementation("eager")  # torch counts fused attention in another way
    for module in model.sem.backbone.modules():
        if hasattr(module, "fused_attn"):  # timm's switch for the same
            module.fused_attn = False
    return model, image

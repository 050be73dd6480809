"""The cost of a model: multiply-accumulates, counted without weights."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..configuration_sem import SEMConfig
from ..layers import SkipInitOnMeta
from ..modeling_sem import SEMForMultiTaskDensePrediction


def count_multiply_accumulates(function: Callable, *inputs: torch.Tensor) -> float:
    """Counts the multiply-accumulates of a function, in billions."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*inputs)
    return counter.get_total_flops() / 2e9  # torch counts a multiply-accumulate as two operations


def build_without_weights(
    config: SEMConfig, size: tuple[int, int]
) -> tuple[SEMForMultiTaskDensePrediction, torch.Tensor]:
    """Builds a model for counting and an image `(1, 3, *size)` on the meta device, which take no memory."""
    with torch.device("meta"), SkipInitOnMeta():
        model = SEMForMultiTaskDensePrediction(config).eval()
        image = torch.empty(1, 3, *size)
    model.set_attn_implementation("eager")  # torch counts fused attention differently
    for module in model.sem.backbone.modules():
        if hasattr(module, "fused_attn"):  # timm's switch
            module.fused_attn = False
    return model, image

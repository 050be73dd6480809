"""The start of the heads: the constant predictor, so that training does not spend its first steps on reaching it."""

from collections.abc import Iterable

import torch

from ..evaluation.constant_predictor import ConstantPredictor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..tasks import get_task


@torch.no_grad()
def init_heads(model: SEMForMultiTaskDensePrediction, constant: ConstantPredictor, tasks: Iterable[str]) -> None:
    """Sets the bias of the last layer of heads and auxiliary heads by the rule of the kind of each task.

    Args:
        model (`SEMForMultiTaskDensePrediction`): The model.
        constant (`ConstantPredictor`): Fitted to the training rows.
        tasks (`Iterable[str]`): Tasks whose heads are new.
    """
    for task in tasks:
        layers = [model.heads[task].classifier]
        if model.auxiliary_heads is not None:
            layers.append(model.auxiliary_heads[task])
        bias = get_task(task).kind.start_logits(constant.mean_label(task), model.config.task_num_labels[task])
        for layer in layers:
            layer.bias.copy_(bias)

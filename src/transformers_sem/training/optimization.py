"""The optimiser, and how fast each layer of the encoder learns."""

from collections import defaultdict

import torch
from timm.models import group_parameters
from transformers import PreTrainedModel

from ..backbone_timm import SEMTimmBackbone
from ..modeling_sem import SEMForMultiTaskDensePrediction
from .configuration import TrainingConfig


# The layers of transformers' encoders, as timm's models describe theirs: first match, numbers in order of depth
LAST = (99999,)
TRANSFORMERS_LAYERS = {
    "stem": r".*\bembeddings\b",
    "blocks": [
        (r".*\bstages\.(\d+)\.downsampl", (0,)),  # ConvNeXt downsamples before the blocks of a stage
        (r".*\bstages\.(\d+)\.layers\.(\d+)", None),
        (r".*\blayers\.(\d+)\.downsample", LAST),  # Swin after them
        (r".*\blayers\.(\d+)\.blocks\.(\d+)", None),
        (r".*\blayers?\.(\d+)", None),  # ViT, DINOv2, DINOv3
        (r".*", LAST),  # norms of the feature maps
    ],
}


def layer_depths(backbone: PreTrainedModel) -> dict[str, int]:
    """The number of the layer that each parameter of an encoder belongs to, from 0 at the image."""
    if isinstance(backbone, SEMTimmBackbone):
        encoder = backbone.encoder.model
        return {
            f"encoder.model.{name}": depth
            for name, depth in group_parameters(encoder, encoder.group_matcher(coarse=False), reverse=True).items()
        }
    return group_parameters(backbone, TRANSFORMERS_LAYERS, reverse=True)


def learning_rate_scales(backbone: PreTrainedModel, layer_decay: float) -> dict[str, float]:
    """Layer-wise decay (BEiT): what comes after the encoder learns at 1, its last layer at `layer_decay`, and so on down."""
    depths = layer_depths(backbone)
    num_layers = max(depths.values()) + 1
    return {name: layer_decay ** (num_layers - depth) for name, depth in depths.items()}


def build_optimizer(config: TrainingConfig, model: SEMForMultiTaskDensePrediction) -> torch.optim.Adam:
    """Adam over everything that is not frozen, in groups of one learning rate, the fastest first."""
    scales = learning_rate_scales(model.sem.backbone, config.layer_decay)
    groups = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[scales.get(name.removeprefix("sem.backbone."), 1.0)].append(parameter)
    return torch.optim.Adam(
        [{"params": groups[scale], "lr": config.learning_rate * scale} for scale in sorted(groups, reverse=True)],
        weight_decay=config.weight_decay,
    )

import pytest
import torch

from transformers_sem import SEMForMultiTaskDensePrediction
from transformers_sem.training.configuration import TrainingConfig
from transformers_sem.training.optimization import build_optimizer, layer_depths

from ..test_transformers_behaviour import BACKBONES, build_config


def rates_of(optimizer, model):
    rates = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    return {name: rates[id(value)] for name, value in model.named_parameters() if id(value) in rates}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_parameter_of_an_encoder_has_a_depth(backbone):
    encoder = SEMForMultiTaskDensePrediction(build_config(backbone)).sem.backbone
    depths = layer_depths(encoder)
    assert set(depths) == {name for name, _ in encoder.named_parameters()}
    num_layers = {"timm": 7}.get(backbone, 5)  # the patch embedding and every block
    assert set(depths.values()) == set(range(num_layers))
    assert [depth for name, depth in depths.items() if "embed" in name and "norm" not in name and depth] == []


@pytest.mark.parametrize("backbone", BACKBONES)
def test_layers_near_the_image_learn_slower(backbone):
    model = SEMForMultiTaskDensePrediction(build_config(backbone))
    optimizer = build_optimizer(TrainingConfig(learning_rate=1e-3, layer_decay=0.5), model)
    rates = rates_of(optimizer, model)
    assert set(rates) == {name for name, value in model.named_parameters() if value.requires_grad}
    depths = layer_depths(model.sem.backbone)
    for name, rate in rates.items():
        encoder_name = name.removeprefix("sem.backbone.")
        below = max(depths.values()) + 1 - depths[encoder_name] if name.startswith("sem.backbone.") else 0
        assert rate == pytest.approx(1e-3 * 0.5**below), name


def test_without_decay_there_is_one_group():
    model = SEMForMultiTaskDensePrediction(build_config("convnext"))
    (group,) = build_optimizer(TrainingConfig(), model).param_groups
    assert group["lr"] == 1e-5 and len(group["params"]) == len(list(model.parameters()))


def test_a_frozen_encoder_is_left_out():
    model = SEMForMultiTaskDensePrediction(build_config("timm"))
    model.sem.backbone.requires_grad_(False)
    names = set(rates_of(build_optimizer(TrainingConfig(), model), model))
    assert names and not any(name.startswith("sem.backbone.") for name in names)
    assert isinstance(build_optimizer(TrainingConfig(), model), torch.optim.Adam)

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from torch import nn
from transformers import AutoBackbone, HGNetV2Config, ResNetConfig

from transformers_sem import SEMForMultiTaskDensePrediction
from transformers_sem.training.config import TrainingConfig
from transformers_sem.training.optimizer import (
    NonFiniteGuard,
    OptimizerStep,
    build_average,
    build_optimizer,
    layer_depths,
)

from ..test_transformers_behavior import BACKBONES, build_config
from ..tiny import tiny_config


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


def test_layers_of_convolutional_encoders_are_in_order():
    """ResNet names its stem otherwise than other encoders, HGNetV2 has blocks of layers."""
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "out_indices": [1, 2, 3, 4]}
    resnet = layer_depths(AutoBackbone.from_config(ResNetConfig(**sizes)))
    assert {depth for name, depth in resnet.items() if name.startswith("embedder.")} == {0}
    hgnet_config = HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8] * 4,
        stage_mid_channels=[8] * 4,
        stage_out_channels=[8] * 4,
        stage_num_blocks=[1, 1, 2, 1],
        stage_numb_of_layers=[2] * 4,
        **sizes,
    )
    hgnet = layer_depths(AutoBackbone.from_config(hgnet_config))
    stages = [
        {depth for name, depth in hgnet.items() if f"stages.{stage}." in name and "embedder" not in name}
        for stage in range(4)
    ]
    assert {depth for name, depth in hgnet.items() if "embedder" in name} == {0}
    assert all(max(first) < min(second) for first, second in pairwise([{0}, *stages]))


def test_an_encoder_without_named_layers_trains_without_decay():
    model = SEMForMultiTaskDensePrediction(tiny_config())
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(type(model.sem.backbone.encoder.model), "group_matcher")  # as MetaFormer
        (group,) = build_optimizer(TrainingConfig(), model).param_groups
        assert len(group["params"]) == len(list(model.parameters()))
        with pytest.raises(ValueError, match=r"`layer_decay` needs .* 'test_convnext'\. Leave it at 1\."):
            build_optimizer(TrainingConfig(layer_decay=0.5), model)


def test_log_variances_learn_faster_than_the_paper():
    model = SEMForMultiTaskDensePrediction(tiny_config(task_loss_weighting="uncertainty"))
    first, group = build_optimizer(TrainingConfig(), model).param_groups
    assert first["lr"] == 1e-5  # the one that is logged
    assert group["params"] == [*model.task_log_variances.values()]
    assert (group["lr"], group["weight_decay"]) == (1e-3, 0.0)
    assert build_optimizer(TrainingConfig(learning_rate=0.01), model).param_groups[-1]["lr"] == 0.01


def test_a_frozen_encoder_is_left_out():
    model = SEMForMultiTaskDensePrediction(build_config("timm"))
    model.sem.backbone.requires_grad_(False)
    names = set(rates_of(build_optimizer(TrainingConfig(), model), model))
    assert names and not any(name.startswith("sem.backbone.") for name in names)
    assert isinstance(build_optimizer(TrainingConfig(), model), torch.optim.Adam)


# ----------------------------------------------------------------------------------------------------------------------
# Steps, and those that are not taken


class Net(nn.Module):
    """A loss that is the weight times the input, and a buffer that every forward changes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.seen = nn.Buffer(torch.zeros(()))

    def forward(self, values):
        self.seen += 1
        loss = (self.weight * values).sum()
        return SimpleNamespace(loss=loss, losses={"depth": loss.detach()})


class Steps:
    def __init__(self, num_micro_batches=1, scaler=None):
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=num_micro_batches)
        self.accelerator.scaler = scaler
        self.net = Net()
        self.optimizer = AcceleratedOptimizer(torch.optim.Adam(self.net.parameters(), lr=0.1), scaler=scaler)
        self.accelerator._optimizers.append(self.optimizer)
        self.stop = SimpleNamespace(signum=0)
        self.take = OptimizerStep(self.accelerator, self.net, self.optimizer, max_grad_norm=10.0, stop=self.stop)

    def __call__(self, *values):
        return self.take([{"values": torch.tensor(value)} for value in values])

    def state(self):
        moments = [value.clone() for value in self.optimizer.state_dict()["state"].get(0, {}).values()]
        return [self.net.weight.detach().clone(), self.net.seen.clone(), *moments]


def test_a_step_reports_the_mean_of_its_micro_batches():
    steps = Steps(num_micro_batches=2)
    report = steps([1.0, 1.0], [3.0, 5.0])
    assert report == ({"loss": 5.0, "depth": 5.0}, [], 0)
    assert steps.net.seen == 2 and (steps.net.weight < 1).all()
    steps.stop.signum = 15
    assert steps([1.0, 1.0], [1.0, 1.0]).signum == 15


@pytest.mark.parametrize(
    ("values", "not_finite"),
    [
        ([float("nan"), 1.0], ["loss", "depth", "gradient"]),
        ([float("inf"), 1.0], ["loss", "depth", "gradient"]),
        ([3e38, 3e38], ["loss", "depth", "gradient"]),
        ([3e38, -3e38], ["gradient"]),
    ],
)
def test_a_step_that_is_not_finite_changes_nothing(values, not_finite):
    steps = Steps(num_micro_batches=2)
    steps([1.0, 2.0], [1.0, 2.0])
    before = steps.state()
    assert steps([1.0, 1.0], values).not_finite == not_finite
    assert all(map(torch.equal, steps.state(), before))
    assert steps.net.weight.grad is None
    # and the next step is the one that would have been taken
    undisturbed = Steps(num_micro_batches=2)
    for other in (steps, undisturbed):
        other([1.0, 2.0], [1.0, 2.0])
    undisturbed([1.0, 2.0], [1.0, 2.0])
    assert all(map(torch.equal, steps.state(), undisturbed.state()))


def test_a_skipped_step_lets_the_scaler_find_its_scale(monkeypatch):
    """On a CPU accelerate has no scaler; torch has."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    steps = Steps(scaler=scaler)
    monkeypatch.setitem(AcceleratorState._shared_state, "_mixed_precision", "fp16")
    steps.accelerator.native_amp = True
    guard = NonFiniteGuard(steps.accelerator, max_skipped_steps=1)
    for step in range(5):
        report = steps([16.0, 16.0])
        guard.count(step, report.not_finite)
    assert 2.0**120 < scaler.get_scale() < 2.0**125
    assert report.not_finite == [] and (steps.net.weight < 1).all()
    assert guard.total == 0


def test_too_many_consecutive_skipped_steps_end_the_run(caplog):
    guard = NonFiniteGuard(Accelerator(cpu=True), max_skipped_steps=2)
    for step, not_finite in enumerate([["loss"], ["gradient"], [], ["loss"], ["loss"]], start=1):
        guard.count(step, not_finite)
    assert (guard.total, guard.consecutive) == (4, 2)
    assert "Step 2 is skipped; not finite: gradient." in caplog.text
    resumed = NonFiniteGuard(Accelerator(cpu=True), max_skipped_steps=2)
    resumed.load_state_dict(guard.state_dict())
    with pytest.raises(FloatingPointError, match=r"`max_skipped_steps`.*3 at step 6 \(depth\).*learning_rate"):
        resumed.count(6, ["depth"])


def test_a_scale_that_shrinks_without_end_ends_the_run():
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = SimpleNamespace(get_scale=lambda: 0.5)
    guard = NonFiniteGuard(accelerator, max_skipped_steps=1)
    guard.count(1, ["gradient"])
    with pytest.raises(FloatingPointError):
        guard.count(2, ["gradient"])


def test_an_image_that_is_not_finite_changes_neither_bases_nor_batch_norms():
    backbone = {"model_name": "test_resnet", "out_indices": [1, 2, 3, 4]}
    model = SEMForMultiTaskDensePrediction(tiny_config(task_num_labels={"depth": 1}, backbone_config=backbone)).train()
    accelerator = Accelerator(cpu=True)
    optimizer = AcceleratedOptimizer(build_optimizer(TrainingConfig(), model))
    take = OptimizerStep(accelerator, model, optimizer, max_grad_norm=10.0, stop=SimpleNamespace(signum=0))
    batch = {"pixel_values": torch.rand(2, 3, 32, 64), "labels": {"depth": torch.rand(2, 1, 32, 64)}}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch["pixel_values"][0, 0, 3, 3] = float("nan")
    assert "loss" in take([batch]).not_finite
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])] == []


def test_the_average_follows_the_weights():
    model = Net()
    accelerator = Accelerator(cpu=True)
    assert build_average(TrainingConfig(), accelerator, model) is None
    average = build_average(TrainingConfig(weight_average_decay=0.75), accelerator, model)
    average.update_parameters(model)
    with torch.no_grad():
        model.weight += 4
        model.seen += 3
    average.update_parameters(model)
    # after one step the decay is 2 / 11, in place of 0.75
    torch.testing.assert_close(average.module.weight, torch.full((2,), 1 + 4 * 9 / 11))
    assert average.module.seen == 3
    for _ in range(30):
        average.update_parameters(model)
    before = average.module.weight.clone()
    with torch.no_grad():
        model.weight += 4
    average.update_parameters(model)
    torch.testing.assert_close(average.module.weight, before * 0.75 + model.weight.detach() * 0.25)

import itertools
import math
import re
from fractions import Fraction

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForUniversalSegmentation,
    ConvNextConfig,
    Dinov2Config,
    DINOv3ViTConfig,
    ResNetConfig,
    SwinConfig,
)

from transformers_sem import TASKS, SEMConfig, SEMForMultiTaskDensePrediction, SEMModel
from transformers_sem.backbone import use_linear_layers
from transformers_sem.layers import SEMPatchConv2d, SkipInitOnMeta
from transformers_sem.modeling_sem import (
    Padding,
    SEMFeatureReassembly,
    SEMHierarchyAdaptiveAttention,
    SEMInterTaskModule,
    SEMIntraTaskModule,
    SEMOffsetNetwork,
    SEMStageWeighting,
    aggregate_stages,
    consensus,
    deform_points,
    expectation_maximization,
    expectation_step,
    maximization_step,
    moving_average,
    reference_grid,
    sample_points,
)

from .fake_mps import FakeMPS, to_mps
from .tiny import tiny_config


NYUD_TASKS = {"semseg": 40, "depth": 1, "normal": 3, "boundary": 1}
ALL_TASKS = {"semseg": 5, "depth": 1, "normal": 3, "boundary": 1, "parsing": 4, "saliency": 2}
PLAIN_VIT = {"model_name": "test_vit", "out_indices": [1, 2, 4, 6], "drop_path_rate": 0.0}
# design.md, 1.6: the paper's tables as configurations
ROWS = {
    "single task": {"use_decoder": False, "task_num_labels": {"depth": 1}},
    "multi task": {"use_decoder": False},
    "baseline": {"use_intra_task": False, "inter_task_stages": 0},
    "with intra": {"inter_task_stages": 0},
    "with inter": {"use_intra_task": False},
    "sem": {},
}


def slow(values):
    """The values as parameters of slow tests."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


# The memory alignment of loaded weights selects kernels that round differently
UNALIGNED = {"rtol": 0, "atol": 1e-6}
SWITCHES = (
    [{"num_intra_task_stages": number} for number in (1, 2, 3, 4)]
    + [{"inter_task_stages": number} for number in (0, 1, 2, 3, 4)]
    + [{"num_em_iterations": number} for number in (0, 1, 2, 3)]
)
# Switches at their defaults, or as in one of the rows
NO_OTHER_MODEL = (
    {"num_intra_task_stages": 4},
    {"inter_task_stages": 4},
    {"inter_task_stages": 0},
    {"num_em_iterations": 2},
)


def build_model(seed=0, **overrides):
    torch.manual_seed(seed)
    return SEMForMultiTaskDensePrediction(tiny_config(**overrides)).eval()


@pytest.fixture(scope="module")
def model():
    """A model in evaluation mode, shared by tests that do not change it."""
    return build_model()


def random_images(batch_size=2, height=64, width=96, seed=1):
    return torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(seed))


def random_labels(task_num_labels, batch_size=2, height=64, width=96, seed=2):
    """Labels in the task's format with some invalid pixels in each."""
    rng = torch.Generator().manual_seed(seed)
    labels = {}
    for task, num_labels in task_num_labels.items():
        spec = TASKS[task]
        if spec.dtype == torch.int64:
            label = torch.randint(num_labels, (batch_size, height, width), generator=rng)
        else:
            channels = [spec.kind.num_channels] if spec.kind.num_channels else []
            label = torch.rand(batch_size, *channels, height, width, generator=rng)
            label = label.round() if task == "boundary" else label
        label[..., :3, :5] = spec.kind.invalid_value
        labels[task] = label
    return labels


def inter_task_modules(model):
    return [module for module in model.modules() if isinstance(module, SEMInterTaskModule)]


def bases_of(model):
    return [module.initial_bases.clone() for module in inter_task_modules(model)]


def record_outputs(modules):
    """Forward hooks that append each module's output to the list returned."""
    outputs = []
    for module in modules:
        module.register_forward_hook(lambda _, __, output: outputs.append(output))
    return outputs


def assert_same(actual, expected, **tolerance):
    torch.testing.assert_close(actual, expected, **(tolerance or {"rtol": 0, "atol": 0}))


def training_step(model, images, labels):
    """Loss, gradients and the bases after one forward and backward pass in training mode."""
    model.train()
    loss = model(images, labels=labels).loss
    loss.backward()
    return loss.detach(), {name: value.grad for name, value in model.named_parameters()}, bases_of(model)


# ----------------------------------------------------------------------------------------------------------------------
# EM against the golden values and against numpy


def softmax(scores):
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def numpy_em(states, bases, num_iterations, temperature):
    """States (N, C) and bases (K, C) -> responsibilities (N, K) and bases (K, C); plain loops over iterations."""
    for _ in range(num_iterations):
        responsibilities = softmax(states @ bases.T / temperature)
        bases = (responsibilities / responsibilities.sum(axis=0)).T @ states
        bases = bases / np.linalg.norm(bases, axis=1, keepdims=True)
    return softmax(states @ bases.T / temperature), bases


@pytest.mark.parametrize("num_iterations", [1, 3, 5])
def test_em_steps_reproduce_emanet(golden, num_iterations):
    arrays = {name: torch.from_numpy(values) for name, values in golden("em_attention").items()}
    case = f"emanet_l2_R{num_iterations}"
    states = arrays["x_bcn"].transpose(1, 2)
    bases = arrays[f"{case}/mu0"].transpose(1, 2)
    for _ in range(num_iterations):
        responsibilities = expectation_step(states, bases)
        bases = maximization_step(states, responsibilities)
    expected = arrays[f"{case}/z_bnk"]
    num_tokens = expected.shape[1]  # the first ones, where the file is trimmed
    assert_same(responsibilities[:, :num_tokens], expected, rtol=0, atol=1e-5)
    assert_same(bases.transpose(1, 2), arrays[f"{case}/mu_bck"], rtol=0, atol=1e-5)
    reconstructed = (responsibilities @ bases).transpose(1, 2)[..., :num_tokens]
    assert_same(reconstructed, arrays[f"{case}/recon_bcn"], rtol=0, atol=1e-5)
    looped = expectation_maximization(states, arrays[f"{case}/mu0"][0].T, num_iterations)
    assert_same(looped, bases, rtol=0, atol=1e-6)


@pytest.mark.parametrize("start", ["raw", "l2"])
def test_recomputed_responsibilities_reproduce_plain_em(golden, start):
    arrays = golden("em_attention")
    cases = {key.rpartition("/")[0] for key in arrays if key.startswith(f"gmm/{start}/tau")}
    assert len(cases) >= 6
    for case in cases:
        temperature = re.search(r"tau([0-9.]+)_", case).group(1)
        tau = math.sqrt(32) if temperature == "5.6569" else float(temperature)
        expected = arrays[f"{case}/A_next_bnk"]
        states = torch.from_numpy(arrays["x_bcn"]).double().transpose(1, 2)[:, : expected.shape[1]]
        means = torch.from_numpy(arrays[f"{case}/mu_bkc"])
        responsibilities = expectation_step(states, means, tau)
        np.testing.assert_allclose(responsibilities, expected, rtol=0, atol=1e-6, err_msg=case)
        reconstructed = (responsibilities @ means).numpy()
        np.testing.assert_allclose(reconstructed, arrays[f"{case}/recon_next_bnc"], rtol=1e-6, atol=1e-6, err_msg=case)


def build_inter_task_module(num_bases=5, hidden_size=8, **overrides):
    torch.manual_seed(0)
    module = SEMInterTaskModule(tiny_config(num_bases=num_bases, **overrides), hidden_size)
    module.initial_bases.copy_(F.normalize(torch.randn(num_bases, hidden_size), dim=-1))
    return module


@pytest.mark.parametrize("num_iterations", [0, 1, 3])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_interaction_of_one_task_is_em(num_iterations, temperature):
    module = build_inter_task_module(num_em_iterations=num_iterations, em_temperature=temperature)
    states = torch.randn(2, 1, 30, 8)
    reconstructed, _, bases = module.interact(states)
    for image in range(2):
        start = module.initial_bases.double().numpy()
        expected = numpy_em(states[image, 0].double().numpy(), start, num_iterations, temperature)
        np.testing.assert_allclose(bases[image], expected[1], atol=1e-5)
        np.testing.assert_allclose(reconstructed[image, 0], expected[0] @ expected[1], atol=1e-5)


def test_tasks_meet_in_the_mean_of_their_bases():
    module = build_inter_task_module(num_em_iterations=2)
    states = torch.randn(1, 3, 30, 8)
    reconstructed, _, bases = module.interact(states)
    start = module.initial_bases.double().numpy()
    tasks = [numpy_em(states[0, task].double().numpy(), start, 2, 1.0) for task in range(3)]
    mean = np.mean([task_bases for _, task_bases in tasks], axis=0)
    np.testing.assert_allclose(bases[0], mean, atol=1e-5)
    for task, (responsibilities, _) in enumerate(tasks):
        np.testing.assert_allclose(reconstructed[0, task], responsibilities @ mean, atol=1e-5)


def test_tasks_exchange_information_within_an_image_only():
    module = build_inter_task_module()
    states = torch.randn(2, 2, 30, 8)
    changed = states.clone()
    changed[0, 1] += torch.randn(30, 8)
    before, after = module.interact(states)[0], module.interact(changed)[0]
    assert not torch.allclose(before[0, 0], after[0, 0], atol=1e-4)
    assert_same(after[1], before[1])


def test_features_learn_through_the_last_responsibilities_only():
    module = build_inter_task_module(num_em_iterations=3)
    states = torch.randn(1, 2, 12, 8, requires_grad=True)
    module.interact(states)[0].square().sum().backward()
    detached = states.detach().requires_grad_()
    task_bases = expectation_maximization(detached.detach(), module.initial_bases, 3)
    reconstructed = expectation_step(detached, task_bases) @ consensus(task_bases).unsqueeze(1)
    reconstructed.square().sum().backward()
    assert states.grad.abs().max() > 0
    assert_same(states.grad, detached.grad, rtol=1e-5, atol=1e-6)


def test_responsibilities_sum_to_one():
    responsibilities = expectation_step(torch.randn(3, 2, 50, 8) * 30, torch.randn(6, 8), 0.1)
    assert (responsibilities >= 0).all()
    assert_same(responsibilities.sum(dim=-1), torch.ones(3, 2, 50), rtol=0, atol=1e-5)


def test_maximization_returns_unit_rows():
    bases = maximization_step(torch.randn(2, 40, 8), torch.rand(2, 40, 6))
    assert_same(bases.norm(dim=-1), torch.ones(2, 6), rtol=0, atol=1e-5)


def test_em_finds_separable_clusters():
    rng = torch.Generator().manual_seed(0)
    centers = torch.linalg.qr(torch.randn(12, 12, generator=rng))[0][:4]
    members = torch.arange(4).repeat_interleave(50)
    states = 4 * centers[members] + 0.3 * torch.randn(200, 12, generator=rng)
    start = F.normalize(centers + 0.25 * torch.randn(4, 12, generator=rng), dim=-1)
    bases = expectation_maximization(states, start, num_iterations=10, temperature=0.2)
    assert ((bases * centers).sum(dim=-1) > 0.99).all()
    assert ((bases * centers).sum(dim=-1) > (start * centers).sum(dim=-1)).all()
    assert torch.equal(expectation_step(states, bases, 0.2).argmax(dim=-1), members)


# ----------------------------------------------------------------------------------------------------------------------
# Deformable sampling and the mixing of stages


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (7, 7), (6, 8), (14, 20)])
def test_reference_grid_is_the_first_deformable_attention_grid(golden, size):
    expected = golden("deform_sampling")[f"ref_v2022/{size[0]}x{size[1]}"]
    grid = reference_grid(*size, device=torch.device("cpu"))
    np.testing.assert_allclose(grid.view(*size, 2), expected, atol=1e-6)


@pytest.mark.parametrize("case", ["inside", "outside", "corners"])
def test_sampled_values(golden, case):
    arrays = golden("deform_sampling")
    feature_map, points = (torch.from_numpy(arrays[key]) for key in ("gs/feature_bchw", f"gs/{case}/points_yx"))
    sampled = sample_points(feature_map, points)
    np.testing.assert_allclose(sampled, arrays[f"gs/{case}/sampled_bnc"], atol=1e-5)


@pytest.mark.parametrize("case", ["inside", "outside"])
def test_gradients_of_sampling(golden, case):
    arrays = golden("deform_sampling")
    feature_map, points = (
        torch.from_numpy(arrays[key]).requires_grad_() for key in ("gs/feature_bchw", f"gs/{case}/points_yx")
    )
    weights = torch.from_numpy(arrays["gs/loss_channel_weights"])
    (sample_points(feature_map, points) * weights).sum().backward()
    np.testing.assert_allclose(points.grad, arrays[f"gs/{case}/grad_points_yx"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(feature_map.grad, arrays[f"gs/{case}/grad_feature"], rtol=1e-4, atol=1e-5)


def test_sampling_at_pixel_centers_returns_the_pixels():
    feature_map = torch.randn(1, 4, 3, 5)
    rows, columns = torch.linspace(-1, 1, 3), torch.linspace(-1, 1, 5)
    points = torch.cartesian_prod(rows, columns).unsqueeze(0)
    assert_same(sample_points(feature_map, points)[0].T.view(4, 3, 5), feature_map[0], rtol=0, atol=1e-5)


def test_sampling_keeps_coordinates_exact_in_half_precision():
    ramp = torch.linspace(0, 1, 129).expand(1, 1, 129, 129)
    points = torch.tensor([[[0.0, 0.3371]]])
    assert sample_points(ramp.bfloat16(), points).item() == pytest.approx(0.5 + 0.3371 / 2, abs=0.004)


def test_deformed_points_are_moved_and_clamped():
    reference_points = torch.tensor([[-0.5, 0.5], [0.75, -0.75]])
    offsets = torch.tensor([[[0.25, -0.25], [0.5, -0.5]]])
    assert torch.equal(deform_points(reference_points, offsets), torch.tensor([[[-0.25, 0.25], [1.0, -1.0]]]))


def test_stage_weights_sum_to_one_over_the_stages():
    torch.manual_seed(0)
    weighting = SEMStageWeighting(16, num_stages=4)
    weights = weighting(torch.randn(2, 16, 5, 7), torch.rand(2, 30, 2) * 2 - 1)
    assert weights.shape == (2, 30, 4)
    assert weights.std() > 0
    assert_same(weights.sum(dim=-1), torch.ones(2, 30), rtol=0, atol=1e-6)


def test_aggregation_is_a_weighted_sum():
    sampled_states, stage_weights = torch.randn(2, 3, 5, 4), torch.rand(2, 5, 3)
    expected = np.zeros((2, 5, 4))
    for image, stage, point in itertools.product(range(2), range(3), range(5)):
        expected[image, point] += (
            stage_weights[image, point, stage].item() * sampled_states[image, stage, point].numpy()
        )
    np.testing.assert_allclose(aggregate_stages(sampled_states, stage_weights), expected, atol=1e-6)


def test_training_starts_on_the_uniform_grid(model):
    networks = [module for module in model.modules() if isinstance(module, SEMOffsetNetwork)]
    assert len(networks) == 4 * len(NYUD_TASKS)
    for network in networks:
        points = network(torch.randn(1, 16, 8, 16))
        stride = network.pool.stride[0]
        expected = reference_grid(8 // stride, 16 // stride, device=points.device)
        assert torch.equal(points[0], expected)


def test_offsets_move_points_by_at_most_one(model):
    torch.manual_seed(0)
    network = SEMOffsetNetwork(16, stride=2)
    torch.nn.init.normal_(network.offset.weight, std=100.0)
    torch.nn.init.zeros_(network.offset.bias)
    points = network(torch.randn(1, 16, 8, 8))[0]
    assert not torch.equal(points, reference_grid(4, 4, device=points.device))
    assert points.abs().max() <= 1


def test_every_stage_contributes_equally_many_points():
    model = build_model()
    points = record_outputs([module for module in model.modules() if isinstance(module, SEMOffsetNetwork)])
    model(random_images(height=64, width=96))
    assert {tuple(value.shape) for value in points} == {(2, 2 * 3, 2)}


def test_stages_are_mixed_at_all_points_of_all_stages():
    model = build_model()
    attention = next(module for module in model.modules() if isinstance(module, SEMHierarchyAdaptiveAttention))
    weights = record_outputs([attention.stage_weighting])
    model(random_images())
    assert weights[0].shape == (2, 4 * 6, 4)


# ----------------------------------------------------------------------------------------------------------------------
# The bases as state


def test_bases_start_as_different_unit_rows(model):
    for bases in bases_of(model):
        assert bases.shape[0] == 4
        assert bases.dtype == torch.float32
        assert_same(bases.norm(dim=-1), torch.ones(4), rtol=0, atol=1e-6)
        assert torch.unique(bases, dim=0).shape == bases.shape


@pytest.mark.parametrize(
    "cast",
    [
        lambda model: model.to(torch.bfloat16),
        lambda model: model.half(),
        lambda model: model.to("cpu", torch.float16),
        lambda model: model.bfloat16().float(),
        lambda model: model.double(),
    ],
    ids=["to bfloat16", "half", "to float16", "there and back", "double"],
)
def test_casting_the_model_keeps_the_bases_exact(cast):
    model = build_model()
    expected = bases_of(model)
    for actual, bases in zip(bases_of(cast(model)), expected, strict=True):
        assert actual.dtype == torch.float32
        assert torch.equal(actual, bases)


def test_loading_in_half_precision_keeps_the_bases_exact(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = SEMForMultiTaskDensePrediction.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert next(loaded.parameters()).dtype == torch.bfloat16
    for actual, expected in zip(bases_of(loaded), bases_of(model), strict=True):
        assert actual.dtype == torch.float32
        assert torch.equal(actual, expected)


def test_casting_and_copying_do_not_tie_two_models():
    model = build_model()
    bases = bases_of(model)
    copy = build_model(seed=1)
    copy.load_state_dict(model.state_dict())
    copy.train()(random_images())
    assert_same(bases_of(model), bases)


@pytest.mark.parametrize("gradient", [True, False])
def test_bases_move_in_training(gradient):
    model = build_model().train()
    before = bases_of(model)
    with torch.set_grad_enabled(gradient):
        model(random_images())
    for actual, bases in zip(bases_of(model), before, strict=True):
        assert not torch.allclose(actual, bases, atol=1e-4)
        assert_same(actual.norm(dim=-1), torch.ones(4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("gradient", [True, False])
def test_bases_stay_in_evaluation(gradient):
    model = build_model()
    before = bases_of(model)
    with torch.set_grad_enabled(gradient):
        model(random_images(), labels=random_labels(NYUD_TASKS))
    assert_same(bases_of(model), before)


def test_bases_are_no_parameters_and_carry_no_gradient():
    model = build_model().train()
    model(random_images(), labels=random_labels(NYUD_TASKS)).loss.backward()
    assert not [name for name, _ in model.named_parameters() if "bases" in name]
    assert not any(module.initial_bases.requires_grad for module in inter_task_modules(model))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_bases_follow_the_moving_average(momentum):
    model = build_model(bases_momentum=momentum).train()
    before, outputs = bases_of(model), record_outputs(inter_task_modules(model))
    model(random_images(batch_size=3))
    for actual, bases, (_, consensus_bases) in zip(bases_of(model), before, outputs, strict=True):
        average = momentum * bases.double().numpy() + (1 - momentum) * consensus_bases.double().numpy().mean(axis=0)
        average /= np.linalg.norm(average, axis=1, keepdims=True)
        np.testing.assert_allclose(actual, average, atol=1e-5)


def test_momentum_one_keeps_the_bases():
    model = build_model(bases_momentum=1.0).train()
    before = bases_of(model)
    model(random_images())
    assert_same(bases_of(model), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_parts", [2, 8])
def test_accumulation_keeps_the_memory_per_step(num_parts):
    """The bases of accumulated batches differ from those of one batch by less than 15 % of the step."""
    images, labels = random_images(8), random_labels(NYUD_TASKS, 8)
    whole, parts = build_model().train(), build_model().train()
    start = bases_of(whole)
    whole(images, labels=labels)
    parts.sem.bases_momentum = whole.sem.bases_momentum ** (1 / num_parts)
    for part in range(num_parts):
        share = slice(part * 8 // num_parts, (part + 1) * 8 // num_parts)
        parts(images[share], labels={task: label[share] for task, label in labels.items()})
    for one, many, before in zip(bases_of(whole), bases_of(parts), start, strict=True):
        assert (one - many).norm() < 0.15 * (one - before).norm()


def test_momentum_can_be_set_for_gradient_accumulation():
    model = build_model().train()
    before = bases_of(model)
    assert model.sem.bases_momentum == 0.9
    model.sem.bases_momentum = 1.0
    model(random_images())
    assert_same(bases_of(model), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_an_image_that_is_not_finite_leaves_the_bases_finite(value):
    model = build_model().train()
    images = random_images()
    images[0, 0, 3, 5] = value
    model(images)
    assert all(bases.isfinite().all() for bases in bases_of(model))


def test_moving_average_rejects_what_is_not_finite():
    bases = F.normalize(torch.randn(4, 8), dim=-1)
    broken = torch.randn(4, 8)
    broken[1, 2] = torch.nan
    assert torch.equal(moving_average(bases, broken, 0.9), bases)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(use_reentrant):
    images, labels = random_images(), random_labels(NYUD_TASKS)
    expected = training_step(build_model(), images, labels)
    model = build_model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    loss, gradients, bases = training_step(model, images, labels)
    assert_same(loss, expected[0])
    assert_same(bases, expected[2])
    assert_same(gradients, expected[1], rtol=1e-4, atol=1e-5)  # summed in another order


def test_gradient_checkpointing_saves_activations():
    """Checkpointed layers run once more in the backward pass, the encoder's and ours."""
    model = build_model().train()
    model.gradient_checkpointing_enable()
    layers = [module for module in model.modules() if isinstance(module, SEMIntraTaskModule)]
    layers += [model.sem.decoder.stages[0].blocks["depth"], model.sem.backbone.encoder.model.stages[0].blocks[0]]
    outputs = record_outputs([next(layer.children()) for layer in layers])
    loss = model(random_images(), labels=random_labels(NYUD_TASKS)).loss
    num_calls = len(outputs)
    loss.backward()
    assert len(outputs) == 2 * num_calls


# ----------------------------------------------------------------------------------------------------------------------
# Loss and gradients


def test_loss_is_the_weighted_sum_with_intermediate_supervision():
    model = build_model(auxiliary_loss_weight=0.25, task_loss_weights={"depth": 3.0})
    labels = random_labels(NYUD_TASKS)
    outputs = model(random_images(), labels=labels)
    weights, expected = {"semseg": 1, "depth": 3, "normal": 10, "boundary": 50}, 0.0
    for task, label in labels.items():
        final, auxiliary = (
            TASKS[task].loss(F.interpolate(logits[task], size=(64, 96), mode="bilinear"), label).item()
            for logits in (outputs.logits, outputs.auxiliary_logits)
        )
        assert outputs.losses[task].item() == pytest.approx(final, rel=1e-6)
        expected += weights[task] * (final + 0.25 * auxiliary)
    assert outputs.loss.item() == pytest.approx(expected, rel=1e-5)


def test_no_module_has_the_name_of_a_default_target_of_peft(model):
    """peft would put adapters on it unasked."""
    parts = {part for name, _ in model.named_modules() for part in name.split(".")}
    assert "q_proj" in parts and not parts & {"query", "value"}


def test_learned_weights_start_at_the_fixed_ones_and_fall_where_a_loss_is_large(model, tmp_path):
    images, labels = random_images(), random_labels(NYUD_TASKS)
    assert not any("variance" in name for name in model.state_dict())
    model.save_pretrained(tmp_path)
    learned = SEMForMultiTaskDensePrediction.from_pretrained(tmp_path, task_loss_weighting="uncertainty").eval()
    assert set(learned.state_dict()) - set(model.state_dict()) == {f"task_log_variances.{task}" for task in NYUD_TASKS}
    outputs = learned(images, labels=labels)
    assert outputs.loss.item() == pytest.approx(model(images, labels=labels).loss.item(), rel=1e-6)
    outputs.loss.backward()
    for task, weight in learned.config.task_loss_weights.items():
        auxiliary = learned.task_loss(task, outputs.auxiliary_logits[task], labels[task])
        cost = weight * (outputs.losses[task] + auxiliary)
        # d/ds of exp(-s) cost + s / 2 at s = 0
        assert learned.task_log_variances[task].grad.item() == pytest.approx(0.5 - cost.item(), rel=1e-5)


def test_learned_weights_give_the_loss_of_kendall_and_are_saved(tmp_path):
    model = build_model(task_loss_weighting="uncertainty", use_auxiliary_heads=False)
    with torch.no_grad():
        for value, parameter in enumerate(model.task_log_variances.values(), 1):
            parameter.fill_(value)
    model.save_pretrained(tmp_path)
    again = SEMForMultiTaskDensePrediction.from_pretrained(tmp_path).eval()
    outputs = again(random_images(), labels=random_labels(NYUD_TASKS))
    assert list(again.task_log_variances) == list(NYUD_TASKS)
    terms = [
        math.exp(-value) * again.config.task_loss_weights[task] * outputs.losses[task].item() + value / 2
        for value, task in enumerate(NYUD_TASKS, 1)
    ]
    assert outputs.loss.item() == pytest.approx(sum(terms), rel=1e-5)


def test_a_task_without_labels_in_a_batch_learns_no_weight():
    model = build_model(task_loss_weighting="uncertainty")
    labels = random_labels(NYUD_TASKS)
    labels["depth"] = torch.full_like(labels["depth"], torch.nan)
    model(random_images(), labels=labels).loss.backward()
    gradients = {task: parameter.grad.item() for task, parameter in model.task_log_variances.items()}
    assert gradients["depth"] == 0 and all(gradients[task] != 0 for task in gradients if task != "depth")


def test_a_task_of_weight_zero_learns_no_weight():
    model = build_model(task_loss_weighting="uncertainty", task_loss_weights={"depth": 0.0})
    outputs = model(random_images(), labels=random_labels(NYUD_TASKS))
    outputs.loss.backward()
    gradients = {task: parameter.grad.item() for task, parameter in model.task_log_variances.items()}
    assert gradients["depth"] == 0 and all(gradients[task] != 0 for task in gradients if task != "depth")


def test_reduced_keys_cover_the_map():
    model = build_model(sr_ratios=[2, 4, 8, 16]).eval()
    assert model.sem.size_divisor == 64
    with torch.no_grad():
        for side in (32, 96):
            assert model(random_images(1, side, side)).logits["depth"].shape[-2:] == (side // 4, side // 4)


def test_any_subset_of_labels_adds_up(model):
    images, labels = random_images(), random_labels(NYUD_TASKS)
    singles = {task: model(images, labels={task: labels[task]}).loss.item() for task in labels}
    for length in (2, 3, 4):
        for tasks in itertools.combinations(labels, length):
            outputs = model(images, labels={task: labels[task] for task in tasks})
            assert list(outputs.losses) == list(tasks)
            assert outputs.loss.item() == pytest.approx(sum(singles[task] for task in tasks), rel=1e-5)


def test_loss_does_not_depend_on_the_order_of_the_labels(model):
    images, labels = random_images(), random_labels(NYUD_TASKS)
    reordered = dict(reversed(labels.items()))
    assert torch.equal(model(images, labels=labels).loss, model(images, labels=reordered).loss)


def test_loss_does_not_depend_on_the_order_of_the_tasks(model):
    images, labels = random_images(), random_labels(NYUD_TASKS)
    reordered = build_model(seed=1, task_num_labels=dict(reversed(NYUD_TASKS.items())))
    reordered.load_state_dict(model.state_dict())
    assert list(reordered(images).logits) == ["boundary", "normal", "depth", "semseg"]
    assert_same(reordered(images, labels=labels).loss, model(images, labels=labels).loss, rtol=1e-5, atol=1e-6)
    for trained in (twins := [build_model(), reordered.train()]):
        trained.train()(images)
    assert_same(bases_of(twins[0]), bases_of(twins[1]), rtol=0, atol=1e-5)


def test_a_depth_of_0_is_unknown(model):
    images, depth = random_images(), random_labels({"depth": 1})["depth"]
    zeros, expected = (model(images, labels={"depth": depth.nan_to_num(nan)}).loss for nan in (0.0, torch.nan))
    assert depth.isnan().any() and torch.equal(zeros, expected)


@pytest.mark.parametrize("task", ALL_TASKS)
def test_a_batch_without_valid_labels_costs_nothing(task):
    model = build_model(task_num_labels={task: ALL_TASKS[task]})
    labels = random_labels({task: ALL_TASKS[task]})
    labels[task][:] = TASKS[task].kind.invalid_value
    loss, gradients, _ = training_step(model, random_images(), labels)
    assert loss == 0
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize(
    "overrides",
    [
        *ROWS.values(),
        *slow(switch for switch in SWITCHES if switch not in NO_OTHER_MODEL),
        {"task_num_labels": {"semseg": 5}},
        {"task_num_labels": ALL_TASKS},
        {"backbone_config": PLAIN_VIT},
        {"backbone_config": PLAIN_VIT, "use_decoder": False},
        {"use_auxiliary_heads": False},
    ],
    ids=str,
)
def test_gradient_reaches_every_parameter(overrides):
    model = build_model(**overrides)
    labels = random_labels(model.config.task_num_labels)
    _, gradients, _ = training_step(model, random_images(), labels)
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert [name for name, gradient in gradients.items() if not gradient.isfinite().all()] == []


def test_offsets_learn_from_the_first_step():
    _, gradients, _ = training_step(build_model(), random_images(), random_labels(NYUD_TASKS))
    offsets = [gradient for name, gradient in gradients.items() if name.endswith("offset.weight")]
    assert len(offsets) == 16
    assert all(gradient.abs().max() > 0 for gradient in offsets)


def test_auxiliary_logits_are_for_training_only(model):
    images = random_images()
    assert model(images).auxiliary_logits is None
    auxiliary_logits = model(images, labels=random_labels({"depth": 1})).auxiliary_logits
    assert {task: value.shape[1] for task, value in auxiliary_logits.items()} == NYUD_TASKS
    assert build_model(use_auxiliary_heads=False).train()(images).auxiliary_logits is None


@pytest.mark.slow
def test_it_overfits_one_batch():
    model = build_model(task_num_labels=ALL_TASKS, num_bases=8).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    images, labels = random_images(height=32, width=32), smooth_labels(32)
    losses = []
    for _ in range(40):
        outputs = model(images, labels=labels)
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append({task: value.item() for task, value in outputs.losses.items()} | {"loss": outputs.loss.item()})
    assert {name for name in losses[0] if losses[-1][name] > losses[0][name] / 2} == set()


def smooth_labels(size):
    """Two images whose left halves differ from their right halves, the other way round in each."""
    right = (torch.arange(size) >= size // 2).expand(2, size, size).clone()
    right[1] = ~right[1]
    ids, normal = right.long(), torch.stack([right, ~right, torch.zeros_like(right)], dim=1).float()
    depth = 1.0 + 3.0 * right.float().unsqueeze(1)
    return {
        "semseg": ids,
        "depth": depth,
        "normal": normal,
        "boundary": right.float(),
        "parsing": ids + 1,
        "saliency": ids,
    }


# ----------------------------------------------------------------------------------------------------------------------
# Inputs and outputs


@pytest.mark.parametrize("size", [(97, 131), (64, 64), (160, 96), (33, 4), (5, 7)])
@pytest.mark.parametrize("backbone_config", [None, PLAIN_VIT], ids=["pyramid", "plain"])
def test_any_size(model, size, backbone_config):
    if backbone_config is not None:
        model = build_model(backbone_config=backbone_config)
        size = tuple(max(length, 16) for length in size)
    outputs = model(random_images(1, *size), labels=random_labels(NYUD_TASKS, 1, *size))
    expected = {task: (1, width, -(-size[0] // 4), -(-size[1] // 4)) for task, width in NYUD_TASKS.items()}
    assert {task: tuple(logits.shape) for task, logits in outputs.logits.items()} == expected
    assert outputs.loss.isfinite()


@pytest.mark.parametrize("tasks", [[task] for task in ALL_TASKS] + [["normal", "saliency"], list(ALL_TASKS)], ids=str)
def test_any_subset_of_tasks(tasks):
    widths = {task: ALL_TASKS[task] for task in tasks}
    model = build_model(task_num_labels=widths)
    outputs = model(random_images(1, 32, 32), labels=random_labels(widths, 1, 32, 32))
    assert {task: logits.shape[1] for task, logits in outputs.logits.items()} == widths
    assert list(outputs.losses) == tasks
    assert outputs.loss.isfinite()


def test_a_batch_is_its_images(model):
    images = random_images(2, 64, 96)
    together, singles = model(images).logits, [model(image.unsqueeze(0)).logits for image in images]
    for task, logits in together.items():
        assert_same(logits, torch.cat([single[task] for single in singles]), rtol=0, atol=1e-5)


def test_evaluation_repeats_itself(model):
    assert_same(model(random_images()).logits, model(random_images()).logits)


def test_tuple_and_dict_agree(model):
    images, labels = random_images(), random_labels(NYUD_TASKS)
    outputs = model(images, labels=labels, output_hidden_states=True)
    values = model(images, labels=labels, output_hidden_states=True, return_dict=False)
    assert isinstance(values, tuple)
    assert len(values) == len([field for field in outputs if outputs[field] is not None])
    assert_same(values, outputs.to_tuple())


def test_base_model_tuple_and_dict_agree(model):
    assert_same(model.sem(random_images(), return_dict=False), model.sem(random_images()).to_tuple())


def test_base_model_shapes(model):
    outputs = model.sem(random_images(2, 64, 96), output_hidden_states=True)
    assert outputs.last_hidden_state.shape == (2, 24, 2, 3)
    assert {tuple(states.shape) for states in outputs.task_hidden_states.values()} == {(2, 8, 16, 24)}
    assert {tuple(states.shape) for states in outputs.intra_task_hidden_states.values()} == {(2, 16, 2, 3)}
    assert [tuple(states.shape[-2:]) for states in outputs.hidden_states] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_padding_is_cropped(model):
    """An image padded with zeros has the same logits, except at the border of the head's 3x3 convolution."""
    image = random_images(1, 40, 52)
    padded = Padding((40, 52), 64).pad(image)
    for task, logits in model(image).logits.items():
        inside = (..., slice(0, 9), slice(0, 12))
        assert_same(logits[inside], model(padded).logits[task][inside], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("stride", "width"), [(4, 131), (4, 128), (16, 97), (32, 131), (3.5, 100)])
def test_crop_covers_exactly_the_image(stride, width):
    """A cropped ramp of pixel positions, resized to the image, is the ramp of the image."""
    num_cells = 2 * math.ceil(width / stride / 2) + 2  # even, so that a stride of 3.5 gives whole pixels
    ramp = ((torch.arange(num_cells) + 0.5) * stride).expand(1, 1, num_cells, num_cells)
    padding = Padding((width, width), round(num_cells * stride))
    assert padding.padded_size == (num_cells * stride, num_cells * stride)
    cropped = padding.crop({"depth": ramp}, Fraction(stride))["depth"]
    assert cropped.shape[-1] == math.ceil(width / stride)
    restored = F.interpolate(cropped, size=(width, width), mode="bilinear")[0, 0, 0]
    inside = slice(math.ceil(stride), -math.ceil(stride))
    assert_same(restored[inside], (torch.arange(width) + 0.5)[inside], rtol=0, atol=0.03 * stride)


@pytest.mark.parametrize("size", [(40, 52), (3, 131), (5, 3)])
def test_a_crop_equals_one_with_border_padding_which_mps_lacks(size):
    padding, stride = Padding(size, 32), Fraction(4)
    feature_map = torch.rand(1, 2, *(edge // 4 for edge in padding.padded_size)) + 5
    centers = [
        (torch.arange(math.ceil(edge / 4)) + 0.5) * (2 * edge / (math.ceil(edge / 4) * full)) - 1
        for edge, full in zip(size, padding.padded_size, strict=True)
    ]
    grid = torch.stack(torch.meshgrid(*centers, indexing="ij"), dim=-1).flip(-1)[None]
    expected = F.grid_sample(feature_map, grid, padding_mode="border", align_corners=False)
    with FakeMPS():
        cropped = padding.crop({"depth": to_mps(feature_map)}, stride)["depth"].cpu()
    assert_same(cropped, expected[..., : cropped.shape[-2], : cropped.shape[-1]], rtol=0, atol=1e-5)


def test_points_are_brought_back_to_the_image():
    """-1 stays at the top left edge, and the point at the bottom right edge of the image comes to 1."""
    padding = Padding((40, 50), 32)
    assert padding.padded_size == (64, 64)
    points = torch.tensor([[-1.0, -1.0], [40 / 32 - 1, 50 / 32 - 1], [1.0, 1.0]])
    expected = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [2 * 64 / 40 - 1, 2 * 64 / 50 - 1]])
    assert_same(padding.to_image(points), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("divisor", [1, 8, 32, 56])
def test_an_image_of_whole_cells_is_not_padded(divisor):
    images = random_images(1, 2 * divisor, 3 * divisor)
    padding = Padding(tuple(images.shape[-2:]), divisor)
    assert torch.equal(padding.pad(images), images)
    assert torch.equal(padding.crop({"depth": images}, Fraction(1))["depth"], images)
    assert Padding((2 * divisor + 1, 3 * divisor), divisor).padded_size == (3 * divisor, 3 * divisor)


# Layers of the state dict, with TASK for a task and N for a number in a list
STATE_DICT_LAYERS = {
    "sem.reassembly.layers.N.projection",
    "sem.reassembly.layers.N.resize",
    "sem.intra_task.stage_projections.N",
    "sem.intra_task.task_modules.TASK.query_conv",
    "sem.intra_task.task_modules.TASK.attention.offset_networks.N.pool",
    "sem.intra_task.task_modules.TASK.attention.offset_networks.N.offset",
    "sem.intra_task.task_modules.TASK.attention.stage_weighting.fc1",
    "sem.intra_task.task_modules.TASK.attention.stage_weighting.fc2",
    "sem.intra_task.task_modules.TASK.attention.attention.q_proj",
    "sem.intra_task.task_modules.TASK.attention.attention.k_proj",
    "sem.intra_task.task_modules.TASK.attention.attention.v_proj",
    "sem.intra_task.task_modules.TASK.attention.attention.o_proj",
    "sem.intra_task.task_modules.TASK.attention.norm",
    "sem.intra_task.task_modules.TASK.norm",
    "sem.intra_task.task_modules.TASK.mlp.fc1",
    "sem.intra_task.task_modules.TASK.mlp.fc2",
    "sem.intra_task.task_modules.TASK.conv",  # the convolution block of a model without intra-task modules, and its norm
    "sem.decoder.stages.N.lateral",
    "sem.decoder.stages.N.blocks.TASK.projection",
    "sem.decoder.stages.N.blocks.TASK.attention_norm",
    "sem.decoder.stages.N.blocks.TASK.attention.attention.q_proj",
    "sem.decoder.stages.N.blocks.TASK.attention.attention.k_proj",
    "sem.decoder.stages.N.blocks.TASK.attention.attention.v_proj",
    "sem.decoder.stages.N.blocks.TASK.attention.attention.o_proj",
    "sem.decoder.stages.N.blocks.TASK.attention.reduction",
    "sem.decoder.stages.N.blocks.TASK.attention.norm",
    "sem.decoder.stages.N.blocks.TASK.mlp_norm",
    "sem.decoder.stages.N.blocks.TASK.mlp.fc1",
    "sem.decoder.stages.N.blocks.TASK.mlp.fc2",
    "sem.decoder.stages.N.inter_task.norm",
    "sem.decoder.stages.N.inter_task.project_in",
    "sem.decoder.stages.N.inter_task.project_out",
    "sem.decoder.stages.N.inter_task.initial_bases",
    "heads.TASK.conv",
    "heads.TASK.norm",
    "heads.TASK.classifier",
    "auxiliary_heads.TASK",
}


def test_names_of_the_state_dict():
    """Tasks and numbers of modules in lists apart, names are words of transformers' models."""
    names, ours = set(), []
    for overrides in (*ROWS.values(), {"backbone_config": PLAIN_VIT, "task_num_labels": ALL_TASKS}):
        model = build_model(**overrides)
        task = "|".join(model.config.tasks)
        for name in model.state_dict():
            if not name.startswith("sem.backbone."):  # the encoder's names are timm's
                name = re.sub(rf"(?<=\.)({task})(?=\.)", "TASK", name)
                names.add(re.sub(r"\b(stages|layers|offset_networks|stage_projections)\.\d+", r"\1.N", name))
        ours += [module for module in model.modules() if type(module).__module__.endswith("modeling_sem")]
    layers = {name.removesuffix(".weight").removesuffix(".bias") for name in names}
    assert layers == STATE_DICT_LAYERS
    assert [name for name in names if any(part.isdecimal() for part in name.split("."))] == []
    containers = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict)
    assert ours and not any(isinstance(module, containers) for module in ours)
    assert not any(isinstance(child, torch.nn.Sequential) for module in ours for child in module.children())


def test_eager_and_sdpa_agree():
    model = build_model()
    expected = model(random_images()).logits
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    assert_same(model(random_images()).logits, expected, rtol=0, atol=1e-5)


# Share of the range of each task's logits: bfloat16 has two to three digits, float16 three to four
HALF_PRECISION = {torch.bfloat16: 0.03, torch.float16: 0.005}


@pytest.mark.parametrize("dtype", HALF_PRECISION, ids=str)
def test_autocast_is_close_to_float32(model, dtype):
    expected = model(random_images()).logits
    with torch.autocast("cpu", dtype=dtype):
        outputs = model(random_images(), labels=random_labels(NYUD_TASKS))
    assert outputs.loss.dtype == torch.float32
    for task, logits in outputs.logits.items():
        error = (logits.float() - expected[task]).abs().max()
        assert 0 < error < HALF_PRECISION[dtype] * (expected[task].max() - expected[task].min())


@pytest.mark.parametrize("dtype", HALF_PRECISION, ids=str)
def test_em_runs_in_float32_under_autocast(dtype):
    exact, model = build_model().train(), build_model().train()
    outputs = record_outputs(inter_task_modules(model))
    exact(random_images())
    with torch.autocast("cpu", dtype=dtype):
        model(random_images())
    assert {consensus_bases.dtype for _, consensus_bases in outputs} == {torch.float32}
    assert_same(bases_of(model), bases_of(exact), rtol=0, atol=0.01)  # of unit rows


def test_a_model_in_half_precision_runs(model):
    logits = build_model().to(torch.bfloat16)(random_images().bfloat16()).logits
    assert {value.dtype for value in logits.values()} == {torch.bfloat16}
    for task, value in model(random_images()).logits.items():
        assert (logits[task].float() - value).abs().max() < 0.05 * (value.max() - value.min())


IMAGES, LABELS = torch.zeros(2, 3, 64, 96), torch.zeros(2, 64, 96)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (IMAGES[0], None, ["pixel_values", "batch_size, num_channels, height, width", "(3, 64, 96)"]),
        (IMAGES[0].numpy(), None, ["pixel_values", "is a tensor", "got ndarray"]),
        (IMAGES[:, :2], None, ["3 channels", "got 2"]),
        (IMAGES[..., :3], None, ["4 x 4", "64 x 3"]),
        (IMAGES, {}, ["at least one", "semseg", "boundary"]),
        (IMAGES, LABELS, ["at least one", "semseg"]),
        (IMAGES, {"semseg": [0]}, ["semseg", "tensor", "list"]),
        (IMAGES, {"semseg": LABELS[:, :10].long()}, ["semseg", "(2, 64, 96)", "(2, 10, 96)"]),
        (IMAGES.byte(), None, ["floats", "uint8"]),
        (IMAGES, {"saliency": LABELS.long()}, ["'saliency'", "semseg", "boundary"]),
        (IMAGES, {"semsg": LABELS.long()}, ["'semsg'", "semseg"]),
        (IMAGES, {"depth": LABELS}, ["depth", "(2, 1, 64, 96)", "(2, 64, 96)"]),
        (IMAGES, {"normal": LABELS[:, None]}, ["normal", "(2, 3, 64, 96)", "(2, 1, 64, 96)"]),
        (IMAGES, {"semseg": LABELS[:, None].long()}, ["semseg", "(2, 64, 96)", "(2, 1, 64, 96)"]),
        (IMAGES, {"boundary": LABELS[:1]}, ["boundary", "(2, 64, 96)", "(1, 64, 96)"]),
        (IMAGES, {"semseg": LABELS}, ["semseg", "int64", "float32"]),
        (IMAGES, {"depth": LABELS[:, None].long()}, ["depth", "float32", "int64"]),
        (IMAGES, {"depth": LABELS[:, None] + 2500}, ["at most 1000", "looks like millimetres"]),
    ],
    ids=lambda value: None if isinstance(value, torch.Tensor) else str(value)[:40],
)
def test_wrong_inputs_are_named(model, images, labels, words):
    with pytest.raises(ValueError) as error:
        model(images, labels=labels)
    assert [word for word in words if word not in str(error.value)] == []


def test_an_image_below_one_patch_is_refused():
    model = build_model(backbone_config=PLAIN_VIT)
    with pytest.raises(ValueError, match=r"16 x 16.*15 x 32"):
        model(torch.zeros(1, 3, 15, 32))
    assert model(torch.zeros(1, 3, 16, 16)).logits["depth"].shape == (1, 1, 4, 4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int16])
def test_ids_of_another_integer_type_are_refused(model, dtype):
    with pytest.raises(ValueError, match=rf"semseg.*int64.*{dtype}"):
        model(IMAGES, labels={"semseg": LABELS.to(dtype)})


# ----------------------------------------------------------------------------------------------------------------------
# Saving and loading


def trained_model(**overrides):
    """A model whose weights and bases differ from their initial values, in evaluation mode."""
    model = build_model(**overrides)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    training_step(model, random_images(), random_labels(model.config.task_num_labels))
    optimizer.step()
    return model.eval()


@pytest.mark.parametrize(
    "overrides",
    [
        ROWS["multi task"],
        ROWS["sem"],
        {"backbone_config": PLAIN_VIT},
        *slow(ROWS[name] for name in ("single task", "baseline", "with intra", "with inter")),
    ],
    ids=str,
)
def test_reloading_is_exact(overrides, tmp_path):
    model = trained_model(**overrides)
    model.save_pretrained(tmp_path)
    loaded = SEMForMultiTaskDensePrediction.from_pretrained(tmp_path)
    assert not loaded.training
    assert_same(loaded.state_dict(), model.state_dict())
    assert_same(loaded(random_images()).logits, model(random_images()).logits, **UNALIGNED)


def test_auto_classes_load_a_checkpoint(tmp_path):
    model = trained_model(task_num_labels=dict(reversed(NYUD_TASKS.items())))
    model.save_pretrained(tmp_path)
    images = random_images()
    whole = AutoModelForUniversalSegmentation.from_pretrained(tmp_path)
    assert type(whole) is SEMForMultiTaskDensePrediction
    assert_same(whole(images).logits, model(images).logits, **UNALIGNED)
    base = AutoModel.from_pretrained(tmp_path)
    assert isinstance(base, SEMModel)
    assert_same(bases_of(base), bases_of(model))
    assert_same(base(images).task_hidden_states, model.sem(images).task_hidden_states, **UNALIGNED)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, SEMConfig)
    assert config.tasks == ["boundary", "normal", "depth", "semseg"]


def test_weights_are_drawn_where_there_are_values_only():
    values, empty = torch.zeros(4, 4), torch.empty(4, 4, device="meta")
    with SkipInitOnMeta():
        torch.nn.init.kaiming_uniform_(values)
        layer = torch.nn.Linear(3, 4, device="meta")
        assert timm.layers.trunc_normal_(empty, std=0.02) is empty
    assert values.std() > 0 and layer.weight.is_meta


def test_a_base_checkpoint_loads_into_the_head_model(tmp_path):
    model = trained_model()
    model.sem.save_pretrained(tmp_path)
    loaded, report = SEMForMultiTaskDensePrediction.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"heads", "auxiliary_heads"}
    assert_same(loaded.sem.state_dict(), model.sem.state_dict())
    assert all(value.isfinite().all() for value in loaded.state_dict().values())


def test_weights_that_a_checkpoint_lacks_are_drawn_like_new_ones(tmp_path):
    model = build_model()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    endings = ("offset.weight", "initial_bases", "project_in.weight", "stem.0.weight", "q_proj.weight", "norm.weight")
    kept = {name: value for name, value in tensors.items() if not name.endswith(endings)}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, fresh = SEMForMultiTaskDensePrediction.from_pretrained(tmp_path).state_dict(), model.state_dict()
    for name in set(tensors) - set(kept):
        assert loaded[name].isfinite().all(), name
        assert loaded[name].std().item() == pytest.approx(fresh[name].std().item(), rel=0.5), name
    assert_same({name: loaded[name] for name in kept}, {name: fresh[name] for name in kept})


def test_inter_task_modules_start_with_the_variance_of_a_linear_layer():
    """At any width their residual has the variance of a linear layer applied to values of unit variance."""
    model = build_model(decoder_hidden_sizes=[256, 128, 64, 16], num_bases=16)
    for stage, width in zip(model.sem.decoder.stages, [256, 128, 64, 16], strict=True):
        maps = {"semseg": torch.randn(2, width, 6, 8), "depth": torch.randn(2, width, 6, 8)}
        rebuilt, _ = stage.inter_task(maps)
        added = torch.stack([rebuilt[task] - maps[task] for task in maps]).square().mean().sqrt().item()
        assert 0.3 < added / (model.config.initializer_range * width**0.5) < 1.1


def test_other_tasks_keep_what_fits(tmp_path):
    """Fine-tuning on other tasks loads the shared weights and initializes new heads and bases."""
    trained_model().save_pretrained(tmp_path)
    config = tiny_config(task_num_labels={"depth": 1, "saliency": 2}, num_bases=6)
    loaded = SEMForMultiTaskDensePrediction.from_pretrained(tmp_path, config=config, ignore_mismatched_sizes=True)
    for bases in bases_of(loaded):
        assert bases.shape[0] == 6
        assert_same(bases.norm(dim=-1), torch.ones(6), rtol=0, atol=1e-5)
    assert all(logits.isfinite().all() for logits in loaded(random_images()).logits.values())


# ----------------------------------------------------------------------------------------------------------------------
# The paper's tables and figures as configurations


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_the_ablation_have_their_modules(row):
    model = build_model(**ROWS[row])
    has_decoder, has_intra = row not in ("single task", "multi task"), row in ("with intra", "sem")
    num_tasks, num_inter = len(model.config.tasks), 4 if row in ("with inter", "sem") else 0
    assert (model.sem.decoder is not None) == has_decoder
    assert (model.auxiliary_heads is not None) == has_decoder
    assert (
        len([module for module in model.modules() if isinstance(module, SEMIntraTaskModule)]) == num_tasks * has_intra
    )
    assert len(inter_task_modules(model)) == num_inter
    stride = 4 if has_decoder else 32
    logits = model(random_images(height=64, width=96)).logits
    assert {tuple(value.shape[-2:]) for value in logits.values()} == {(64 // stride, 96 // stride)}


def test_without_a_decoder_the_head_reads_the_deepest_map_of_a_plain_encoder():
    model = build_model(use_decoder=False, backbone_config=PLAIN_VIT)
    outputs = model.sem(random_images(height=64, width=96))
    assert model(random_images(height=64, width=96)).logits["depth"].shape == (2, 1, 4, 6)
    assert not any(isinstance(module, SEMFeatureReassembly) for module in model.modules())
    for states in outputs.task_hidden_states.values():
        assert torch.equal(states, outputs.last_hidden_state)


@pytest.mark.parametrize("overrides", SWITCHES, ids=str)
def test_switches_of_the_figure(overrides):
    model = build_model(**overrides)
    attention = next(module for module in model.modules() if isinstance(module, SEMHierarchyAdaptiveAttention))
    assert len(attention.offset_networks) == overrides.get("num_intra_task_stages", 4)
    depths = [stage for stage, module in enumerate(model.sem.decoder.stages) if module.inter_task is not None]
    assert depths == list(range(overrides.get("inter_task_stages", 4)))
    assert all(logits.isfinite().all() for logits in model(random_images()).logits.values())


def test_more_iterations_change_the_prediction():
    predictions = []
    for number in (0, 1, 3):
        model = build_model(num_em_iterations=number)
        predictions.append(model(random_images()).logits["normal"])
    assert not torch.allclose(predictions[0], predictions[1])
    assert not torch.allclose(predictions[1], predictions[2])


# ----------------------------------------------------------------------------------------------------------------------
# Encoders


def feature_map_sizes(model, height, width):
    """Sizes of the maps that reach the decoder, from shallow to deep."""
    stages = record_outputs([stage.lateral for stage in model.sem.decoder.stages])
    model(random_images(1, height, width))
    return [tuple(feature_map.shape[-2:]) for feature_map in reversed(stages)]


@pytest.mark.parametrize(
    "encoder",
    [
        PLAIN_VIT,
        {"model_name": "vit_tiny_patch16_224", "out_indices": [1, 2, 3, 4], "model_kwargs": {"depth": 4}},
        {"model_name": "vit_tiny_patch16_224", "out_indices": [3, 6, 9, 12]},
    ],
    ids=["test_vit", "vit_tiny of depth 4", "vit_tiny"],
)
def test_a_plain_encoder_is_reassembled(encoder):
    model = build_model(backbone_config=encoder)
    assert isinstance(model.sem.reassembly, SEMFeatureReassembly)
    assert feature_map_sizes(model, 64, 96) == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_reassembly_factors_can_be_given():
    ratios = {"offset_strides": [4, 2, 2, 1], "sr_ratios": [1, 2, 2, 4]}  # all steps are 32 pixels
    model = build_model(backbone_config=PLAIN_VIT, reassemble_factors=[2, 1, 1, 0.5], **ratios)
    assert feature_map_sizes(model, 64, 96) == [(8, 12), (4, 6), (4, 6), (2, 3)]
    logits = model(random_images(2, 70, 96)).logits["depth"]
    assert logits.shape == (2, 1, 9, 12)


def test_sums_in_place_of_an_encoder_leave_its_parameters_trainable(tmp_path, monkeypatch):
    encoder = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, layer_type="basic", out_indices=[1, 2, 3, 4]
    )
    model = build_model(backbone_config=encoder)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr("transformers_sem.backbone.KNOWN_PROPERTIES", {})  # as in another process
    loaded = SEMForMultiTaskDensePrediction.from_pretrained(tmp_path)
    assert {*dict(loaded.named_parameters())} == {*dict(model.named_parameters())}


TRANSFORMERS_ENCODERS = {
    "swin": SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_indices=[1, 2, 3, 4]
    ),
    "convnext": ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_indices=[1, 2, 3, 4]),
    "dinov2": Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, patch_size=16, out_indices=[1, 2, 3, 4]
    ),
    "dinov3": DINOv3ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2, out_indices=[1, 2, 3, 4]
    ),
}


@pytest.mark.parametrize("name", ["swin", "dinov2", *slow(["convnext", "dinov3"])])
def test_encoders_of_transformers(name, tmp_path):
    model = build_model(backbone_config=TRANSFORMERS_ENCODERS[name].to_dict())
    assert feature_map_sizes(model, 64, 96) == [(16, 24), (8, 12), (4, 6), (2, 3)]
    outputs = model(random_images(1, 97, 131), labels=random_labels(NYUD_TASKS, 1, 97, 131))
    assert outputs.logits["normal"].shape == (1, 3, 25, 33)
    outputs.loss.backward()
    model.save_pretrained(tmp_path)
    loaded = SEMForMultiTaskDensePrediction.from_pretrained(tmp_path)
    assert_same(loaded.state_dict(), model.state_dict())
    assert_same(loaded(random_images()).logits, model(random_images()).logits, **UNALIGNED)


PATCH_14_ENCODERS = {
    "transformers": Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, patch_size=14, out_indices=[1, 2, 3, 4]
    ).to_dict(),
    "timm": {"model_name": "test_vit", "out_indices": [1, 2, 3, 4], "model_kwargs": {"patch_size": 14}},
}


@pytest.mark.parametrize("library", PATCH_14_ENCODERS)
def test_patches_of_fourteen_pixels_keep_maps_and_image_aligned(library):
    """The padded image holds whole patches, and a map cropped to the image covers all of it."""
    model = build_model(backbone_config=PATCH_14_ENCODERS[library])
    sem, size = model.sem, (70, 98)
    padded = Padding(size, sem.size_divisor).pad(random_images(1, *size))
    encoded = sem(random_images(1, *size)).last_hidden_state
    assert [length % 14 for length in padded.shape[-2:]] == [0, 0]
    assert tuple(encoded.shape[-2:]) == tuple(length // 14 for length in padded.shape[-2:])
    pixels_per_row = padded.shape[-2] / feature_map_sizes(model, *size)[0][0]
    num_rows = model(random_images(1, *size)).logits["depth"].shape[-2]
    assert num_rows * pixels_per_row >= size[0] - 1e-6


# ----------------------------------------------------------------------------------------------------------------------
# The size of the paper's model


def count_operations(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 2


@pytest.fixture(scope="module")
def paper_model():
    """The default model without memory: shapes only."""
    with torch.device("meta"):
        model = SEMForMultiTaskDensePrediction(SEMConfig()).eval()
    # operations of fused attention are counted another way, so both sides write theirs out
    model.set_attn_implementation("eager")
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


def test_the_default_has_at_most_360_million_parameters(paper_model):
    assert 300e6 < paper_model.num_parameters() <= 360e6


@torch.no_grad()
@pytest.mark.slow
def test_what_follows_the_encoder_costs_little(paper_model):
    images = torch.empty(1, 3, 448, 576, device="meta")
    encoder = count_operations(lambda: paper_model.sem.backbone(images))
    everything = count_operations(lambda: paper_model(images))
    assert encoder > 300e9  # 24 layers at 1008 tokens
    assert 0 < everything - encoder <= 0.15 * encoder


def test_only_convolutions_of_single_pixels_become_linear_layers():
    layers = [
        torch.nn.Conv2d(3, 4, 1),
        torch.nn.Conv2d(3, 4, 1, padding=1),
        torch.nn.Conv2d(3, 4, 1, stride=2),
        torch.nn.Conv2d(4, 4, 1, groups=4),
    ]
    use_linear_layers(torch.nn.Sequential(*layers))
    assert [type(layer) is SEMPatchConv2d for layer in layers] == [True, False, False, False]


@pytest.mark.parametrize(
    "arguments",
    [(6, 4, 1), (6, 4, 2, 2), (6, 6, 1, 1, 0, 1, 6), (6, 6, 4, 4, 0, 1, 6)],
    ids=["1", "2", "depthwise 1", "4"],
)
@pytest.mark.parametrize("size", [(8, 12), (7, 13)])
def test_convolutions_of_patches_equal_those_of_torch(arguments, size):
    patches = SEMPatchConv2d(*arguments)
    plain = torch.nn.Conv2d(*arguments)
    plain.load_state_dict(patches.state_dict())
    images = torch.randn(2, 6, *size, requires_grad=True)
    found, expected = patches(images), plain(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(expected)
    gradients = [
        torch.autograd.grad((output * weights).sum(), [images, *module.parameters()])
        for output, module in ((found, patches), (expected, plain))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_input_embeddings_are_the_first_layer_of_the_encoder():
    """As DPT's; adapters let gradients flow back to its output."""
    model = build_model(use_decoder=False)
    layer = model.get_input_embeddings()
    assert isinstance(layer, torch.nn.Conv2d) and layer is model.sem.get_input_embeddings() and layer.in_channels == 3
    assert model.get_output_embeddings() is None
    model.requires_grad_(False).enable_input_require_grads()
    assert next(iter(model(random_images()).logits.values())).requires_grad


def test_images_take_the_precision_of_the_model():
    images = random_images()
    model = build_model().eval().to(torch.bfloat16)
    with torch.no_grad():
        expected, found = (model(pixel_values).logits for pixel_values in (images.to(torch.bfloat16), images))
    assert all(torch.equal(found[task], expected[task]) for task in expected)
    assert {logits.dtype for logits in found.values()} == {torch.bfloat16}

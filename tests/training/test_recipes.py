"""The recipes: every number of the eight of the paper, and those that are not of the paper."""

import pytest
import timm
import torch
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from transformers_sem import SEMConfig, SEMForMultiTaskDensePrediction, SEMModel, get_task
from transformers_sem.data.benchmarks import BENCHMARKS
from transformers_sem.data.transforms import TrainingAugmentation
from transformers_sem.layers import SkipInitOnMeta
from transformers_sem.losses import (
    balanced_binary_cross_entropy,
    balanced_cross_entropy,
    cross_entropy,
    l1,
    unit_vector_l1,
)
from transformers_sem.training.config import TrainingConfig
from transformers_sem.training.optimizer import build_optimizer, layer_depths

from ..conftest import REPOSITORY


CONFIGS = REPOSITORY / "scripts" / "configs"
PAPER_ENCODERS = {
    "swin_tiny": ("swin_tiny_patch4_window7_224", [1, 2, 3, 4]),
    "swin_base": ("swin_base_patch4_window7_224", [1, 2, 3, 4]),
    "vit_base": ("vit_base_patch16_384", [3, 6, 9, 12]),
    "vit_large": ("vit_large_patch16_384", [6, 12, 18, 24]),
}
OUR_ENCODERS = {
    "dinov2_vit_base": ("vit_base_patch14_reg4_dinov2", [3, 6, 9, 12]),
    "dinov2_vit_large": ("vit_large_patch14_reg4_dinov2", [6, 12, 18, 24]),
    "dinov3_vit_base": ("vit_base_patch16_dinov3", [3, 6, 9, 12]),
    "dinov3_vit_large": ("vit_large_patch16_dinov3", [6, 12, 18, 24]),
    "convnextv2_base": ("convnextv2_base", [1, 2, 3, 4]),
}
DATASETS = ("nyud_v2", "pascal_context")


def load(encoder, dataset):
    """Settings and model configuration as the training script builds them."""
    config = TrainingConfig.load(CONFIGS / f"{encoder}_{dataset}.yaml")
    return config, SEMConfig(task_num_labels=BENCHMARKS[config.dataset].task_num_labels, **config.model)


def build_without_weights(model_class, model_config):
    with torch.device("meta"), SkipInitOnMeta():
        return model_class(model_config)


# ----------------------------------------------------------------------------------------------------------------------
# Recipes of the paper


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("encoder", PAPER_ENCODERS)
def test_encoder_of_the_paper(encoder, dataset):
    config, model_config = load(encoder, dataset)
    backbone = model_config.backbone_config
    model_name, out_indices = PAPER_ENCODERS[encoder]
    assert backbone.model_name.split(".")[0] == model_name
    assert backbone.model_name in timm.list_models(f"{model_name}*", pretrained=True)  # the tag names weights
    assert list(backbone.out_indices) == out_indices
    assert backbone.drop_path_rate == 0.15
    assert config.pretrained_backbone is True
    assert (config.layer_decay, config.freeze_backbone) == (1.0, False)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("encoder", PAPER_ENCODERS)
def test_optimization_of_the_paper(encoder, dataset):
    config, _ = load(encoder, dataset)
    assert config.learning_rate == {"nyud_v2": 1e-5, "pascal_context": 2e-5}[dataset]
    assert (config.weight_decay, config.decay_power, config.max_grad_norm) == (1e-6, 0.9, 10.0)
    assert (config.max_steps, config.batch_size) == (40_000, 4)
    assert config.images_per_forward(num_processes=1) == 4


def test_adam_of_the_paper_has_one_group():
    config, model_config = load("vit_base", "pascal_context")
    optimizer = build_optimizer(config, build_without_weights(SEMForMultiTaskDensePrediction, model_config))
    assert type(optimizer) is torch.optim.Adam
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(2e-5, 1e-6)]


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("encoder", PAPER_ENCODERS)
def test_input_of_the_paper(encoder, dataset):
    config, _ = load(encoder, dataset)
    assert config.dataset == dataset
    assert config.input_size == {"nyud_v2": [448, 576], "pascal_context": [512, 512]}[dataset]
    assert config.network_size is None  # no resize: crops and padding
    assert config.zoom == [0.5, 2.0]
    assert config.image_mean == list(IMAGENET_DEFAULT_MEAN)
    assert config.image_std == list(IMAGENET_DEFAULT_STD)
    assert (config.tasks, config.num_evaluation_images) == (None, None)


def test_augmentation_of_the_paper():
    config = TrainingConfig()
    zoom, crop, flip, distortion = TrainingAugmentation(tuple(config.input_size), zoom=tuple(config.zoom)).transforms
    assert (zoom.low, zoom.high) == (0.5, 2.0)
    assert (crop.size, crop.max_class_share, crop.num_tries) == ((448, 576), 0.75, 10)
    assert flip.p == 0.5
    assert distortion.brightness == pytest.approx((1 - 32 / 255, 1 + 32 / 255))
    assert (distortion.contrast, distortion.saturation) == ((0.5, 1.5), (0.5, 1.5))
    assert distortion.hue == pytest.approx((-18 / 180, 18 / 180))


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("encoder", PAPER_ENCODERS)
def test_losses_of_the_paper(encoder, dataset):
    _, model_config = load(encoder, dataset)
    weights = {
        "nyud_v2": {"semseg": 1, "depth": 1, "normal": 10, "boundary": 50},
        "pascal_context": {"semseg": 1, "parsing": 2, "saliency": 5, "normal": 10, "boundary": 50},
    }
    assert model_config.task_loss_weights == weights[dataset]
    assert list(model_config.task_loss_weights) == list(weights[dataset])
    assert model_config.task_loss_kwargs == {}
    losses = {"semseg": cross_entropy, "parsing": cross_entropy, "saliency": balanced_cross_entropy}
    losses |= {"boundary": balanced_binary_cross_entropy, "normal": unit_vector_l1, "depth": l1}
    assert all(get_task(task).loss is losses[task] for task in model_config.tasks)
    # 0.95 on positives and 0.05 on negatives
    for label, weight in ((1.0, 0.95), (0.0, 0.05)):
        loss = balanced_binary_cross_entropy(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1), label))
        assert loss.item() == pytest.approx(weight * torch.log(torch.tensor(2.0)).item())
    assert (model_config.use_auxiliary_heads, model_config.auxiliary_loss_weight) == (True, 1.0)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("encoder", PAPER_ENCODERS)
def test_modules_of_the_paper(encoder, dataset):
    config, model_config = load(encoder, dataset)
    assert set(config.model) <= {"backbone_config"}
    widths = {
        "nyud_v2": {"semseg": 40, "depth": 1, "normal": 3, "boundary": 1},
        "pascal_context": {"semseg": 21, "parsing": 7, "saliency": 2, "normal": 3, "boundary": 1},
    }
    assert model_config.task_num_labels == widths[dataset]
    assert (model_config.num_bases, model_config.num_em_iterations) == (64, 5)
    assert (model_config.em_temperature, model_config.bases_momentum) == (1.0, 0.9)
    assert (model_config.hidden_size, model_config.offset_strides) == (512, [8, 4, 2, 1])
    assert model_config.decoder_hidden_sizes == [512, 256, 128, 64]
    assert (model_config.use_decoder, model_config.use_intra_task) == (True, True)
    assert (model_config.num_intra_task_stages, model_config.inter_task_stages) == (4, 4)


@pytest.mark.parametrize(("dataset", "max_distance"), [("nyud_v2", 0.011), ("pascal_context", 0.0075)])
def test_boundary_tolerance_of_the_paper(dataset, max_distance):
    assert BENCHMARKS[dataset].task_metric_kwargs == {"boundary": {"max_distance": max_distance}}


# ----------------------------------------------------------------------------------------------------------------------
# Recipes that are not of the paper


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("encoder", OUR_ENCODERS)
def test_our_recipes_are_marked_and_name_weights_that_exist(encoder, dataset):
    config, model_config = load(encoder, dataset)
    first_line = (CONFIGS / f"{encoder}_{dataset}.yaml").read_text().splitlines()[0]
    assert first_line.startswith("# ") and "not a configuration of the paper" in first_line
    model_name, out_indices = OUR_ENCODERS[encoder]
    assert model_config.backbone_config.model_name.split(".")[0] == model_name
    assert model_config.backbone_config.model_name in timm.list_models(f"{model_name}*", pretrained=True)
    assert list(model_config.backbone_config.out_indices) == out_indices
    paper, _ = load("vit_base", dataset)
    assert config.dataset == dataset
    assert (config.learning_rate, config.max_steps, config.batch_size) == (paper.learning_rate, 40_000, 4)


@pytest.mark.parametrize("encoder", OUR_ENCODERS)
def test_our_encoders_fit_every_input_size_and_learn_slower_at_the_stem(encoder):
    config, model_config = load(encoder, "nyud_v2")
    model = build_without_weights(SEMModel, model_config)
    for dataset in DATASETS:
        size = load(encoder, dataset)[0].input_size
        assert [edge % model.size_divisor for edge in size] == [0, 0]
    num_layers = max(layer_depths(model.backbone).values()) + 1
    assert 0.2 < config.layer_decay**num_layers < 0.3
    file = (CONFIGS / f"{encoder}_nyud_v2.yaml").read_text()
    assert f"{config.layer_decay**num_layers:.2f} in total" in " ".join(file.replace("#", "").split())


@pytest.mark.slow
@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("encoder", OUR_ENCODERS)
def test_our_recipes_build_and_predict(encoder, dataset):
    config, model_config = load(encoder, dataset)
    model = build_without_weights(SEMForMultiTaskDensePrediction, model_config).eval()
    logits = model(torch.empty(1, 3, *config.input_size, device="meta")).logits
    assert {task: value.shape[1] for task, value in logits.items()} == model_config.task_num_labels

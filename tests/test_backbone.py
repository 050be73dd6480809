import re

import pytest
import timm
import torch
import torch.nn.functional as F
from transformers import AutoBackbone, VitPoseBackboneConfig

from transformers_sem import SEMForMultiTaskDensePrediction, SEMTimmBackboneConfig
from transformers_sem import backbone as backbone_module
from transformers_sem.backbone import build_backbone, find_image_sizes, inspect_backbone
from transformers_sem.backbone_timm import SEMTimmBackbone

from .conftest import REPOSITORY
from .tiny import tiny_config


def timm_encoder(name, indices, **model_kwargs):
    return {"model_name": name, "out_indices": indices, "drop_path_rate": 0.0, "model_kwargs": model_kwargs}


def image_sizes(backbone_config, device="meta"):
    with torch.device(device):
        backbone = build_backbone(backbone_config)
    return backbone, find_image_sizes(backbone, inspect_backbone(backbone, num_maps=4)[0])


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        (timm_encoder("test_convnext", [1, 2, 3, 4]), (32, None)),
        (timm_encoder("test_convnext", [1, 2]), (8, None)),
        (timm_encoder("test_vit_relpos", [1, 2]), (16, (160, 160))),
        (timm_encoder("test_vit_relpos", [1, 2], img_size=[96, 128]), (16, (96, 128))),
        pytest.param(timm_encoder("test_maxvit", [2, 3, 4, 5]), (160, None), marks=pytest.mark.slow),
        pytest.param(timm_encoder("test_maxvit", [2, 3, 4, 5], img_size=128), (128, None), marks=pytest.mark.slow),
        pytest.param(timm_encoder("hrnet_w18_small", [1, 2, 3, 4]), (32, None), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_images_that_an_encoder_takes(encoder, expected):
    assert image_sizes(SEMTimmBackboneConfig(**encoder))[1] == expected


def test_an_encoder_of_one_size():
    config = tiny_config(backbone_config=timm_encoder("test_vit_relpos", [1, 2, 4, 6], img_size=[96, 128]))
    model = SEMForMultiTaskDensePrediction(config).eval()
    assert model(torch.randn(1, 3, 96, 128)).logits["depth"].shape == (1, 1, 24, 32)
    assert model(torch.randn(1, 3, 90, 120)).logits["depth"].shape == (1, 1, 23, 30)  # padded to that size
    with pytest.raises(
        ValueError, match=r"takes images of 96 x 128 only; got 96 x 160\. .*`pad_size`.*img_size"
    ) as error:
        model(torch.randn(1, 3, 96, 160))
    assert "\n" not in str(error.value)


def test_an_encoder_of_a_size_that_the_decoder_cannot_divide():
    config = tiny_config(backbone_config=timm_encoder("test_vit_relpos", [1, 2, 4, 6], img_size=[80, 80]))
    with pytest.raises(ValueError, match=r"multiples of 32; the encoder takes \(80, 80\) only"):
        SEMForMultiTaskDensePrediction(config)


@pytest.mark.slow
def test_an_encoder_of_windows_takes_any_size():
    model = SEMForMultiTaskDensePrediction(
        tiny_config(backbone_config=timm_encoder("test_maxvit", [2, 3, 4, 5]))
    ).eval()
    assert model.sem.size_divisor == 160
    assert model(torch.randn(1, 3, 100, 170)).logits["depth"].shape == (1, 1, 25, 43)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            timm_encoder("pit_ti_224", [1, 2, 3]),
            r"'pit_ti_224' gives no feature maps of the size of the image over their",
        ),
        (timm_encoder("hardcorenas_a", [1, 2]), "timm cannot build 'hardcorenas_a'.*another encoder"),
        (timm_encoder("test_convnext", [1, 2], img_size=64), "timm cannot build 'test_convnext'.*'img_size'"),
        (timm_encoder("test_vit", [1, 2], num_heads=0), "timm cannot build 'test_vit'.*'num_heads': 0"),
        (
            {**timm_encoder("vgg11", [1, 2]), "drop_path_rate": 0.1},
            "timm cannot build 'vgg11'.*0 for `drop_path_rate`",
        ),
    ],
    ids=str,
)
def test_encoders_that_cannot_be_used_are_refused(encoder, message):
    with pytest.raises(ValueError, match=message) as error:
        image_sizes(SEMTimmBackboneConfig(**encoder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", [torch.Tensor.item, torch.Tensor.cpu, torch.Tensor.numpy], ids=lambda f: f.__name__)
def test_an_encoder_that_reads_values_is_run_with_values_and_leaves_the_random_numbers(read, monkeypatch):
    def forward(self, pixel_values, **kwargs):
        read(pixel_values.sum())
        return original(self, pixel_values, **kwargs)

    original = SEMTimmBackbone.forward
    monkeypatch.setattr(SEMTimmBackbone, "forward", forward)
    monkeypatch.setattr(backbone_module, "KNOWN_IMAGE_SIZES", {})
    backbone = build_backbone(SEMTimmBackboneConfig(**timm_encoder("test_vit3", [1, 2])))
    state = torch.get_rng_state()
    assert find_image_sizes(backbone, inspect_backbone(backbone, num_maps=2)[0]) == (16, None)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "change",
    [lambda maps: maps[:1], lambda maps: None, lambda maps: (maps[0], maps[1][:, 1:])],
)
def test_an_encoder_whose_maps_are_not_those_it_tells_of_is_refused(change, monkeypatch):
    def forward(self, pixel_values, **kwargs):
        output = original(self, pixel_values, **kwargs)
        output.feature_maps = change(output.feature_maps)
        return output

    original = SEMTimmBackbone.forward
    monkeypatch.setattr(SEMTimmBackbone, "forward", forward)
    monkeypatch.setattr(backbone_module, "KNOWN_IMAGE_SIZES", {})
    backbone = build_backbone(SEMTimmBackboneConfig(**timm_encoder("test_convnext", [1, 2])))
    with pytest.raises(ValueError, match="gives no feature maps of the size .* and with its `channels`"):
        find_image_sizes(backbone, inspect_backbone(backbone, num_maps=2)[0])


def test_a_transformers_encoder_that_returns_tokens_is_refused():
    vitpose = VitPoseBackboneConfig(
        image_size=[64, 32], hidden_size=8, num_hidden_layers=2, num_attention_heads=2, out_indices=[1, 2]
    )
    with pytest.raises(ValueError, match="'vitpose_backbone' gives no feature maps"):
        inspect_backbone(AutoBackbone.from_config(vitpose), num_maps=2)


# The table of docs/write_a_backbone.md

DOCUMENT = (REPOSITORY / "docs" / "write_a_backbone.md").read_text()
ROWS = {
    row[0]: re.findall(r"`(\w+)`", row[-1])
    for row in (line.strip("| ").split(" | ") for line in DOCUMENT.splitlines() if line.startswith("| "))
}
ANY, WINDOWS, ONE_SIZE, REFUSED = "any size", "any size, padded to windows", "one size", "refused"


def four_stages(name):
    """Four stages, or all if there are fewer: the deepest of a hierarchical encoder, blocks of a plain one."""
    with torch.device("meta"):
        number = len(timm.create_model(name).feature_info)
    return (
        [max(1, number * step // 4) for step in (1, 2, 3, 4)]
        if number > 8
        else list(range(max(1, number - 3), number + 1))
    )


@pytest.mark.skipif(timm.__version__ != "1.0.31", reason="the table is of timm 1.0.31")
def test_the_table_names_every_family_of_timm():
    names = [name for row in (ANY, WINDOWS, ONE_SIZE, REFUSED) for name in ROWS[row]]
    assert len(names) == len(set(names))
    missing = {timm.models.model_entrypoint(name).__module__.rpartition(".")[2] for name in names} ^ set(
        timm.list_modules()
    )
    assert not missing


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS[REFUSED])
def test_refused_encoders_of_the_table(name):
    with pytest.raises(ValueError, match=f"'{name}'"):
        image_sizes(SEMTimmBackboneConfig(**timm_encoder(name, four_stages(name))))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ROWS[ANY], *ROWS[WINDOWS], *ROWS[ONE_SIZE]])
@torch.no_grad()
def test_encoders_of_the_table(name):
    """Maps have their strides, and move with the image."""
    torch.manual_seed(0)
    encoder = SEMTimmBackboneConfig(**timm_encoder(name, four_stages(name)))
    backbone, (divisor, image_size) = image_sizes(encoder, device="cpu")
    stride = max(backbone.strides)
    assert (divisor > 2 * stride) == (name in ROWS[WINDOWS])
    assert (image_size is not None) == (name in ROWS[ONE_SIZE])
    edge = divisor * -(-32 // divisor)  # of a few cells at least
    of_any_size = [(divisor, 2 * divisor)] if name in ROWS[WINDOWS] else [(5 * edge, 3 * edge), (3 * edge, 4 * edge)]
    sizes = [image_size] if image_size else of_any_size
    for size in sizes:
        height, width = size
        images = smooth_images(height + stride, width + stride)
        maps, shifted, nothing = (
            backbone.eval()(part).feature_maps
            for part in (images[..., :height, :width], images[..., stride:, stride:], torch.zeros(1, 3, height, width))
        )
        assert [tuple(m.shape[1:]) for m in maps] == [
            (channels, height // own, width // own)
            for channels, own in zip(backbone.channels, backbone.strides, strict=True)
        ]
        if name == "hrnet_w18_small":  # untrained, its coarse branches and their borders outweigh the rest
            continue
        step = stride // backbone.strides[0]
        before, after = maps[0] - nothing[0], shifted[0] - nothing[0]
        assert correlation(before[..., step:, step:], after[..., :-step, :-step]) > 0.15  # 0 for shuffled maps


def smooth_images(height, width):
    coarse = torch.randn(1, 3, height // 8, width // 8)
    return F.interpolate(coarse, size=(height, width), mode="bicubic") + 0.2 * torch.randn(1, 3, height, width)


def correlation(first, second):
    first, second = ((m.flatten(2) - m.flatten(2).mean(2, keepdim=True)).flatten() for m in (first, second))
    return F.cosine_similarity(first, second, dim=0).item()

"""Tiles, flips and scales, with models that map every pixel independently and with a tiny SEM."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor, TaskSpec
from transformers_sem.evaluation.evaluator import predict
from transformers_sem.inference import tiling
from transformers_sem.inference.predictor import Predictor, parse_augmentations
from transformers_sem.inference.tiling import allocate_map, tile_starts, tile_weights
from transformers_sem.task_kinds import CLASS_IDS
from transformers_sem.tasks import TASKS, flip_logits

from ..tiny import tiny_config


WIDTHS = {"semseg": 5, "depth": 1, "normal": 3, "boundary": 1, "parsing": 4, "saliency": 2}
UNCHANGED = SEMImageProcessor(do_resize=False, do_normalize=False)


class PixelModel(nn.Module):
    """Every logit depends on its own pixel only."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        super().__init__()
        self.sizes = []
        torch.manual_seed(3)
        self.weights = {task: torch.randn(width, 3) for task, width in WIDTHS.items()}

    def forward(self, pixel_values):
        self.sizes.append(tuple(pixel_values.shape))
        logits = {task: torch.einsum("lc,bchw->blhw", weights, pixel_values) for task, weights in self.weights.items()}
        logits["depth"] = logits["depth"].abs() + 1
        return SimpleNamespace(logits=logits)


class ConstantModel(PixelModel):
    """Predicts the same for every image."""

    def forward(self, pixel_values):
        size = (len(pixel_values), -1, *pixel_values.shape[-2:])
        return SimpleNamespace(
            logits={task: weights[:, :1, None].expand(size).abs() for task, weights in self.weights.items()}
        )


def random_image(height=61, width=83, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), np.uint8))


def assert_alike(actual, expected, atol=2e-5):
    assert list(actual) == list(expected)
    for task in expected:
        assert actual[task].dtype == expected[task].dtype
        if actual[task].dtype == torch.int64:
            assert (actual[task] == expected[task]).float().mean() > 0.999
        else:
            torch.testing.assert_close(actual[task], expected[task], rtol=0, atol=atol)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    model = SEMForMultiTaskDensePrediction(tiny_config(task_num_labels=WIDTHS)).eval()
    return {
        "model": model,
        "image_processor": SEMImageProcessor(do_resize=False, do_pad=True, pad_size={"height": 64, "width": 96}),
    }


@pytest.mark.parametrize("layout", ["padded", "stretched"])
def test_without_options_the_predictor_equals_post_processing(tiny, monkeypatch, layout):
    processor = tiny["image_processor"] if layout == "padded" else SEMImageProcessor(size={"height": 64, "width": 96})
    images = [random_image(31, 43), random_image(70, 30), random_image(1, 1), random_image(20, 33)]
    expected = predict(tiny["model"], processor, images)
    for max_band_values, batch_size in [(1, 3), (2000, 1), (2**24, 1), (2**24, 3)]:
        monkeypatch.setattr(tiling, "MAX_BAND_VALUES", max_band_values)
        actual = Predictor(model=tiny["model"], image_processor=processor, batch_size=batch_size)(images)
        for maps, expected_maps in zip(actual, expected, strict=True):
            assert_alike(maps, expected_maps)


def test_large_maps_are_in_temporary_files(tiny, monkeypatch, tmp_path):
    expected = Predictor(**tiny)([random_image()])[0]
    monkeypatch.setattr(tiling, "MAX_MEMORY_VALUES", 10)
    predictor = Predictor(**tiny, folder=tmp_path)
    mapped = []
    memmap = np.memmap
    monkeypatch.setattr(np, "memmap", lambda *args, **kwargs: mapped.append(memmap(*args, **kwargs)) or mapped[-1])
    assert allocate_map((4, 5), torch.float32, tmp_path).shape == (4, 5) and len(mapped) == 1
    assert_alike(predictor([random_image()])[0], expected, atol=0)
    assert len(mapped) == 1 + len(WIDTHS) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tile", [16, 40, 64, 200])
def test_tiles_of_a_pixelwise_model_equal_the_whole_image(tile):
    model = PixelModel()
    whole = Predictor(model=model, image_processor=UNCHANGED)([random_image()])[0]
    model.sizes.clear()
    tiled = Predictor(model=model, image_processor=UNCHANGED, tile=tile, batch_size=4)([random_image()])[0]
    assert_alike(tiled, whole)
    if tile == 16:
        assert {size[2:] for size in model.sizes[1:]} == {(16, 16)}
        assert max(size[0] for size in model.sizes) == 4


def test_tiles_have_no_seams():
    """A value that a tile adds to its pixels fades in and out with its weight, so neighboring pixels differ little."""

    class OffsetByTile(ConstantModel):
        def forward(self, pixel_values):
            outputs = super().forward(pixel_values)
            outputs.logits["boundary"] = (
                outputs.logits["boundary"] + pixel_values.mean(dim=(1, 2, 3))[:, None, None, None]
            )
            return outputs

    image = torch.zeros(3, 64, 128, dtype=torch.uint8)
    image[..., 64:] = 255
    predictor = Predictor(model=OffsetByTile(), image_processor=UNCHANGED, tile=32)
    logits = predictor([image])[0]["boundary"].logit()
    assert (logits.max() - logits.min()) > 0.9
    assert logits.diff(dim=1).abs().max() < 0.2 and logits.diff(dim=0).abs().max() < 1e-4


@pytest.mark.parametrize("options", [{"tile": 24}, {"flip": True}, {"tile": 24, "flip": True}])
def test_a_constant_stays_constant(options):
    maps = Predictor(model=ConstantModel(), image_processor=UNCHANGED, **options)([random_image()])[0]
    for task, values in maps.items():
        expected = TASKS[task].kind.predict(ConstantModel()(torch.zeros(1, 3, 1, 1)).logits[task])[0]
        if options.get("flip") and task == "normal":
            expected = torch.nn.functional.normalize(expected * torch.tensor([0, 1, 1]).view(3, 1, 1), dim=0)
        torch.testing.assert_close(values, expected.expand(values.shape), rtol=0, atol=1e-6)


def test_tiles_follow_the_depth_of_the_whole_image():
    """The model predicts smaller depths in smaller crops."""

    class DepthOfInputWidth(PixelModel):
        def forward(self, pixel_values):
            outputs = super().forward(pixel_values)
            outputs.logits["depth"] = torch.full_like(outputs.logits["depth"], 3.0 * pixel_values.shape[-1] / 128)
            return outputs

    predictor = Predictor(model=DepthOfInputWidth(), image_processor=UNCHANGED, tile=32)
    depth = predictor([random_image(64, 128)])[0]["depth"]
    torch.testing.assert_close(depth, torch.full((64, 128), 3.0))


AUGMENTATIONS = [{"flip": True}, {"flip": True, "scales": (0.75, 1.0, 1.5)}]


@pytest.mark.parametrize("augmentations", AUGMENTATIONS, ids=["flip", "flip and scales"])
@pytest.mark.parametrize("layout", ["padded", "stretched"])
def test_predictions_of_the_flipped_image_are_flipped(tiny, augmentations, layout):
    processor = tiny["image_processor"] if layout == "padded" else SEMImageProcessor(size={"height": 64, "width": 96})
    predictor = Predictor(model=tiny["model"], image_processor=processor, batch_size=2, **augmentations)
    maps, flipped = (predictor([image])[0] for image in (random_image(), random_image().flip(-1)))
    expected = {task: TASKS[task].kind.flip_values(values.flip(-1)) for task, values in maps.items()}
    assert_alike(flipped, expected, atol=2e-4)  # resizing rounds to levels of 8 bits
    assert not torch.allclose(
        maps["depth"], Predictor(model=tiny["model"], image_processor=processor)([random_image()])[0]["depth"]
    )


def test_scales_change_the_input_size_and_undo_the_zoom_of_depth():
    class DepthOfInputWidth(ConstantModel):
        def forward(self, pixel_values):
            self.sizes.append(tuple(pixel_values.shape[-2:]))
            outputs = super().forward(pixel_values)
            outputs.logits["depth"] = torch.full_like(outputs.logits["depth"], 2.0 * 83 / pixel_values.shape[-1])
            return outputs

    model = DepthOfInputWidth()
    maps = Predictor(model=model, image_processor=UNCHANGED, scales=(0.5, 1.0, 2.0))([random_image(61, 83)])[0]
    assert sorted(model.sizes) == [(30, 42), (61, 83), (122, 166)]
    torch.testing.assert_close(maps["depth"], torch.full((61, 83), 2.0), rtol=0, atol=0.01)


def test_fused_maps_are_valid_predictions(tiny):
    maps = Predictor(**tiny, tile=64, flip=True, batch_size=4)([random_image(90, 100)])[0]
    torch.testing.assert_close(maps["normal"].norm(dim=0), torch.ones(90, 100), rtol=0, atol=1e-5)
    for task in ("boundary", "saliency"):
        assert maps[task].min() >= 0 and maps[task].max() <= 1
    assert maps["depth"].min() >= 0 and maps["semseg"].dtype == torch.int64


def test_classes_that_a_flip_swaps_are_swapped(monkeypatch):
    """A user's task may distinguish left and right hands."""
    swap = torch.tensor([0, 2, 1])
    hands = TaskSpec(
        name="hands",
        num_labels=3,
        kind=replace(CLASS_IDS, flip_values=lambda ids: swap[ids]),
        loss=None,
    )
    monkeypatch.setitem(TASKS, "hands", hands)
    logits = torch.randn(3, 4, 5)
    ids = hands.kind.flip_values(logits.argmax(dim=0).flip(-1))
    torch.testing.assert_close(flip_logits("hands", logits).argmax(dim=0), ids)


@pytest.mark.parametrize(("length", "tile"), [(100, 30), (61, 60), (60, 60), (5, 60), (1000, 7)])
def test_tiles_cover_the_length_and_overlap(length, tile):
    overlap = tile // 4
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0 and max(starts) + tile >= length and starts == sorted(set(starts))
    assert all(after - before <= tile - overlap for before, after in zip(starts, starts[1:], strict=False))
    assert (tile_weights(tile, overlap) > 0).all() and tile_weights(tile, overlap).max() == 1


def test_half_precision_is_close(tiny):
    maps = Predictor(**tiny)([random_image()])[0]
    half = copy.deepcopy(tiny["model"]).to(torch.bfloat16)
    half_maps = Predictor(model=half, image_processor=tiny["image_processor"])([random_image()])[0]
    assert half_maps["depth"].dtype == torch.float32
    assert_close = torch.testing.assert_close
    assert_close(half_maps["depth"], maps["depth"], rtol=0.1, atol=0.05)
    assert_close(half_maps["normal"].norm(dim=0), torch.ones(61, 83), rtol=0, atol=1e-4)


def test_nan_raises():
    model = PixelModel()
    model.weights["depth"][:] = float("nan")
    with pytest.raises(FloatingPointError, match=r"\['depth'\] are not, in torch.float32"):
        Predictor(model=model, image_processor=UNCHANGED)([random_image()])


def test_augmentations_are_parsed():
    assert parse_augmentations([]) == (False, (1.0,))
    assert parse_augmentations(["0.75", "flip", "1.25"]) == (True, (0.75, 1.0, 1.25))
    for word in ("flop", "0", "nan", "5"):
        with pytest.raises(ValueError, match=f"got '{word}'"):
            parse_augmentations([word])

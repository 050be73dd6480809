"""Tiles, mirror images and scales, with models that see every pixel by itself, and with a real one."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor, TaskSpec
from transformers_sem.evaluation.evaluator import predict
from transformers_sem.inference import tiling as views
from transformers_sem.inference.predictor import Predictor, parse_looks
from transformers_sem.inference.tiling import tile_starts, tile_weights
from transformers_sem.task_kinds import CLASS_IDS
from transformers_sem.tasks import TASKS, flip_logits

from ..tiny import tiny_config


WIDTHS = {"semseg": 5, "depth": 1, "normal": 3, "boundary": 1, "parsing": 4, "saliency": 2}
AS_IT_IS = SEMImageProcessor(do_resize=False, do_normalize=False)


class PixelModel(nn.Module):
    """Every logit depends on its own pixel only; the x of normals follows the horizontal gradient, as shading does."""

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
    """Whatever it sees, the same."""

    def forward(self, pixel_values):
        size = (len(pixel_values), -1, *pixel_values.shape[-2:])
        return SimpleNamespace(
            logits={task: weights[:, :1, None].expand(size).abs() for task, weights in self.weights.items()}
        )


def photo(height=61, width=83, seed=0):
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
def real():
    torch.manual_seed(0)
    model = SEMForMultiTaskDensePrediction(tiny_config(task_num_labels=WIDTHS)).eval()
    return {
        "model": model,
        "image_processor": SEMImageProcessor(do_resize=False, do_pad=True, pad_size={"height": 64, "width": 96}),
    }


@pytest.mark.parametrize("layout", ["padded", "stretched"])
@pytest.mark.parametrize("values_of_a_band", [1, 2000, 2**24])
def test_a_plain_look_is_what_post_processing_gives(real, monkeypatch, layout, values_of_a_band):
    monkeypatch.setattr(views, "VALUES_OF_A_BAND", values_of_a_band)
    processor = real["image_processor"] if layout == "padded" else SEMImageProcessor(size={"height": 64, "width": 96})
    photos = [photo(61, 83), photo(150, 90), photo(1, 1), photo(20, 33)]
    expected = predict(real["model"], processor, photos)
    for batch_size in (1, 3):
        actual = Predictor(model=real["model"], image_processor=processor, batch_size=batch_size)(photos)
        for ours, theirs in zip(actual, expected, strict=True):
            assert_alike(ours, theirs)


def test_large_maps_lie_in_files(real, monkeypatch, tmp_path):
    expected = Predictor(**real)([photo()])[0]
    monkeypatch.setattr(views, "VALUES_IN_MEMORY", 10)
    predictor = Predictor(**real, folder=tmp_path)
    assert isinstance(views.MapCanvas((4, 5), folder=tmp_path)._array("depth", np.zeros((4, 5))), np.memmap)
    assert_alike(predictor([photo()])[0], expected, atol=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tile", [16, 40, 64, 200])
def test_tiles_of_a_model_that_sees_pixels_are_the_whole(tile):
    model = PixelModel()
    whole = Predictor(model=model, image_processor=AS_IT_IS)([photo()])[0]
    model.sizes.clear()
    tiled = Predictor(model=model, image_processor=AS_IT_IS, tile=tile, batch_size=4)([photo()])[0]
    assert_alike(tiled, whole)
    if tile == 16:
        assert {size[2:] for size in model.sizes[1:]} == {(16, 16)}
        assert max(size[0] for size in model.sizes) == 4


def test_tiles_have_no_seams():
    """Whatever a tile adds to its pixels rises and falls with its weight: neighbours differ by a little only."""

    class EveryTileAnother(ConstantModel):
        def forward(self, pixel_values):
            outputs = super().forward(pixel_values)
            outputs.logits["boundary"] = (
                outputs.logits["boundary"] + pixel_values.mean(dim=(1, 2, 3))[:, None, None, None]
            )
            return outputs

    image = torch.zeros(3, 64, 128, dtype=torch.uint8)
    image[..., 64:] = 255
    predictor = Predictor(model=EveryTileAnother(), image_processor=AS_IT_IS, tile=32)
    logits = predictor([image])[0]["boundary"].logit()
    assert (logits.max() - logits.min()) > 0.9
    assert logits.diff(dim=1).abs().max() < 0.2 and logits.diff(dim=0).abs().max() < 1e-4


@pytest.mark.parametrize("options", [{"tile": 24}, {"flip": True}, {"tile": 24, "flip": True}])
def test_a_constant_stays_constant(options):
    maps = Predictor(model=ConstantModel(), image_processor=AS_IT_IS, **options)([photo()])[0]
    for task, values in maps.items():
        expected = TASKS[task].kind.predict(ConstantModel()(torch.zeros(1, 3, 1, 1)).logits[task])[0]
        if options.get("flip") and task == "normal":
            expected = torch.nn.functional.normalize(expected * torch.tensor([0, 1, 1]).view(3, 1, 1), dim=0)
        torch.testing.assert_close(values, expected.expand(values.shape), rtol=0, atol=1e-6)


def test_tiles_follow_the_depth_of_the_whole():
    """A model that takes what is larger for nearer: the tiles would be as near as they are small."""

    class NearerWhereLarger(PixelModel):
        def forward(self, pixel_values):
            outputs = super().forward(pixel_values)
            outputs.logits["depth"] = torch.full_like(outputs.logits["depth"], 3.0 * pixel_values.shape[-1] / 128)
            return outputs

    predictor = Predictor(model=NearerWhereLarger(), image_processor=AS_IT_IS, tile=32)
    depth = predictor([photo(64, 128)])[0]["depth"]
    torch.testing.assert_close(depth, torch.full((64, 128), 3.0))


LOOKS = [{"flip": True}, {"flip": True, "scales": (0.75, 1.0, 1.5)}]


@pytest.mark.parametrize("looks", LOOKS, ids=["flip", "flip and scales"])
@pytest.mark.parametrize("layout", ["padded", "stretched"])
def test_looking_at_the_mirror_image_gives_the_mirror_image(real, looks, layout):
    processor = real["image_processor"] if layout == "padded" else SEMImageProcessor(size={"height": 64, "width": 96})
    predictor = Predictor(model=real["model"], image_processor=processor, batch_size=2, **looks)
    maps, mirrored = (predictor([image])[0] for image in (photo(), photo().flip(-1)))
    expected = {task: TASKS[task].kind.flip_values(values.flip(-1)) for task, values in maps.items()}
    assert_alike(mirrored, expected, atol=2e-4)  # resizing rounds to levels of 8 bits
    assert not torch.allclose(
        maps["depth"], Predictor(model=real["model"], image_processor=processor)([photo()])[0]["depth"]
    )


def test_scales_change_the_size_that_the_model_sees_and_undo_the_zoom_of_depth():
    class NearerWhereLarger(ConstantModel):
        def forward(self, pixel_values):
            self.sizes.append(tuple(pixel_values.shape[-2:]))
            outputs = super().forward(pixel_values)
            outputs.logits["depth"] = torch.full_like(outputs.logits["depth"], 2.0 * 83 / pixel_values.shape[-1])
            return outputs

    model = NearerWhereLarger()
    maps = Predictor(model=model, image_processor=AS_IT_IS, scales=(0.5, 1.0, 2.0))([photo(61, 83)])[0]
    assert sorted(model.sizes) == [(30, 42), (61, 83), (122, 166)]
    torch.testing.assert_close(maps["depth"], torch.full((61, 83), 2.0), rtol=0, atol=0.01)


def test_unit_vectors_and_probabilities_keep_their_rules(real):
    maps = Predictor(**real, tile=64, flip=True)([photo(90, 100)])[0]
    torch.testing.assert_close(maps["normal"].norm(dim=0), torch.ones(90, 100), rtol=0, atol=1e-5)
    for task in ("boundary", "saliency"):
        assert maps[task].min() >= 0 and maps[task].max() <= 1
    assert maps["depth"].min() >= 0 and maps["semseg"].dtype == torch.int64


def test_classes_that_a_flip_exchanges_change_places(monkeypatch):
    """Left hand and right hand, as a task of one's own may have them."""
    exchange = torch.tensor([0, 2, 1])
    hands = TaskSpec(
        name="hands",
        num_labels=3,
        kind=replace(CLASS_IDS, flip_values=lambda ids: exchange[ids]),
        loss=None,
    )
    monkeypatch.setitem(TASKS, "hands", hands)
    logits = torch.randn(3, 4, 5)
    ids = hands.kind.flip_values(logits.argmax(dim=0).flip(-1))
    torch.testing.assert_close(flip_logits("hands", logits).argmax(dim=0), ids)


@pytest.mark.parametrize(("length", "tile"), [(100, 30), (61, 60), (60, 60), (5, 60), (1000, 7)])
def test_tiles_cover_and_overlap(length, tile):
    overlap = tile // 4
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0 and max(starts) + tile >= length and starts == sorted(set(starts))
    assert all(after - before <= tile - overlap for before, after in zip(starts, starts[1:], strict=False))
    assert (tile_weights(tile, overlap) > 0).all() and tile_weights(tile, overlap).max() == 1


def test_half_precision_is_near(real):
    maps = Predictor(**real)([photo()])[0]
    state = real["model"].state_dict()
    half = SEMForMultiTaskDensePrediction(tiny_config(task_num_labels=WIDTHS)).eval()
    half.load_state_dict(state)
    half_maps = Predictor(model=half.to(torch.bfloat16), image_processor=real["image_processor"])([photo()])[0]
    assert half_maps["depth"].dtype == torch.float32
    assert_close = torch.testing.assert_close
    assert_close(half_maps["depth"], maps["depth"], rtol=0.1, atol=0.05)
    assert_close(half_maps["normal"].norm(dim=0), torch.ones(61, 83), rtol=0, atol=1e-4)


def test_nan_is_refused():
    model = PixelModel()
    model.weights["depth"][:] = float("nan")
    with pytest.raises(FloatingPointError, match=r"\['depth'\] are not, in torch.float32"):
        Predictor(model=model, image_processor=AS_IT_IS)([photo()])


def test_words_for_looks():
    assert parse_looks([]) == (False, (1.0,))
    assert parse_looks(["0.75", "flip", "1.25"]) == (True, (0.75, 1.0, 1.25))
    for word in ("flop", "0", "nan", "5"):
        with pytest.raises(ValueError, match=f"got '{word}'"):
            parse_looks([word])

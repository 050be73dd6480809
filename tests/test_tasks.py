"""The task table: its numbers, its label formats, its images, and a task of the user's own from training to image."""

from dataclasses import fields, replace
from io import BytesIO

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from transformers_sem import (
    METRICS,
    TASKS,
    Metric,
    MultiTaskMetric,
    SEMConfig,
    SEMForMultiTaskDensePrediction,
    SEMImageProcessor,
    TaskKind,
    TaskSpec,
    register_metric,
    register_task,
)
from transformers_sem.losses import INVALID_ID, l1
from transformers_sem.task_kinds import CLASS_IDS, METRES, PROBABILITY, UNIT_VECTORS
from transformers_sem.tasks import VARIANTS, get_task, register_variant, resize_label, to_label
from transformers_sem.visualization.panels import Prediction, prediction_panel

from .samples import random_labels, random_logits
from .tiny import tiny_config


ID_TASKS = ["semseg", "parsing", "saliency"]
NEAREST_TASKS = [task for task in TASKS if task != "normal"]


def assert_same(label, expected):
    torch.testing.assert_close(label, expected, rtol=0, atol=0, equal_nan=True)


# The numbers of the paper and of the recipe that it follows


@pytest.mark.parametrize(
    ("task", "num_labels", "loss_weight", "main", "lower_is_better"),
    [
        ("semseg", 40, 1, "miou", False),
        ("depth", 1, 1, "rmse", True),
        ("normal", 3, 10, "mean_error", True),
        ("boundary", 1, 50, "odsf", False),
        ("parsing", 7, 2, "miou", False),
        ("saliency", 2, 5, "maxf", False),
    ],
)
def test_published_numbers(task, num_labels, loss_weight, main, lower_is_better):
    spec = TASKS[task]
    assert (spec.name, spec.num_labels, spec.loss_weight) == (task, num_labels, loss_weight)
    assert (METRICS[task].main, METRICS[task].lower_is_better) == (main, lower_is_better)


@pytest.mark.parametrize("task", list(TASKS))
def test_invalid_is_255_for_ids_and_boundaries_and_nan_for_measurements(task):
    invalid_value = TASKS[task].kind.invalid_value
    assert np.isnan(invalid_value) if task in ("depth", "normal") else invalid_value == INVALID_ID


# Reading maps


IDS = np.array([[0, 1, 255], [1, 0, 1]])
DISTANCES = np.array([[0.0, 1.5, np.nan], [2.0, 9.9, 0.1]], dtype=np.float32)


@pytest.mark.parametrize("task", ID_TASKS)
@pytest.mark.parametrize(
    "value",
    [
        Image.fromarray(IDS.astype(np.uint8)),
        Image.fromarray(IDS.astype(np.uint8)).convert("P"),
        Image.fromarray(IDS.astype(np.int32)),
        IDS,
        IDS.astype(np.uint8),
        IDS.astype(np.uint16),
        IDS.astype(np.float32),
        IDS[None],
        IDS[..., None],
        torch.from_numpy(IDS),
        torch.from_numpy(IDS).to(torch.uint8),
    ],
    ids=["L", "P", "I", "int64", "uint8", "uint16", "float32", "1HW", "HW1", "tensor", "uint8 tensor"],
)
def test_ids_are_read(task, value):
    assert_same(to_label(task, value), torch.from_numpy(IDS))


def test_a_black_and_white_image_is_a_mask():
    mask = np.array([[True, False], [False, True]])
    assert to_label("saliency", Image.fromarray(mask)).tolist() == [[1, 0], [0, 1]]
    assert to_label("boundary", Image.fromarray(mask)).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    "value",
    [
        Image.fromarray(DISTANCES),
        DISTANCES,
        DISTANCES.astype(np.float64),
        DISTANCES[None],
        DISTANCES[..., None],
        torch.from_numpy(DISTANCES),
    ],
    ids=["F", "float32", "float64", "1HW", "HW1", "tensor"],
)
def test_metres_are_read_and_0_is_unknown(value):
    assert_same(to_label("depth", value), torch.tensor([[[np.nan, 1.5, np.nan], [2.0, 9.9, 0.1]]]))


@pytest.mark.parametrize(
    "value",
    [
        np.array([[2500, 0]], dtype=np.uint16),
        np.array([[2, 0]], dtype=np.uint8),
        torch.tensor([[2500, 0]]),
        np.array([[2500.0, 0.0]]),
        Image.fromarray(np.array([[2500, 0]], dtype=np.uint16)).convert("F"),  # as `datasets.Image(mode="F")` reads it
    ],
    ids=["uint16", "uint8", "int64", "float", "F"],
)
def test_other_units_than_metres_are_refused(value):
    with pytest.raises(ValueError, match=r"at most 1000; got .* up to 25?0?0?, which looks like millimetres\. Divide"):
        to_label("depth", value)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_integer_image_of_depth_is_refused(dtype):
    """Its unit is anybody's guess: millimetres would become kilometres."""
    with pytest.raises(ValueError, match="metres.*floating-point image"):
        to_label("depth", Image.fromarray(np.array([[3, 0], [7, 1]], dtype=dtype)))


def test_a_saliency_image_of_0_and_255_is_a_mask():
    mask = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    assert to_label("saliency", Image.fromarray(mask)).tolist() == [[0, 1], [1, 0]]
    assert to_label("saliency", Image.fromarray(mask).convert("P")).tolist() == [[0, 1], [1, 0]]
    assert to_label("saliency", Image.fromarray(np.full((1, 2), 255, dtype=np.uint8))).tolist() == [[255, 255]]


@pytest.mark.parametrize("task", ["saliency", "boundary"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_an_array_of_0_and_255_is_refused(task, dtype):
    with pytest.raises(ValueError, match="PIL image"):
        to_label(task, np.array([[0, 255], [255, 0]], dtype=dtype))
    assert to_label(task, np.array([[0, 1], [255, 0]], dtype=dtype if task == "saliency" else np.float32)).max() == 255


def test_images_of_maps_are_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = BytesIO()
    Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).save(buffer, "PNG", exif=exif)
    assert to_label("semseg", Image.open(buffer)).tolist() == [[0], [1], [2]]


def test_a_boundary_image_is_a_probability():
    levels = np.array([[0, 51], [128, 255]], dtype=np.uint8)
    assert_same(to_label("boundary", Image.fromarray(levels)), torch.from_numpy(levels / np.float32(255)))


def test_a_boundary_array_keeps_its_invalid_pixels():
    values = np.array([[0.0, 0.25], [1.0, 255.0]])
    assert_same(to_label("boundary", values), torch.from_numpy(values).float())


@pytest.mark.parametrize("channels", ["first", "last", "image"])
def test_normals_are_read_and_brought_to_unit_length(channels):
    levels = np.array([[[255, 128, 128], [128, 0, 128]], [[128, 128, 128], [200, 200, 30]]], dtype=np.uint8)
    vectors = levels / 255 * 2 - 1
    values = {"first": vectors.transpose(2, 0, 1), "last": vectors, "image": Image.fromarray(levels)}[channels]
    expected = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    expected[1, 0] = np.nan  # gray is the zero vector: unknown
    expected = torch.from_numpy(expected.transpose(2, 0, 1)).float()
    torch.testing.assert_close(to_label("normal", values), expected, equal_nan=True)


@pytest.mark.parametrize("task", list(TASKS))
def test_a_label_is_read_as_itself(task):
    label = random_labels(task, 1, (5, 7))[0]
    again = to_label(task, label)
    assert again.dtype == TASKS[task].dtype
    torch.testing.assert_close(again, label, equal_nan=True)


def test_reading_leaves_the_array_alone():
    values = DISTANCES.copy()
    to_label("depth", values).fill_(0)
    np.testing.assert_array_equal(values, DISTANCES)


def test_an_unknown_task_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown task 'flow'.*'boundary', 'depth'.*register_task"):
        to_label("flow", DISTANCES)


@pytest.mark.parametrize(
    "value",
    [
        "ids",
        {"a": 1},
        np.array([["a"]]),
        np.zeros((2, 2), complex),
        np.ma.masked_array(np.zeros((2, 2)), True),
        torch.zeros(2, 2, device="meta"),
        torch.zeros(2, 2).to_sparse(),
    ],
    ids=["text", "dict", "text array", "complex", "masked", "meta", "sparse"],
)
def test_what_is_no_map_of_numbers_is_refused(value):
    with pytest.raises(ValueError, match="A semseg map is an array or a dense tensor that holds numbers; got"):
        to_label("semseg", value)


def test_arrays_of_any_layout_are_read():
    for values in (IDS.astype(">i4"), IDS.astype(np.longdouble), np.asfortranarray(IDS), IDS[::-1][::-1]):
        assert_same(to_label("semseg", values), torch.from_numpy(IDS))


@pytest.mark.parametrize(
    ("task", "shape", "expected"),
    [
        ("semseg", (2, 4, 5), "semseg map has the shape (height, width); got (2, 4, 5)"),
        ("boundary", (4, 5, 3), "boundary map has the shape (height, width); got (4, 5, 3)"),
        ("depth", (4, 5, 3), "depth map has the shape (height, width); got (4, 5, 3)"),
        ("normal", (4, 5), "normal map has the shape (3, height, width); got (4, 5)"),
        ("normal", (4, 5, 4), "normal map has the shape (3, height, width); got (4, 5, 4)"),
        ("saliency", (5,), "saliency map has the shape (height, width); got (5,)"),
    ],
)
def test_a_wrong_shape_is_named(task, shape, expected):
    with pytest.raises(ValueError) as error:
        to_label(task, np.zeros(shape))
    assert expected in str(error.value)


BOUNDARY_LEVELS = np.array([[0, 51], [128, 255]], dtype=np.uint8)


@pytest.mark.parametrize(
    ("task", "values", "expected"),
    [
        ("semseg", [[0, 300]], "class ids from 0, 255 invalid; got values from 0 to 300"),
        ("semseg", [[0, -1]], "from -1 to 0"),
        ("parsing", [[0.0, 1.5]], "from 0.0 to 1.5"),
        ("semseg", [[0.0, np.nan]], "class ids"),
        ("saliency", [[0, 2]], "0 or 1, 255 invalid; got values from 0 to 2"),
        ("depth", [[-1.0, 2.0]], "metres >= 0, NaN invalid; got values from -1.0 to 2.0"),
        ("depth", [[0.0, np.inf]], "from 0.0 to inf"),
        ("boundary", [[0.0, 1.5]], "probabilities in [0, 1], 255 invalid; got values from 0.0 to 1.5"),
        ("boundary", [[0.0, np.nan]], "probabilities in [0, 1]"),
        ("boundary", BOUNDARY_LEVELS, "must be passed as a PIL image, not as its array"),
        ("normal", np.full((3, 2, 2), 200, dtype=np.uint8), "must be passed as a PIL image, not as its array"),
        (
            "normal",
            np.full((3, 2, 2), 1.5),
            "unit vectors (x right, y down, z forward), NaN invalid; got values from 1.5",
        ),
    ],
)
def test_values_out_of_range_are_named(task, values, expected):
    with pytest.raises(ValueError) as error:
        to_label(task, np.asarray(values))
    assert f"A {task} map holds" in str(error.value)
    assert expected in str(error.value)


def test_the_array_of_a_black_and_white_boundary_image_raises():
    """Its white would be read as 255, invalid, and every boundary would silently be lost."""
    with pytest.raises(ValueError, match="PIL image"):
        to_label("boundary", np.array([[0, 255], [255, 0]], dtype=np.uint8))


# Flips, zooms, resampling


@pytest.mark.parametrize("task", list(TASKS))
def test_flipped_twice_is_the_same(task):
    label, spec = random_labels(task, 1, (5, 8))[0], TASKS[task]
    once = spec.kind.flip_values(label.flip(-1))
    assert not torch.equal(once, label)
    assert_same(spec.kind.flip_values(once.flip(-1)), label)


def test_a_flip_mirrors_normals():
    right = torch.tensor([0.8, 0.6, 0.0]).view(3, 1, 1)
    assert_same(TASKS["normal"].kind.flip_values(right), torch.tensor([-0.8, 0.6, 0.0]).view(3, 1, 1))


@pytest.mark.parametrize("task", list(TASKS))
def test_a_zoom_brings_things_nearer_and_changes_nothing_else(task):
    label = random_labels(task, 1, (5, 8))[0]
    assert_same(TASKS[task].kind.zoom_values(label, 2.0), label / 2 if task == "depth" else label)


@pytest.mark.parametrize("task", list(TASKS))
def test_projection_keeps_what_the_task_allows(task):
    label, spec = random_labels(task, 1, (5, 8))[0], TASKS[task]
    torch.testing.assert_close(spec.kind.project_values(label), label, equal_nan=True)


def test_projection_brings_normals_to_unit_length():
    vectors = torch.tensor([[0.0, 0.0, 0.9], [0.6, 0.8, 0.0], [0.1, 0.1, 0.1]]).T.unsqueeze(-1)
    projected = TASKS["normal"].kind.project_values(vectors)
    expected = torch.tensor([[0.0, 0.0, 1.0], [0.6, 0.8, 0.0], [np.nan] * 3]).T.unsqueeze(-1)
    torch.testing.assert_close(projected, expected, equal_nan=True)


def nearest_indices(old, new):
    return np.floor((np.arange(new) + 0.5) * old / new).astype(int)


@pytest.mark.parametrize("size", [(6, 9), (31, 40), (12, 20), (7, 50)], ids=str)
@pytest.mark.parametrize("task", NEAREST_TASKS)
def test_nearest_labels_are_picked_from_pixel_centers(task, size):
    label = random_labels(task, 1, (12, 20))[0]
    rows, columns = nearest_indices(12, size[0]), nearest_indices(20, size[1])
    resized = resize_label(task, label, size)
    assert resized.dtype == label.dtype
    assert_same(resized, label[..., rows[:, None], columns])


@pytest.mark.parametrize("size", [(8, 8), (16, 32), (48, 48), (35, 21)], ids=str)
@pytest.mark.parametrize("task", list(TASKS))
def test_holes_neither_grow_nor_shrink(task, size):
    pixel = random_labels(task, 1, (1, 1), invalid_share=0)[0]
    label = pixel.expand(*pixel.shape[:-2], 16, 16).clone()
    label[..., 4:12, 4:12] = TASKS[task].kind.invalid_value
    resized = resize_label(task, label, size)
    hole = resized.isnan() | (resized == INVALID_ID)
    assert hole.float().mean() == pytest.approx(1 / 4, abs=0.03)


@pytest.mark.parametrize("size", [(8, 8), (48, 30)], ids=str)
def test_resized_normals_have_unit_length(size):
    normals = F.interpolate(random_labels("normal", 1, (4, 4), invalid_share=0), scale_factor=4)[0]
    normals[:, :5, :5] = torch.nan
    lengths = resize_label("normal", normals, size).norm(dim=0)
    valid = lengths.isfinite()
    torch.testing.assert_close(lengths[valid], torch.ones_like(lengths[valid]))
    assert 0.6 < valid.float().mean() < 0.95


def test_invalid_normals_do_not_tint_their_neighbors():
    normals = torch.zeros(3, 8, 8)
    normals[2] = -1
    normals[:, 2:6, 2:6] = torch.nan
    resized = resize_label("normal", normals, (20, 20))
    valid = resized.isfinite().all(dim=0)
    assert_same(resized[:, valid], torch.tensor([0.0, 0.0, -1.0])[:, None].expand(3, int(valid.sum())))


# Predictions and colors


@pytest.mark.parametrize("task", list(TASKS))
def test_predictions_are_in_physical_units(task):
    logits = 3 * random_logits(task, 2, (4, 5))
    prediction = TASKS[task].kind.predict(logits)
    assert prediction.shape == ((2, 3, 4, 5) if task == "normal" else (2, 4, 5))
    assert prediction.dtype == (torch.int64 if task in ("semseg", "parsing") else torch.float32)
    if task == "normal":
        torch.testing.assert_close(prediction.norm(dim=1), torch.ones(2, 4, 5))
    else:
        assert prediction.min() >= 0
    if task in ("boundary", "saliency"):
        assert prediction.max() <= 1


def test_probabilities_of_two_logits_and_of_one_agree():
    logits = torch.randn(1, 1, 4, 5)
    two_logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    torch.testing.assert_close(TASKS["saliency"].kind.predict(two_logits), TASKS["boundary"].kind.predict(logits))


@pytest.mark.parametrize("kind", ["prediction", "label"])
@pytest.mark.parametrize("task", list(TASKS))
def test_colors_are_an_rgb_image(task, kind):
    spec = TASKS[task]
    prediction, label = spec.kind.predict(random_logits(task, 1, (4, 5)))[0], random_labels(task, 1, (4, 5))[0]
    values = prediction if kind == "prediction" else label.reshape(prediction.shape)
    colors = spec.kind.colorize(values.numpy())
    assert (colors.shape, colors.dtype) == ((4, 5, 3), np.uint8)
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) > 1


# Images of the values


def read_back(task, values):
    """The encoding as another program reads it, from a PNG file."""
    file = BytesIO()
    TASKS[task].kind.encode(values).save(file, format="PNG")
    return Image.open(file)


@pytest.mark.parametrize("task", list(TASKS))
def test_the_encoding_of_a_prediction_is_a_image_of_its_size(task):
    prediction = TASKS[task].kind.predict(random_logits(task, 1, (4, 7)))[0]
    image = read_back(task, prediction.numpy())
    assert image.size == (7, 4)
    assert image.mode == {"depth": "I;16", "normal": "RGB", "boundary": "L", "saliency": "L"}.get(task, "P")


def test_ids_are_colored_as_everywhere():
    ids = np.arange(256).reshape(16, 16)
    image = read_back("semseg", ids)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), TASKS["semseg"].kind.colorize(ids))


def test_what_json_says_of_a_map():
    ids = np.array([[3, 3, 3], [0, 0, 7]])
    assert TASKS["semseg"].kind.describe(ids, {0: "wall", 3: "floor"}) == {
        "classes": [
            {"id": 3, "name": "floor", "pixels": 3, "fraction": 0.5},
            {"id": 0, "name": "wall", "pixels": 2, "fraction": 1 / 3},
            {"id": 7, "name": "7", "pixels": 1, "fraction": 1 / 6},
        ]
    }
    depth = np.array([[1.0, 2.0, 6.0]], dtype=np.float32)
    assert TASKS["depth"].kind.describe(depth, {}) == {"unit": "metres", "minimum": 1.0, "maximum": 6.0, "mean": 3.0}
    assert TASKS["saliency"].kind.describe(np.array([[0.0, 0.25, 0.75, 1.0]]), {})["likely_fraction"] == 0.5
    assert TASKS["normal"].kind.describe(np.array([[[0.0]], [[0.6]], [[-0.8]]]), {}) == {"mean": [0.0, 0.6, -0.8]}


@pytest.mark.parametrize("task", list(TASKS))
def test_the_mean_of_one_look_is_that_look(task):
    spec, logits = TASKS[task], random_logits(task, 2, (5, 6))
    torch.testing.assert_close(spec.kind.predict(spec.kind.prepare_mean(logits)), spec.kind.predict(logits))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
@pytest.mark.parametrize("task", ["semseg", "parsing"])
def test_encoded_ids_are_exact(task, dtype):
    ids = np.arange(256).reshape(16, 16)
    image = read_back(task, ids.astype(dtype))
    np.testing.assert_array_equal(np.asarray(image), ids)
    assert_same(to_label(task, image), torch.from_numpy(ids))


def test_encoded_depth_is_within_half_a_millimetre():
    depth = np.concatenate([np.linspace(0, 65.535, 397), [0.0004, 0.0006, 9.9999]]).astype(np.float32).reshape(20, 20)
    millimetres = np.asarray(read_back("depth", depth))
    assert millimetres.dtype == np.uint16
    np.testing.assert_allclose(millimetres / 1000, depth, atol=0.000505)
    assert millimetres[-1, -3:].tolist() == [0, 1, 10000]


def test_encoded_depth_ends_at_65_metres():
    depth = np.array([[65.534, 65.535, 65.6, 1e4, 0.0]], dtype=np.float32)
    assert np.asarray(read_back("depth", depth)).tolist() == [[65534, 65535, 65535, 65535, 0]]


@pytest.mark.parametrize("task", ["boundary", "saliency"])
def test_encoded_probabilities_are_truncated_8_bit_levels(task):
    levels = np.arange(256).reshape(16, 16)
    for offset in (0.0, 0.5, 0.9):
        probability = np.minimum((levels + offset) / 255, 1).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(read_back(task, probability)), levels)


def test_an_encoded_boundary_is_read_as_at_most_a_level_less():
    probability = torch.rand(30, 40)
    read = to_label("boundary", read_back("boundary", probability.numpy()))
    assert ((probability - read >= -1e-6) & (probability - read < 1 / 255)).all()


def test_encoded_normals_are_within_half_a_level():
    normals = TASKS["normal"].kind.predict(random_logits("normal", 1, (30, 40)))[0]
    image = read_back("normal", normals.numpy())
    components = np.asarray(image).transpose(2, 0, 1) / 255 * 2 - 1
    np.testing.assert_allclose(components, normals.numpy(), rtol=0, atol=1 / 255 + 1e-6)
    torch.testing.assert_close(to_label("normal", image), normals, rtol=0, atol=0.01)


def test_encoded_axes_have_the_colors_of_the_formula():
    axes = np.array([[1, 0, 0], [0, -1, 0], [0, 0, 1]], dtype=np.float32).reshape(3, 1, 3)
    assert np.asarray(read_back("normal", axes)).tolist() == [[[255, 128, 128], [128, 0, 128], [128, 128, 255]]]


# Tasks from user code


def l1_statistics(prediction, label, num_labels):
    valid = label.isfinite().all(dim=0)
    return {"error": (prediction - label)[:, valid].abs().sum() / num_labels, "num_valid": valid.sum()}


def l1_scores(statistics):
    return {"mean_absolute_error": (statistics["error"] / statistics["num_valid"].clamp(min=1)).item()}


def colorize_albedo(albedo):
    return np.nan_to_num(255 * albedo).astype(np.uint8).transpose(1, 2, 0)


REFLECTANCE = TaskKind(
    values="red, green and blue in [0, 1]",
    num_channels=3,
    value_range=(0, 1),
    predict=lambda logits: logits.float().clamp(0, 1),
    colorize=colorize_albedo,
)
ALBEDO = TaskSpec(name="albedo", kind=REFLECTANCE, num_labels=3, loss=l1, loss_weight=4.0)
ALBEDO_METRIC = Metric(statistics=l1_statistics, reduce=l1_scores, main="mean_absolute_error", lower_is_better=True)
TASK_NUM_LABELS = {"semseg": 5, "albedo": 3}


@pytest.fixture(params=[ALBEDO_METRIC, None], ids=["with metric", "without metric"])
def albedo(request):
    register_task(ALBEDO)
    if request.param:
        register_metric("albedo", request.param)
    yield ALBEDO
    TASKS.pop("albedo", None)
    METRICS.pop("albedo", None)


def albedo_batch(processor):
    """One image that shows its own albedo, with one unknown pixel, and classes by brightness."""
    colors = torch.linspace(0, 255, 40 * 60 * 3).reshape(40, 60, 3).to(torch.uint8).numpy()
    values = colors.astype(np.float32) / 255
    values[3, 4] = np.nan
    maps = {"semseg": colors[..., 0] // 64, "albedo": values}
    inputs = processor(Image.fromarray(colors), maps=maps, return_tensors="pt")
    return colors, {task: to_label(task, value) for task, value in maps.items()}, inputs


def train(model, inputs, num_steps):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(num_steps):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_a_task_of_ones_own_from_training_to_image(albedo, tmp_path):
    processor = SEMImageProcessor(size={"height": 32, "width": 64})
    colors, labels, inputs = albedo_batch(processor)
    assert inputs["labels"]["albedo"].shape == (1, 3, 32, 64)
    config = tiny_config(task_num_labels=TASK_NUM_LABELS)
    assert config.task_loss_weights == {"semseg": 1.0, "albedo": 4.0}

    model = SEMForMultiTaskDensePrediction(config).train()
    losses = train(model, inputs, num_steps=3)
    assert losses[-1] < losses[0]

    model.save_pretrained(tmp_path)
    reloaded = SEMForMultiTaskDensePrediction.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        outputs = reloaded(inputs["pixel_values"])
        torch.testing.assert_close(outputs.logits, dict(model.eval()(inputs["pixel_values"]).logits))
    maps = processor.post_process_dense_prediction(outputs, target_sizes=[(40, 60)])[0]
    assert maps["albedo"].shape == (3, 40, 60)
    assert 0 <= maps["albedo"].min() <= maps["albedo"].max() <= 1

    metric = MultiTaskMetric(TASK_NUM_LABELS)
    metric.add_batch(
        {task: [value] for task, value in maps.items()}, {task: [label] for task, label in labels.items()}
    )
    known = labels["albedo"].isfinite()
    expected = {"albedo/mean_absolute_error": (maps["albedo"] - labels["albedo"])[known].abs().mean().item()}
    scores = metric.compute()
    assert {key: scores[key] for key in scores if key.startswith("albedo")} == (
        pytest.approx(expected, rel=1e-4) if "albedo" in METRICS else {}
    )
    panel = prediction_panel([Prediction(torch.from_numpy(colors).permute(2, 0, 1), maps, labels)])
    assert panel.width > 3 * 224


def test_a_checkpoint_with_a_task_that_is_not_registered_says_so(tmp_path):
    register_task(ALBEDO)
    try:
        tiny_config(task_num_labels=TASK_NUM_LABELS).save_pretrained(tmp_path)
    finally:
        del TASKS["albedo"]
    with pytest.raises(ValueError, match=r"Unknown task 'albedo'.*register_task"):
        SEMConfig.from_pretrained(tmp_path)


def test_a_configuration_brings_its_variants(tmp_path):
    """Other classes under another name need no code of the user when the model is loaded."""
    register_variant("semseg_voc", "semseg")
    try:
        assert tiny_config().task_variants is None
        config = tiny_config(task_num_labels={"semseg": 3, "semseg_voc": 5})
        assert config.task_variants == {"semseg_voc": "semseg"}
        SEMForMultiTaskDensePrediction(config).save_pretrained(tmp_path)
        del TASKS["semseg_voc"], VARIANTS["semseg_voc"]
        model = SEMForMultiTaskDensePrediction.from_pretrained(tmp_path)
        assert model.config.task_variants == {"semseg_voc": "semseg"}
        assert TASKS["semseg_voc"].loss is TASKS["semseg"].loss
        logits = model(torch.zeros(1, 3, 32, 64)).logits
        assert logits["semseg_voc"].shape[1] == 5
        metric = MultiTaskMetric({"semseg_voc": 5})
        ids = torch.zeros(2, 2, dtype=torch.long)
        scores = metric.compute(predictions={"semseg_voc": [ids]}, references={"semseg_voc": [ids]})
        assert scores["semseg_voc/pixel_accuracy"] == 1
    finally:
        TASKS.pop("semseg_voc", None)
        VARIANTS.pop("semseg_voc", None)


def test_a_task_is_registered_once(albedo):
    assert get_task("albedo") is albedo
    with pytest.raises(ValueError, match="Task 'albedo' exists already"):
        register_task(albedo)


@pytest.mark.parametrize(
    "name", ["", "a.b", "a-b", "type", "training", "image", "loss", "depth_classes", "pixel_values"]
)
def test_names_that_modules_and_rows_have_are_refused(name):
    with pytest.raises(ValueError, match=f"got '{name}'. Choose another name"):
        register_task(replace(ALBEDO, name=name))
    assert name not in TASKS


def test_the_tasks_of_the_package_cannot_be_replaced():
    with pytest.raises(ValueError, match="Task 'depth' exists already"):
        register_task(TASKS["depth"])


def test_a_task_has_one_metric():
    with pytest.raises(ValueError, match="Task 'depth' has a metric already, 'rmse'"):
        register_metric("depth", ALBEDO_METRIC)
    with pytest.raises(ValueError, match=r"Unknown task 'albedo'.*register_task"):
        register_metric("albedo", ALBEDO_METRIC)


def test_there_are_four_kinds():
    kinds = {task: TASKS[task].kind for task in TASKS}
    assert kinds == {
        "semseg": CLASS_IDS,
        "depth": METRES,
        "normal": UNIT_VECTORS,
        "boundary": PROBABILITY,
        "parsing": CLASS_IDS,
        "saliency": PROBABILITY,
    }
    assert [field.name for field in fields(TaskSpec)] == [
        "name",
        "title",
        "kind",
        "num_labels",
        "loss",
        "loss_weight",
        "hub_task",
    ]

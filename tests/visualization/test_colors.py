"""Colors of maps, of invalid pixels, and of predictions and labels on a common scale; panels of them."""

import numpy as np
import pytest
import torch

from transformers_sem import TASKS
from transformers_sem.task_kinds import INVALID_COLOR, class_palette, colorize_depth
from transformers_sem.visualization.colors import colorize_map, colorize_maps
from transformers_sem.visualization.panels import (
    Prediction,
    VideoFrameRenderer,
    comparison_panel,
    draw_panel,
    prediction_panel,
)

from ..samples import invalid_labels, random_labels, random_logits


def test_the_palette_has_distinct_colors_for_64_classes():
    palette = class_palette()
    assert (palette.shape, palette.dtype) == ((256, 3), np.uint8)
    used = palette[[*range(64), 255]].astype(int)
    distances = np.abs(used[:, None] - used[None]).sum(axis=-1)
    assert distances[~np.eye(65, dtype=bool)].min() >= 8


@pytest.mark.parametrize("task", list(TASKS))
def test_invalid_pixels_have_their_own_color(task):
    label = random_labels(task, 1, (9, 9))[0]
    label[..., 2:4, 5:8] = invalid_labels(task, 1, (2, 3))[0]
    invalid = label.isnan() if label.is_floating_point() and task != "boundary" else label == 255
    invalid = invalid[0] if invalid.ndim == 3 else invalid
    values = label[0] if TASKS[task].kind.num_channels == 1 else label
    colors = TASKS[task].kind.colorize(values.numpy())
    assert ((colors == INVALID_COLOR).all(axis=-1) == invalid.numpy()).all()


@pytest.mark.parametrize("task", list(TASKS))
def test_a_map_without_a_valid_pixel_can_be_drawn(task):
    label = invalid_labels(task, 1, (3, 4))[0]
    values = label[0] if TASKS[task].kind.num_channels == 1 else label
    assert (TASKS[task].kind.colorize(values.numpy()) == INVALID_COLOR).all()


def test_near_is_brighter_than_far():
    brightness = colorize_depth(np.linspace(0.5, 8, 20)[None]).astype(int).sum(axis=-1)[0]
    assert (np.diff(brightness) <= 0).all()
    assert brightness[0] > brightness[-1]


def test_a_flat_wall_can_be_drawn():
    assert colorize_depth(np.full((3, 4), 2.5)).shape == (3, 4, 3)


@pytest.mark.parametrize("shape", [(1,), ()], ids=["with channel", "without channel"])
def test_a_depth_has_the_same_color_in_prediction_and_label(shape):
    """Even if the label contains a larger depth than the prediction."""
    prediction, label = torch.full((6, 8), 2.0), torch.full((*shape, 6, 8), 2.0)
    label[..., :2, :] = 9.0
    predicted, expected = colorize_maps("depth", [prediction, label])
    assert predicted.shape == expected.shape == (6, 8, 3)
    assert (predicted[3:] == expected[3:]).all()
    assert (predicted[:2] != expected[:2]).any()


@pytest.mark.parametrize("task", list(TASKS))
def test_maps_are_colored_together_as_alone(task):
    prediction, label = TASKS[task].kind.predict(random_logits(task, 1, (6, 8)))[0], random_labels(task, 1, (6, 8))[0]
    predicted, expected = colorize_maps(task, [prediction, label])
    assert predicted.shape == expected.shape == (6, 8, 3)
    alone = colorize_map(task, prediction)
    assert task == "depth" or (alone == predicted).all()


def test_a_panel_is_a_grid_of_cells_of_one_width():
    cells = [np.full((30, 60, 3), 255, dtype=np.uint8), None, np.zeros((30, 60, 3), dtype=np.uint8)]
    panel = draw_panel([cells, cells], ["first", "second"], ["a", "b", "c"], cell_width=100)
    pixels = np.asarray(panel)
    assert panel.width >= 3 * 100
    assert 2 * 50 <= panel.height <= 2 * 50 + 60
    assert (pixels == 0).all(axis=-1).sum() >= 2 * 100 * 50


def test_a_panel_has_a_row_for_the_labels():
    image = torch.zeros(3, 32, 48, dtype=torch.uint8)
    maps = {task: TASKS[task].kind.predict(random_logits(task, 1, (32, 48)))[0] for task in TASKS}
    labels = {task: random_labels(task, 1, (32, 48))[0] for task in TASKS}
    unlabeled = prediction_panel([Prediction(image, maps)])
    labeled = prediction_panel([Prediction(image, maps, labels)])
    assert unlabeled.width == labeled.width >= 7 * 224
    assert labeled.height - unlabeled.height == pytest.approx(224 * 32 / 48, abs=10)


def test_comparisons_have_a_row_for_each_model_and_one_for_the_labels():
    image = torch.zeros(3, 32, 48, dtype=torch.uint8)
    labels = {task: random_labels(task, 1, (32, 48))[0] for task in TASKS}
    maps = {task: TASKS[task].kind.predict(random_logits(task, 1, (32, 48)))[0] for task in TASKS}
    two = [Prediction(image, maps, labels)] * 2
    panel = comparison_panel({"first": two, "second": two})
    single = prediction_panel(two)
    assert panel.width == single.width
    assert panel.height / single.height == pytest.approx(3 / 2, rel=0.02)
    cells = np.asarray(panel)[28:]
    height = 149 + 6  # of 224 x 149 and a gap
    assert (cells[:149, 224 + 134 :] == cells[height : height + 149, 224 + 134 :]).all()  # the same maps
    assert (cells[:149, 128:352] == 0).all() and (cells[height : height + 149, 128:352] == 255).all()


def test_colors_of_a_video_do_not_flicker():
    """The color scale adapts to a nearer scene over several seconds."""
    far, near = torch.linspace(1, 9, 64 * 48).reshape(48, 64), torch.linspace(1, 3, 64 * 48).reshape(48, 64)
    image, renderer = torch.zeros(3, 48, 64, dtype=torch.uint8), VideoFrameRenderer()
    renderer.render(Prediction(image, {"depth": far}))
    frame = renderer.render(Prediction(image, {"depth": near}))
    alone = VideoFrameRenderer().render(Prediction(image, {"depth": near}))
    far_end = (slice(44, 48), slice(70, 126))  # darkest of its own frame, not of both
    assert frame[far_end].mean() > alone[far_end].mean() + 50
    for _ in range(5 * 25):
        frame = renderer.render(Prediction(image, {"depth": near}))
    assert abs(frame[far_end].astype(int) - alone[far_end]).max() < 6


def test_a_very_high_image_does_not_make_a_very_high_panel():
    panel = draw_panel([[np.zeros((1024, 1, 3), np.uint8)], [np.zeros((1, 1024, 3), np.uint8)]], ["a", "b"], ["image"])
    assert panel.height < 1200

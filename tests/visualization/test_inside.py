"""Images of deformed points, stage weights and responsibilities."""

import numpy as np
import pytest
import torch
from PIL import ImageColor

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.visualization import inside
from transformers_sem.visualization.inside import (
    STAGE_COLORS,
    draw_assignment,
    draw_hierarchy,
    draw_legend,
    draw_points,
    inside_panel,
)
from transformers_sem.visualization.panels import draw_panel

from ..tiny import tiny_config


GRAY = np.full((40, 60, 3), 100, dtype=np.uint8)
COLORS = [ImageColor.getrgb(color) for color in STAGE_COLORS]


def pixel_at(image, y, x):
    """Returns the color at a point in [-1, 1]."""
    height, width = image.shape[:2]
    return tuple(image[int((y + 1) / 2 * height), int((x + 1) / 2 * width)])


def test_points_are_drawn_where_they_are():
    points = torch.tensor([[-0.5, 0.25], [0.8, -0.9], [0.0, 1.2]])  # the last is in the padding
    drawn = draw_points(GRAY, points, stages=torch.tensor([0, 3, 1]), areas=torch.tensor([0.5, 0.5, 0.5]))
    assert drawn.shape == (160, 240, 3)
    assert pixel_at(drawn, -0.5, 0.25) == COLORS[0]
    assert pixel_at(drawn, 0.8, -0.9) == COLORS[3]
    assert not (drawn == COLORS[1]).all(axis=-1).any()
    assert pixel_at(drawn, 0.8, 0.9) == (100, 100, 100)


def test_the_area_of_a_dot_is_proportional_to_its_weight():
    areas = [
        (draw_points(GRAY, torch.zeros(1, 2), torch.tensor([2]), torch.tensor([area])) == COLORS[2]).all(axis=-1).sum()
        for area in (0.25, 1.0)
    ]
    assert areas[1] == pytest.approx(4 * areas[0], rel=0.1)


def test_points_are_colored_by_their_own_and_by_the_heaviest_stage():
    points = (torch.tensor([[[-0.5, -0.5]]]), torch.tensor([[[0.5, 0.5]]]))
    stage_weights = torch.tensor([[[0.1, 0.9], [0.3, 0.7]]])
    placed, weighed = draw_hierarchy(GRAY, points, stage_weights)
    assert [pixel_at(placed, *point) for point in ((-0.5, -0.5), (0.5, 0.5))] == COLORS[:2]
    assert [pixel_at(weighed, *point) for point in ((-0.5, -0.5), (0.5, 0.5))] == [COLORS[1]] * 2


def test_positions_of_one_basis_share_a_color():
    responsibilities = torch.zeros(3, 2, 2)
    responsibilities[0, 0], responsibilities[1, 1, 0], responsibilities[2, 1, 1] = 1, 1, 1
    drawn = draw_assignment(GRAY, responsibilities)
    corners = [pixel_at(drawn, y, x) for y, x in ((-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5))]
    assert corners[0] == corners[1]
    assert len(set(corners)) == 3


def test_a_legend_names_every_stage():
    panel = draw_panel([[GRAY]], ["row"], ["column"])
    pixels = np.asarray(draw_legend(panel, 3))
    assert pixels.shape[0] > panel.height
    shown = [(pixels[panel.height :] == color).all(axis=-1).any() for color in COLORS]
    assert shown == [True, True, True, False]


@pytest.mark.parametrize(
    ("overrides", "num_columns"),
    [({}, 9), ({"inter_task_stages": 1}, 6), ({"use_intra_task": False}, 7), ({"use_decoder": False}, 3)],
    ids=str,
)
def test_every_configuration_of_the_ablation_has_a_panel(overrides, num_columns):
    model = SEMForMultiTaskDensePrediction(tiny_config(**overrides)).eval()
    processor = SEMImageProcessor(size={"height": 64, "width": 96})
    panel = inside_panel(model, processor, torch.randint(256, (3, 50, 70), dtype=torch.uint8))
    assert panel.width == 128 + num_columns * (224 + 6)
    assert np.asarray(panel).std() > 10


def test_predictions_are_drawn_as_large_as_the_image_that_the_model_receives(monkeypatch):
    model = SEMForMultiTaskDensePrediction(tiny_config()).eval()
    size, pad_size = {"height": 64, "width": 96}, {"height": 200, "width": 300}
    processor = SEMImageProcessor(size=size, do_resize=True, do_pad=True, pad_size=pad_size)
    image = torch.randint(256, (3, 190, 280), dtype=torch.uint8)
    drawn = {}
    monkeypatch.setattr(inside, "colorize_map", lambda task, values: drawn.update({task: values}) or GRAY)
    inside_panel(model, processor, image)
    with torch.no_grad():
        logits = model(**processor(image, return_tensors="pt")).logits["depth"]
    expected = torch.nn.functional.interpolate(logits, size=(64, 96), mode="bilinear")[0, 0].clamp(min=0)
    torch.testing.assert_close(drawn["depth"], expected)

import json
import sys

import numpy as np
import pytest
from PIL import Image

from transformers_sem.training.curves import plot_curves, points_of, save_curves
from transformers_sem.utils.extras import MissingExtraError


def loss_entry(step, loss, **losses):
    return {"step": step, "loss": loss, "losses": losses, "learning_rate": 1e-3 / step, "skipped_steps": 0}


HISTORY = [
    loss_entry(10, 3.0, depth=1.0, semseg=2.0),
    {"step": 10, "scores": {"depth/rmse": 0.9, "semseg/miou": 0.2, "semseg/pixel_accuracy": 0.4}},
    loss_entry(20, 2.0, depth=0.5, semseg=1.5),
    {"step": 20, "scores": {"depth/rmse": 0.7, "semseg/miou": 0.3, "semseg/pixel_accuracy": 0.5}},
]


def curves_of(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def test_losses_learning_rate_and_main_scores_are_drawn():
    figure = plot_curves(HISTORY)
    losses, rates, depth, semseg = figure.axes
    assert curves_of(losses) == {
        "total": ([10, 20], [3.0, 2.0]),
        "depth": ([10, 20], [1.0, 0.5]),
        "semseg": ([10, 20], [2.0, 1.5]),
    }
    assert losses.get_yscale() == "log"
    assert rates.get_title() == "learning rate"
    assert [*curves_of(rates).values()] == [([10, 20], [1e-4, 5e-5])]
    assert depth.get_title() == "validation depth/rmse ↓"
    assert [*curves_of(depth).values()] == [([10, 20], [0.9, 0.7])]
    assert semseg.get_title() == "validation semseg/miou ↑"
    assert [*curves_of(semseg).values()] == [([10, 20], [0.2, 0.3])]


def test_values_that_cannot_be_drawn_are_left_out():
    history = [
        loss_entry(1, None, depth=None),
        loss_entry(2, 1e300, depth=float("inf")),
        loss_entry(3, float("nan"), depth=2.0),
        {"step": 3, "scores": {}},
        {"step": 4, "scores": {"depth/rmse": 1.0}},
    ]
    assert points_of(history, ["loss"]) == []
    assert points_of(history, ["losses", "depth"]) == [(3, 2.0)]
    assert points_of(history, ["scores", "depth/rmse"]) == [(4, 1.0)]
    plot_curves(history)


@pytest.mark.parametrize("history", [[], HISTORY[:1], HISTORY[1:2], HISTORY], ids=len)
def test_a_run_has_curves_at_any_time(tmp_path, history):
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history))
    save_curves(tmp_path)
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 1000 and len(np.unique(np.asarray(image.convert("L")))) > 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "history.jsonl"]


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib.*transformers-sem\[train\]"):
        save_curves(tmp_path)
    assert list(tmp_path.iterdir()) == []

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.ablation.figures import Features, collect_features, plot_features, plot_settings, save_figure
from transformers_sem.data.scenes import render_scene

from ..tiny import tiny_config


def row(mean, std):
    return {"scores": {"semseg/miou": {"mean": mean, "std": std}, "depth/rmse": {"mean": 1.0, "std": std}}}


@pytest.mark.slow
def test_a_setting_is_a_column_and_a_task_is_a_line(tmp_path):
    panels = {
        "ES, stages": {0: row(0.1, None), 1: row(0.3, 0.05)},
        "R, iterations": {1: row(0.2, 0.1), 2: {"scores": {}}},
    }
    figure = plot_settings(panels)
    axes = figure.axes
    assert len(axes) == 4
    assert [ax.get_ylabel() for ax in axes[::2]] == ["semseg/miou ↑", "depth/rmse ↓"]
    assert [ax.get_xlabel() for ax in axes[2:]] == ["ES, stages", "R, iterations"]
    places, values = axes[0].lines[0].get_data()
    assert (list(places), list(values)) == ([0, 1], [0.1, 0.3])
    assert list(axes[1].lines[0].get_xdata()) == [1]
    save_figure(figure, tmp_path / "fig6.png")
    assert [path.name for path in tmp_path.iterdir()] == ["fig6.png"]


def test_nothing_trained_yet_is_an_empty_plot():
    assert len(plot_settings({"ES": {0: {"scores": {}}}, "DS": {0: {"scores": {}}}}).axes) == 2


def test_features_are_those_of_labeled_pixels_and_the_same_of_each_class():
    model = SEMForMultiTaskDensePrediction(tiny_config(task_num_labels={"semseg": 12}))
    image_processor = SEMImageProcessor(size={"height": 32, "width": 64}, do_resize=False)
    scene = render_scene(0, 32, 64)
    scene["semseg"][:] = 3
    scene["semseg"][:, 32:] = 5
    scene["semseg"][:8] = 255
    rows = [{"image": Image.fromarray(scene["image"]), "semseg": Image.fromarray(scene["semseg"])}]
    features = collect_features(model, image_processor, rows, "semseg")
    assert features.states.shape == (2 * 6 * 8, 8)  # 24 of 32 rows, at a quarter of the size
    assert np.unique(features.ids, return_counts=True)[1].tolist() == [48, 48]
    inputs = image_processor([scene["image"]], return_tensors="pt")
    with torch.no_grad():
        states = model.sem(inputs["pixel_values"]).task_hidden_states["semseg"][0]
    left = states[:, 2:, :8].flatten(1).T.numpy()
    assert {state.tobytes() for state in features.states[features.ids == 3]} == {state.tobytes() for state in left}


@pytest.mark.slow
def test_features_that_separate_have_the_larger_silhouette():
    pytest.importorskip("sklearn", reason="the extra `train` is not installed")
    ids = np.repeat([4, 9], 20)
    noise = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    features = {"apart": Features(noise + 9 * ids[:, None], ids), "mixed": Features(noise, ids)}
    figure = plot_features(features, {4: "chair"})
    apart, mixed = (float(ax.get_title().rsplit(" ", 1)[1]) for ax in figure.axes)
    assert apart > 0.5 > abs(mixed)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["chair", "9"]

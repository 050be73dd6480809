"""The folder of an export: agreement with the model, scores of a graph, images for the calibration."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.data.benchmarks import get_benchmark
from transformers_sem.evaluation.config import EvaluationConfig
from transformers_sem.modeling_outputs import SEMMultiTaskOutput


pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")

from transformers_sem.export import folder
from transformers_sem.export.graph import Graph, graph_scores, load_scored_rows

from ..tiny import tiny_config
from .graphs import export_biases, save_constant_logits


@pytest.fixture
def graph(tmp_path):
    """Says 2 m everywhere."""
    return Graph(
        save_constant_logits(tmp_path / "model.onnx", {"depth": [2.0]}), tiny_config(task_num_labels={"depth": 1})
    )


def constant_model(value):
    """A model in the place of ours, which predicts one depth."""

    def model(images):
        logits = torch.full((len(images), 1, images.shape[-2] // 4, images.shape[-1] // 4), value)
        return SEMMultiTaskOutput(logits={"depth": logits})

    model.config = SimpleNamespace(backbone_config=SimpleNamespace(num_channels=3))
    return model


def test_a_float32_graph_agrees_with_the_model(graph):
    sizes = [(32, 48), (16, 20)]
    differences = folder.compare("fp32", constant_model(2.0005), graph, sizes)
    assert list(differences) == ["32 x 48", "16 x 20"]
    assert list(differences.values()) == pytest.approx([5e-4, 5e-4], abs=1e-6)
    with pytest.raises(ValueError, match="must agree with the model to 0.001; on 32 x 48 pixels"):
        folder.compare("fp32", constant_model(2.01), graph, sizes)
    assert folder.compare("int8", constant_model(2.01), graph, sizes)["32 x 48"] == pytest.approx(0.01, abs=1e-5)


@pytest.mark.parametrize(
    ("do_resize", "do_pad", "content_size"),
    [(False, True, (40, 32)), (True, True, (40, 60)), (True, False, (40, 60)), (False, False, (40, 60))],
)
def test_a_graph_of_one_size_sees_images_as_the_model_does(do_resize, do_pad, content_size):
    image_processor = SEMImageProcessor(do_resize=do_resize, do_pad=do_pad)
    folder.set_size(image_processor, {"height": 40, "width": 60})
    assert image_processor.plan_sizes([(100, 80)]) == ([content_size], [(40, 60)])
    smaller = image_processor.plan_sizes([(30, 50)])
    assert smaller == ([(40, 60)] if do_resize else [(30, 50)] if do_pad else [(40, 60)], [(40, 60)])


def test_a_graph_that_is_too_small_for_the_images_of_the_training_is_warned_of(caplog):
    for size in ((40, 60), (39, 70)):
        image_processor = SEMImageProcessor(do_resize=False, do_pad=True, pad_size={"height": 40, "width": 60})
        folder.set_size(image_processor, dict(zip(("height", "width"), size, strict=True)))
        assert image_processor.plan_sizes([(10, 20)]) == ([(10, 20)], [size])
    (record,) = caplog.records
    assert "up to 40 x 60 pixels; larger ones than --size 39 70 are shrunk" in record.getMessage()


def test_a_graph_of_nan_is_refused(tmp_path):
    config = tiny_config(task_num_labels={"depth": 1})
    graph = Graph(save_constant_logits(tmp_path / "model.onnx", {"depth": [np.nan]}), config)
    for name, rule in (("fp32", "must agree"), ("fp16", "must predict finite logits")):
        with pytest.raises(ValueError, match=rule):
            folder.compare(name, constant_model(2.0), graph, [(32, 48)])


def test_images_that_the_graph_cannot_take_are_named(graph):
    with pytest.raises(ValueError, match="cannot run the graph on 8 x 12 pixels"):
        graph(torch.zeros(1, 1, 8, 12))


def test_the_scores_of_a_graph_are_those_of_its_predictions(graph):
    settings = {"num_train": 1, "num_validation": 3, "height": 32, "width": 64}
    config = EvaluationConfig(dataset="scenes", dataset_kwargs=settings, num_evaluation_images=2)
    model = SEMForMultiTaskDensePrediction(tiny_config(task_num_labels={"depth": 1}))
    benchmark, rows = load_scored_rows(model, config)
    assert len(rows) == 2
    scores = graph_scores(graph, SEMImageProcessor(do_resize=False), benchmark, rows)
    depth = np.concatenate([np.ravel(rows[index]["depth"]) for index in range(2)])
    expected = np.sqrt(np.square(depth - 2)[np.isfinite(depth)].mean())
    assert scores["depth/rmse"] == pytest.approx(expected, rel=1e-4)


def test_classes_are_scored_by_their_names(tmp_path):
    """A model that says one class everywhere has its scores, whatever the id of the class in the model."""
    names = get_benchmark("scenes").class_names["semseg"]
    settings = {"num_train": 1, "num_validation": 1, "height": 32, "width": 64}
    config, scores = EvaluationConfig(dataset="scenes", dataset_kwargs=settings), []
    for order in (names, [*names[1:], names[0]]):
        model = SEMForMultiTaskDensePrediction(
            tiny_config(task_num_labels={"semseg": len(names)}, task_id2label={"semseg": dict(enumerate(order))})
        )
        model.heads["semseg"].classifier.bias.data.copy_(torch.tensor([float(name == names[0]) for name in order]))
        benchmark, rows = load_scored_rows(model, config)
        assert model.config.class_names("semseg") == names
        export_biases(model, tmp_path / "model.onnx", None)
        graph = Graph(tmp_path / "model.onnx", model.config)
        scores.append(graph_scores(graph, SEMImageProcessor(do_resize=False), benchmark, rows))
    assert scores[0] == scores[1] and scores[0]["semseg/pixel_accuracy"] > 0


def test_calibration_images_are_what_the_processor_returns(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "MAX_CALIBRATION_IMAGES", 2)
    with pytest.raises(ValueError, match="has no files"):
        folder.read_calibration_images(tmp_path, SEMImageProcessor())
    for name in ("b.png", "a.png", "c.png", ".hidden"):
        Image.new("RGB", (20, 10), (255, 0, 0)).save(tmp_path / name, format="PNG")
    images = folder.read_calibration_images(tmp_path, SEMImageProcessor(size={"height": 32, "width": 48}))
    assert [(image.shape, image.dtype) for image in images] == [((1, 3, 32, 48), np.float32)] * 2
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(ValueError, match=r"a\.png"):
        folder.read_calibration_images(tmp_path, SEMImageProcessor())

"""One checkpoint of six tasks in the pipelines and Auto classes that transformers has for one task."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForNormalEstimation,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    Pipeline,
    pipeline,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.modeling_outputs import DepthEstimatorOutput, SemanticSegmenterOutput
from transformers.pipelines import PIPELINE_REGISTRY

import transformers_sem
from transformers_sem import (
    MultiTaskDensePredictionPipeline,
    SEMConfig,
    SEMForDepthEstimation,
    SEMForMultiTaskDensePrediction,
    SEMForNormalEstimation,
    SEMForSemanticSegmentation,
    SEMImageProcessor,
    SEMModel,
)

from .conftest import REPOSITORY
from .tiny import tiny_config


CLASSES = {0: "floor", 1: "table", 2: "lamp"}
PARTS = {id: f"part {id}" for id in range(5)}
WIDTHS = {"depth": 1, "semseg": 3, "parsing": 5, "normal": 3, "boundary": 1, "saliency": 2}
SIZES = [(50, 70), (64, 90), (30, 30)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    names = {"semseg": CLASSES, "parsing": PARTS}
    config = tiny_config(
        task_num_labels=WIDTHS, task_id2label=names, use_decoder=False
    )  # few tensors, which load fast
    model = SEMForMultiTaskDensePrediction(config).eval()
    model.heads["depth"].classifier.bias.data.fill_(4.0)  # depth above 0 everywhere, as of a trained model
    return model


@pytest.fixture(scope="module")
def processor():
    return SEMImageProcessor(size={"height": 64, "width": 96})


@pytest.fixture(scope="module")
def checkpoint(model, processor, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("checkpoint"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)) for size in SIZES]


@pytest.fixture(scope="module")
def expected(model, processor, images):
    """What the model predicts for all tasks, image by image."""
    predict = MultiTaskDensePredictionPipeline(model=model, image_processor=processor)
    return [result["predictions"] for result in predict(images)]


def test_image_segmentation_names_the_classes_of_the_first_task_of_class_ids(checkpoint, images, expected):
    segment = pipeline("image-segmentation", model=checkpoint, device="cpu")
    for segments, size, prediction in zip(segment(images, batch_size=3), SIZES, expected, strict=True):
        ids = np.full(size, 255)
        for segment in segments:
            ids[np.array(segment["mask"]) == 255] = segment_id(CLASSES, segment["label"])
        assert (ids == prediction["semseg"].numpy()).mean() > 0.999  # a batch rounds otherwise


def test_a_configuration_does_not_turn_the_outputs_into_tuples(checkpoint, images, expected, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    backbone = {**config["backbone_config"], "return_dict": False}
    (folder / "config.json").write_text(json.dumps({**config, "backbone_config": backbone, "return_dict": False}))
    depth = pipeline("depth-estimation", model=str(folder), device="cpu")(images[0])["predicted_depth"]
    torch.testing.assert_close(depth, expected[0]["depth"], rtol=0, atol=1e-4)
    assert pipeline("image-segmentation", model=str(folder), device="cpu")(images[0])
    assert SEMConfig.from_pretrained(folder, return_dict=False).return_dict is False  # a caller may ask for tuples


def segment_id(names, label):
    return next(id for id, name in names.items() if name == label)


def test_another_task_can_be_put_first(checkpoint, images):
    segment = pipeline("image-segmentation", model=checkpoint, model_kwargs={"first_task": "parsing"})
    labels = {segment["label"] for segment in segment(images[0])}
    assert labels and labels <= set(PARTS.values())
    assert segment.model.config.tasks == ["parsing", *(task for task in WIDTHS if task != "parsing")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_depth_estimation_gives_metres_and_a_picture(dtype, checkpoint, images, expected):
    estimate = pipeline("depth-estimation", model=checkpoint, dtype=dtype)
    assert estimate.model.dtype == dtype
    for result, image, prediction in zip(estimate(images, batch_size=2), images, expected, strict=True):
        assert result["depth"].size == image.size
        tolerance = 1e-4 if dtype == torch.float32 else 0.5
        torch.testing.assert_close(result["predicted_depth"], prediction["depth"], rtol=0, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_both_pipelines_on_a_gpu(dtype, checkpoint, images, expected):
    segment, estimate = (
        pipeline(name, model=checkpoint, device="cuda", dtype=dtype)
        for name in ("image-segmentation", "depth-estimation")
    )
    assert segment.model.device.type == "cuda" and segment.model.dtype == dtype
    for segments, result, prediction in zip(segment(images), estimate(images, batch_size=3), expected, strict=True):
        assert {segment["label"] for segment in segments} <= set(CLASSES.values())
        torch.testing.assert_close(result["predicted_depth"].cpu(), prediction["depth"], rtol=0, atol=0.5)


def test_every_auto_class_loads_the_same_weights(checkpoint, model, processor, images, expected):
    classes = {
        AutoModel: SEMModel,
        AutoModelForDepthEstimation: SEMForDepthEstimation,
        AutoModelForNormalEstimation: SEMForNormalEstimation,
        AutoModelForSemanticSegmentation: SEMForSemanticSegmentation,
        AutoModelForUniversalSegmentation: SEMForMultiTaskDensePrediction,
    }
    inputs, prediction = processor(images[0], return_tensors="pt"), expected[0]
    loaded = {auto_class: auto_class.from_pretrained(checkpoint) for auto_class in classes}
    assert {auto_class: type(model) for auto_class, model in loaded.items()} == classes
    weights = model.state_dict()
    for auto_class in list(classes)[1:]:
        state = loaded[auto_class].state_dict()
        assert state.keys() == weights.keys() and all(torch.equal(state[name], weights[name]) for name in state)
    with torch.no_grad():
        depth, normal, segmentation = (loaded[auto_class](**inputs) for auto_class in list(classes)[1:4])
    assert isinstance(depth, DepthEstimatorOutput) and depth.predicted_depth.shape == (1, 2, 3)
    assert isinstance(segmentation, SemanticSegmenterOutput) and segmentation.logits.shape == (1, 3, 2, 3)
    assert normal.normals.shape == (1, 3, 2, 3)
    size = [SIZES[0]]
    (ids,) = processor.post_process_semantic_segmentation(segmentation, target_sizes=size)
    torch.testing.assert_close(ids, prediction["semseg"])
    (maps,) = processor.post_process_depth_estimation(depth, target_sizes=size)
    torch.testing.assert_close(maps["predicted_depth"], prediction["depth"])
    (maps,) = processor.post_process_normal_estimation(normal, target_sizes=size)
    torch.testing.assert_close(maps["normals"], prediction["normal"])


def test_one_output_of_all_tasks_suits_every_post_processing(model, processor, images, expected):
    with torch.no_grad():
        outputs = model(**processor(images[:1], return_tensors="pt"))
    sizes = SIZES[:1]
    assert torch.equal(processor.post_process_semantic_segmentation(outputs, sizes)[0], expected[0]["semseg"])
    depth, normals = (
        process(outputs, sizes)[0]
        for process in (processor.post_process_depth_estimation, processor.post_process_normal_estimation)
    )
    assert torch.equal(depth["predicted_depth"], expected[0]["depth"])
    assert torch.equal(normals["normals"], expected[0]["normal"])


def test_a_post_processing_of_another_task_is_refused(checkpoint, processor, images):
    segmentation = AutoModelForSemanticSegmentation.from_pretrained(checkpoint)
    outputs = segmentation(**processor(images[:1], return_tensors="pt"))
    with pytest.raises(ValueError, match=r"\['logits'\].*SEMForMultiTaskDensePrediction"):
        processor.post_process_dense_prediction(outputs)
    with pytest.raises(ValueError, match="`predicted_depth`.*metres.*'normals'"):
        processor.post_process_depth_estimation({"normals": torch.zeros(1, 3, 4, 4)})


def test_labels_of_one_task_give_its_loss(model, checkpoint):
    pixel_values = torch.randn(2, 3, 64, 96)
    labels = {"semseg": torch.randint(3, (2, 64, 96)), "depth": torch.rand(2, 1, 64, 96)}
    for model_class, task in ((SEMForSemanticSegmentation, "semseg"), (SEMForDepthEstimation, "depth")):
        one = model_class.from_pretrained(checkpoint)
        expected = model(pixel_values, labels={task: labels[task]}).loss
        torch.testing.assert_close(one(pixel_values, labels=labels[task].squeeze(1)).loss, expected)
        assert len(one(pixel_values, return_dict=False)) == 1


def test_a_model_without_such_a_task_is_refused():
    with pytest.raises(ValueError, match=r"SEMForDepthEstimation returns metres.*\['semseg'\].*SEMForMultiTask"):
        SEMForDepthEstimation(tiny_config(task_num_labels={"semseg": 3}))
    with pytest.raises(ValueError, match=r"`first_task`.*\['semseg'\]; got 'depth'"):
        tiny_config(task_num_labels={"semseg": 3}, first_task="depth")


def test_the_pipeline_of_all_tasks_refuses_a_model_of_one(checkpoint, processor):
    with pytest.raises(ValueError, match="SEMForDepthEstimation.*SEMForMultiTaskDensePrediction"):
        MultiTaskDensePredictionPipeline(
            model=SEMForDepthEstimation.from_pretrained(checkpoint), image_processor=processor
        )


def test_the_pipeline_of_all_tasks_predicts_in_evaluation_mode(processor, images):
    """A model that has been trained is in training mode, where every forward pass moves the bases."""
    trained = SEMForMultiTaskDensePrediction(tiny_config(task_num_labels={"depth": 1, "semseg": 3}))
    predict = MultiTaskDensePredictionPipeline(model=trained, image_processor=processor)
    before = {name: value.clone() for name, value in trained.named_buffers()}
    trained.train()
    first, second = (predict(images[0])["predictions"] for _ in range(2))
    assert all(torch.equal(first[task], second[task]) for task in first)
    assert all(torch.equal(value, before[name]) for name, value in trained.named_buffers())


# ----------------------------------------------------------------------------------------------------------------------
# Number and names of the classes


@pytest.mark.parametrize(
    ("standard", "names"),
    [
        ({"num_labels": 7}, None),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}, {0: "a", 1: "b"}),
        ({"label2id": {"a": 0, "b": 1}, "num_labels": 2}, {0: "a", 1: "b"}),
        ({"num_labels": 2, "first_task": "parsing"}, None),
    ],
)
def test_standard_arguments_reach_the_head(standard, names, checkpoint):
    loaded = AutoModelForSemanticSegmentation.from_pretrained(checkpoint, **standard, ignore_mismatched_sizes=True)
    task, config = standard.get("first_task", "semseg"), loaded.config
    width = standard.get("num_labels", 2)
    assert loaded.heads[task].classifier.out_channels == width == config.num_labels
    assert config.task_num_labels == {**WIDTHS, task: width} and config.task_id2label.get(task) == names
    assert config.id2label == names or names is None and config.id2label == {id: f"LABEL_{id}" for id in range(width)}
    other = "parsing" if task == "semseg" else "semseg"
    assert config.task_id2label[other] == {"semseg": CLASSES, "parsing": PARTS}[other]


def test_standard_arguments_of_a_new_configuration(tmp_path):
    config = tiny_config(id2label={0: "a", 1: "b"})
    assert (config.task_num_labels["semseg"], config.task_id2label) == (2, {"semseg": {0: "a", 1: "b"}})
    config.save_pretrained(tmp_path)
    for reloaded in (AutoConfig.from_pretrained(tmp_path), SEMConfig.from_dict(config.to_dict())):
        assert (reloaded.id2label, reloaded.label2id) == ({0: "a", 1: "b"}, {"a": 0, "b": 1})
        assert (reloaded.task_num_labels, reloaded.task_id2label) == (config.task_num_labels, config.task_id2label)
    assert tiny_config(num_labels=7).task_num_labels["semseg"] == 7
    without_classes = tiny_config(task_num_labels={"depth": 1})
    assert SEMConfig.from_dict(without_classes.to_dict()).tasks == ["depth"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"task_num_labels": {"depth": 1}, "num_labels": 3}, "`num_labels`.*task of class ids.*depth"),
        ({"task_num_labels": {"semseg": 4}, "num_labels": 3}, "`num_labels`.*'semseg'.*otherwise"),
        (
            {
                "task_num_labels": {"semseg": 3},
                "task_id2label": {"semseg": CLASSES},
                "id2label": {0: "a", 1: "b", 2: "c"},
            },
            "other",
        ),
        ({"id2label": {0: "a", 1: "b"}, "num_labels": 3}, "the same classes; got 3"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 1, "b": 0}}, "the same classes"),
    ],
)
def test_standard_arguments_that_contradict_the_tasks_are_named(values, expected):
    with pytest.raises(ValueError, match=expected):
        tiny_config(**values)


def test_a_configuration_that_was_changed_later_builds_no_model():
    config = tiny_config()
    config.num_labels = 5
    with pytest.raises(Exception, match="`num_labels` are those of 'semseg', 40 classes; got 5.*task_num_labels"):
        SEMForMultiTaskDensePrediction(config)


# ----------------------------------------------------------------------------------------------------------------------
# Custom code


def test_code_of_a_checkpoint_does_not_replace_the_package(tmp_path):
    for path in (REPOSITORY / "src" / "transformers_sem").glob("*.py"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    foreign = get_class_from_dynamic_module("pipeline_sem.MultiTaskDensePredictionPipeline", str(tmp_path))
    assert issubclass(foreign, Pipeline) and foreign is not MultiTaskDensePredictionPipeline
    assert type(AutoConfig.for_model("sem")) is SEMConfig
    assert AutoModel._model_mapping[SEMConfig] is SEMModel
    registered = PIPELINE_REGISTRY.check_task("multi-task-dense-prediction")[1]["impl"]
    assert registered is MultiTaskDensePredictionPipeline
    assert sys.modules["transformers_sem"] is transformers_sem

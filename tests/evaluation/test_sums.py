import numpy as np
import pytest
import torch

from transformers_sem import TASKS
from transformers_sem.evaluation.constant_predictor import ConstantPredictor
from transformers_sem.evaluation.metrics import METRICS
from transformers_sem.evaluation.sums import MetricSums, format_report, main_scores, scores_of

from ..fake_mps import FakeMPS, to_mps
from ..samples import invalid_labels, random_labels, random_logits


TASKS_WITH_METRIC = [task for task in TASKS if task in METRICS]
EVERY_TASK = {task: TASKS[task].num_labels for task in TASKS_WITH_METRIC}
SIZE = (5, 7)


def fitted(task, *labels, num_labels=None):
    """The constant map of a task after images of these labels."""
    constant = ConstantPredictor({task: num_labels or TASKS[task].num_labels})
    for label in labels:
        constant.add({task: torch.as_tensor(label)})
    return constant.predict(SIZE)[task]


def assert_constant(found, value):
    expected = torch.tensor(value).view(-1, 1, 1).expand(-1, *SIZE).squeeze(0)
    torch.testing.assert_close(found, expected)


# ----------------------------------------------------------------------------------------------------------------------
# ConstantPredictor


def test_the_majority_is_that_of_all_valid_pixels():
    labels = [[1, 1, 1], [255, 255, 255]], [[2], [2]], [[2], [2]], [[255], [255]]
    assert_constant(fitted("semseg", *labels, num_labels=4), 2)


def test_means_are_over_all_valid_pixels_not_over_images():
    nan = float("nan")
    assert_constant(fitted("depth", [[[1.0, nan]]], [[[3.0, 4.0, 4.0]]]), 3.0)
    assert_constant(fitted("boundary", [[1.0, 255.0]], [[0.0, 0.5, 0.5]]), 0.5)
    assert_constant(fitted("saliency", [[1, 255]], [[0, 0, 0]]), 0.25)


def test_a_mean_vector_is_over_pixels_whose_components_are_all_valid():
    label = torch.tensor([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [float("nan"), 1.0, 0.0]]).T.view(3, 1, 3)
    assert_constant(fitted("normal", label), [0.5, 0.0, -0.5])


def test_no_other_constant_depth_has_a_smaller_error():
    labels = list(random_labels("depth", 3, SIZE))
    best = fitted("depth", *labels)
    metric = MetricSums({"depth": 1})

    def rmse(prediction):
        metric.reset()
        for label in labels:
            metric.add({"depth": metric.image_statistics("depth", prediction, label)})
        return metric.scores()["depth/rmse"]

    assert all(rmse(best + offset) > rmse(best) for offset in (-0.02, 0.02))


@pytest.mark.parametrize("task", TASKS_WITH_METRIC)
def test_without_valid_pixels_there_is_a_finite_prediction(task):
    for labels in ([], invalid_labels(task, 1, SIZE)):
        assert fitted(task, *labels).isfinite().all()


@pytest.mark.parametrize("task", TASKS_WITH_METRIC)
def test_a_constant_prediction_can_be_scored_in_every_size(task):
    constant = ConstantPredictor(EVERY_TASK)
    metric = MetricSums({task: EVERY_TASK[task]})
    for size in ((12, 17), (9, 30)):
        labels = {name: random_labels(name, 1, size)[0] for name in EVERY_TASK}
        constant.add(labels)
        metric.add({task: metric.image_statistics(task, constant.predict(size)[task], labels[task])})
    scores = metric.scores()
    assert f"{task}/{METRICS[task].main}" in scores
    assert np.isfinite(list(scores.values())).all()


# ----------------------------------------------------------------------------------------------------------------------
# Sums and reports


def test_keyword_arguments_reach_the_statistics_of_their_task():
    prediction = torch.zeros(20, 30)
    prediction[:, 11] = 1
    label = torch.zeros(20, 30)
    label[:, 14] = 1
    scores = [
        scores_of({"boundary": metric.image_statistics("boundary", prediction, label)})["boundary/odsf"]
        for metric in (MetricSums({"boundary": 1}, {"boundary": {"max_distance": far}}) for far in (0.01, 0.5))
    ]
    assert scores[0] < scores[1]


@pytest.mark.parametrize("task", ["depth", "albedo"])
def test_keyword_arguments_of_other_tasks_are_named(task):
    with pytest.raises(ValueError, match=f"semseg.*{task}"):
        MetricSums({"semseg": 3}, {task: {}})


def test_a_task_without_an_image_has_no_scores_and_a_warning(caplog):
    metric = MetricSums({"semseg": 3, "depth": 1})
    metric.add({"depth": metric.image_statistics("depth", torch.ones(SIZE), torch.ones(1, *SIZE))})
    assert {key.split("/")[0] for key in metric.scores()} == {"depth"}
    assert "semseg" in caplog.text and "depth" not in caplog.text
    assert metric.class_scores() == {}


def test_every_task_has_its_main_score():
    scores = {f"{task}/{name}": 0.5 for task in TASKS_WITH_METRIC for name in ("other", METRICS[task].main)}
    assert main_scores(scores) == {
        "semseg": "semseg/miou",
        "depth": "depth/rmse",
        "normal": "normal/mean_error",
        "boundary": "boundary/odsf",
        "parsing": "parsing/miou",
        "saliency": "saliency/maxf",
    }
    assert main_scores({"depth/absrel": 0.1}) == {"depth": "depth/rmse"}
    assert main_scores({}) == {}


def test_the_report_has_model_and_constant_side_by_side_and_marks_main_scores():
    scores = {"depth/rmse": 0.123456, "depth/absrel": 12.0, "semseg/miou": 1.0}
    table = format_report(scores, {"semseg/miou": 0.0, "depth/absrel": 2.5, "depth/rmse": 0.98765})
    lines = table.splitlines()
    assert [line.split() for line in lines] == [
        ["score", "model", "constant"],
        ["*", "depth/rmse", "0.1235", "0.9877"],
        ["depth/absrel", "12.0000", "2.5000"],
        ["*", "semseg/miou", "1.0000", "0.0000"],
    ]
    assert len({len(line) for line in lines}) == 1


# ----------------------------------------------------------------------------------------------------------------------
# A device without float64


@pytest.mark.parametrize("task", TASKS_WITH_METRIC)
def test_maps_on_a_device_without_float64_have_the_same_scores(task):
    label = random_labels(task, 1, (14, 19))[0]
    prediction = TASKS[task].kind.predict(random_logits(task, 1, (14, 19)))[0]
    metric = MetricSums({task: TASKS[task].num_labels})
    expected = scores_of({task: metric.image_statistics(task, prediction, label)})
    constant = fitted(task, label)
    with FakeMPS():
        statistics = {task: metric.image_statistics(task, to_mps(prediction), to_mps(label))}
        metric.add(statistics)
        assert scores_of(statistics) == metric.scores() == expected
        assert torch.equal(fitted(task, to_mps(label)), constant)
    assert all(type(value) is torch.Tensor for value in metric.sums[task].values())


def test_the_fake_device_refuses_what_the_real_one_does():
    with FakeMPS():
        values = to_mps(torch.ones(1, 1, 2, 2))
        with pytest.raises(TypeError, match="float64"):
            values.double()
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(2, dtype=torch.float64).to(torch.device("mps"))
        with pytest.raises(RuntimeError, match="two devices"):
            values + torch.ones(2)
        with pytest.raises(NotImplementedError, match="border"):
            torch.nn.functional.grid_sample(values, to_mps(torch.zeros(1, 1, 1, 2)), padding_mode="border")
        assert (values.cpu().double() + torch.ones(2)).sum() == 8

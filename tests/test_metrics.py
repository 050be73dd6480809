"""The metrics give the numbers of the field's meters, and are sums over images."""

import numpy as np
import pytest
import torch

from transformers_sem import TASKS, MultiTaskMetric
from transformers_sem.metrics import THRESHOLDS, max_f_measure, threshold_statistics

from .samples import invalid_labels, random_labels, random_logits


CLASS_CASES = [("semseg_nyud", "semseg", 40), ("semseg_pascal", "semseg", 21), ("human_parts", "parsing", 7)]
TASKS_WITH_METRIC = [task for task, spec in TASKS.items() if spec.metric]


def read_batches(arrays, name, task):
    """Logits and labels of the three batches, the labels in our format."""
    label_format = TASKS[task].label_format
    for index in range(3):
        prefix = f"{name}/batch{index}"
        logits = torch.from_numpy(arrays.get(f"{prefix}/logits", arrays.get(f"{prefix}/pred")))
        label = torch.from_numpy(arrays[f"{prefix}/label"]).float()
        label = torch.where(label == 255, label_format.invalid_value, label).to(label_format.dtype)
        yield logits, label if label_format.num_channels else label.squeeze(1)


def measure(arrays, name, task, num_labels):
    metric = MultiTaskMetric({task: num_labels})
    for logits, labels in read_batches(arrays, name, task):
        metric.add_batch({task: TASKS[task].post_process(logits)}, {task: labels})
    return metric


@pytest.mark.parametrize(("name", "task", "num_labels"), CLASS_CASES)
def test_reference_classes(golden, name, task, num_labels):
    arrays = golden("metrics")
    metric = measure(arrays, name, task, num_labels)
    confusion = metric.statistics[task]["confusion"].numpy()
    hits = np.diag(confusion)
    np.testing.assert_array_equal(hits, arrays[f"{name}/tp"])
    np.testing.assert_array_equal(confusion.sum(axis=0) - hits, arrays[f"{name}/fp"])
    np.testing.assert_array_equal(confusion.sum(axis=1) - hits, arrays[f"{name}/fn"])
    scores = metric.compute()
    assert scores[f"{task}/miou"] == pytest.approx(float(arrays[f"{name}/mIoU"]), rel=1e-6)
    accuracy = arrays[f"{name}/tp"].sum() / (arrays[f"{name}/tp"] + arrays[f"{name}/fn"]).sum()
    assert scores[f"{task}/pixel_accuracy"] == pytest.approx(accuracy, rel=1e-6)


def test_reference_depth(golden):
    arrays = golden("metrics")
    metric = measure(arrays, "depth", "depth", 1)
    assert metric.statistics["depth"]["num_valid"] == arrays["depth/n_valid"]
    assert metric.compute()["depth/rmse"] == pytest.approx(float(arrays["depth/own_rmse_float64"]), rel=1e-6)
    assert metric.compute()["depth/rmse"] == pytest.approx(float(arrays["depth/rmse"]), rel=1e-5)


def test_reference_normals(golden):
    arrays = golden("metrics")
    metric = measure(arrays, "normals", "normal", 3)
    assert metric.statistics["normal"]["num_valid"] == arrays["normals/n_valid"]
    assert metric.compute()["normal/mean_error"] == pytest.approx(float(arrays["normals/own_mean_float64"]), rel=1e-6)
    assert metric.compute()["normal/mean_error"] == pytest.approx(float(arrays["normals/mean"]), rel=1e-5)


def f_measure(hits, predicted, actual, beta_squared):
    precision, recall = hits / predicted if predicted else 0.0, hits / actual if actual else 0.0
    denominator = beta_squared * precision + recall
    return (1 + beta_squared) * precision * recall / denominator if denominator else 0.0


def test_reference_saliency(golden):
    arrays = golden("metrics")
    np.testing.assert_allclose(THRESHOLDS, arrays["sal/thresholds"], rtol=2e-7)
    metric = measure(arrays, "sal", "saliency", 2)
    assert metric.compute()["saliency/maxf"] == pytest.approx(
        float(arrays["sal/own_maxF_no_double_sigmoid"]), rel=1e-6
    )

    statistics = {name: value.numpy() for name, value in metric.statistics["saliency"].items()}
    counts = zip(statistics["true_positives"], statistics["predicted_positives"], strict=True)
    scores = [f_measure(*count, statistics["actual_positives"], beta_squared=0.3) for count in counts]
    np.testing.assert_allclose(scores, arrays["sal/own_F_per_threshold_no_double_sigmoid"], rtol=1e-6)


def count_at(prediction, label, threshold):
    """One pixel after another."""
    hits = predicted = actual = 0
    for value, truth in zip(prediction.flat, label.flat, strict=True):
        if truth != 255:
            hits += bool(value >= threshold and truth > 0.5)
            predicted += bool(value >= threshold)
            actual += bool(truth > 0.5)
    return hits, predicted, actual


@pytest.mark.parametrize("task", ["saliency", "boundary"])
@pytest.mark.parametrize("beta_squared", [0.3, 1.0])
def test_threshold_f_measure_against_a_slow_count(task, beta_squared):
    label = random_labels(task, 1, (7, 9))[0]
    steps = torch.randint(21, (7, 9)) / 20  # many values lie on a threshold
    prediction = torch.where(torch.rand(7, 9) < 0.5, steps, torch.rand(7, 9))
    statistics = threshold_statistics(prediction, label, num_labels=1)
    thresholds = [np.float32(step / 20) for step in range(1, 20)]
    counts = [count_at(prediction.numpy(), label.numpy(), threshold) for threshold in thresholds]
    assert statistics["true_positives"].tolist() == [hits for hits, _, _ in counts]
    assert statistics["predicted_positives"].tolist() == [predicted for _, predicted, _ in counts]
    assert statistics["actual_positives"].item() == counts[0][2]
    best = max(f_measure(*count, beta_squared) for count in counts)
    assert max_f_measure(statistics, beta_squared) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize(
    ("label", "expected"), [([[0, 0]], 0.0), ([[255, 255]], 0.0), ([[1, 1]], 1.0)], ids=["none", "invalid", "all"]
)
def test_f_measure_of_one_sided_labels(label, expected):
    statistics = threshold_statistics(torch.ones(1, 2), torch.tensor(label), num_labels=2)
    assert max_f_measure(statistics, beta_squared=0.3) == expected


def predictions_of(task, num_images, size):
    return TASKS[task].post_process(random_logits(task, num_images, size))


@pytest.mark.parametrize("split", [[6], [1, 5], [2, 2, 2], [1, 1, 1, 1, 1, 1]], ids=str)
@pytest.mark.parametrize("task", TASKS_WITH_METRIC)
def test_a_set_is_the_sum_of_any_split(task, split):
    """Each part in a metric of its own, as on a rank of its own."""
    predictions, labels = predictions_of(task, 6, (8, 11)), random_labels(task, 6, (8, 11))
    labels[2] = invalid_labels(task, 1, (8, 11))[0]
    widths = {task: TASKS[task].num_labels}
    whole, parts = MultiTaskMetric(widths), [MultiTaskMetric(widths) for _ in split]
    whole.add_batch({task: predictions}, {task: labels})
    for part, images, truths in zip(parts, predictions.split(split), labels.split(split), strict=True):
        part.add_batch({task: images}, {task: truths})
    for name, total in whole.statistics[task].items():
        torch.testing.assert_close(sum(part.statistics[task][name] for part in parts), total, rtol=1e-12, atol=0)


@pytest.mark.parametrize("task", TASKS_WITH_METRIC)
def test_images_of_different_sizes(task):
    """Every pixel counts the same: a tall image and its two halves score alike."""
    prediction, label = predictions_of(task, 1, (12, 7))[0], random_labels(task, 1, (12, 7))[0]
    whole, halves = (MultiTaskMetric({task: TASKS[task].num_labels}) for _ in range(2))
    whole.add_batch({task: [prediction]}, {task: [label]})
    halves.add_batch({task: prediction.split([5, 7], dim=-2)}, {task: label.split([5, 7], dim=-2)})
    assert halves.compute() == pytest.approx(whole.compute(), rel=1e-12)


@pytest.mark.parametrize("task", TASKS_WITH_METRIC)
def test_images_without_labels_count_nothing(task):
    metric = MultiTaskMetric({task: TASKS[task].num_labels})
    metric.add_batch({task: predictions_of(task, 2, (4, 5))}, {task: invalid_labels(task, 2, (4, 5))})
    assert set(metric.compute().values()) == {0.0}


@pytest.mark.parametrize(
    ("task", "prediction", "label", "scores"),
    [
        ("semseg", [[0, 1], [1, 1]], [[0, 0], [1, 255]], {"miou": (1 / 2 + 1 / 2 + 0) / 3, "pixel_accuracy": 2 / 3}),
        ("depth", [[1.0, 5.0]], [[[4.0, 1.0]]], {"rmse": 12.5**0.5, "mean_absolute_error": 3.5}),
        (
            "normal",
            [[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 1.0]]],
            [[[0.0, 0.0]], [[2.0, 0.0]], [[0.0, 2.0]]],
            {"mean_error": 45},
        ),
        ("saliency", [[0.9, 0.9, 0.1]], [[1, 0, 0]], {"maxf": 1.3 * 0.5 / (0.3 * 0.5 + 1)}),
        ("boundary", [[0.9, 0.9, 0.1]], [[1.0, 0.0, 255.0]], {"pixel_maxf": 2 / 3}),
    ],
)
def test_scores_by_hand(task, prediction, label, scores):
    metric = MultiTaskMetric({task: 3})
    metric.add_batch({task: [torch.tensor(prediction)]}, {task: [torch.tensor(label)]})
    assert metric.compute() == pytest.approx({f"{task}/{name}": score for name, score in scores.items()})


@pytest.mark.parametrize("task", TASKS_WITH_METRIC)
def test_mismatched_sizes_raise(task):
    metric = MultiTaskMetric({task: TASKS[task].num_labels})
    predictions, labels = predictions_of(task, 1, (4, 5)), random_labels(task, 1, (8, 10))
    with pytest.raises(ValueError, match=rf"{task} prediction .* \(8, 10\); got \(4, 5\)"):
        metric.add_batch({task: predictions}, {task: labels})


def test_a_missing_image_raises():
    with pytest.raises(ValueError):
        MultiTaskMetric({"depth": 1}).add_batch({"depth": [torch.ones(2, 2)]}, {"depth": [torch.ones(1, 2, 2)] * 2})


def test_reduce_applies_to_every_sum():
    """Two ranks with the same images score as one rank with half of them."""
    metric = MultiTaskMetric({task: TASKS[task].num_labels for task in TASKS_WITH_METRIC})
    predictions = {task: predictions_of(task, 2, (4, 5)) for task in TASKS_WITH_METRIC}
    metric.add_batch(predictions, {task: random_labels(task, 2, (4, 5)) for task in TASKS_WITH_METRIC})
    before, num_valid = metric.compute(), metric.statistics["depth"]["num_valid"].item()
    metric.reduce(lambda value: 2 * value)
    assert metric.statistics["depth"]["num_valid"] == 2 * num_valid
    assert metric.compute() == pytest.approx(before)

"""The metrics give the numbers of the field's meters, are sums over images, and refuse what they cannot judge."""

import logging

import numpy as np
import pytest
import torch

from transformers_sem import CLASS_IDS, TASKS, MultiTaskMetric
from transformers_sem.evaluation import boundary
from transformers_sem.evaluation.metrics import (
    METRICS,
    SALIENCY_THRESHOLDS,
    class_statistics,
    depth_statistics,
    max_f_measure,
    normal_scores,
    normal_statistics,
    saliency_statistics,
)

from ..samples import invalid_labels, random_labels, random_logits


CLASS_CASES = [("semseg_nyud", "semseg", 40), ("semseg_pascal", "semseg", 21), ("human_parts", "parsing", 7)]
TASKS_WITH_METRIC = [task for task in TASKS if task in METRICS]

every_task = pytest.mark.parametrize("task", TASKS_WITH_METRIC)


def predictions_of(task, num_images, size):
    return TASKS[task].kind.predict(random_logits(task, num_images, size))


def metric_of(task, num_labels=None):
    return MultiTaskMetric({task: num_labels or TASKS[task].num_labels})


def score(task, predictions, labels, num_labels=None):
    metric = metric_of(task, num_labels)
    return metric.compute(predictions={task: predictions}, references={task: labels})


def sums_of(metric, task):
    return metric.metric_sums.sums[task]


# Against the field's meters


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("metrics")


def read_batches(arrays, name, task):
    """Logits and labels of the three batches, the labels in our format."""
    spec = TASKS[task]
    for index in range(3):
        prefix = f"{name}/batch{index}"
        logits = torch.from_numpy(arrays.get(f"{prefix}/logits", arrays.get(f"{prefix}/pred"))).float()
        label = torch.from_numpy(arrays[f"{prefix}/label"]).float()
        label = torch.where(label == 255, spec.kind.invalid_value, label).to(spec.dtype)
        yield logits, label if spec.kind.num_channels else label.squeeze(1)


def measure(arrays, name, task, num_labels=None):
    metric = metric_of(task, num_labels)
    for logits, labels in read_batches(arrays, name, task):
        metric.add_batch({task: TASKS[task].kind.predict(logits)}, {task: labels})
    return metric


@pytest.mark.parametrize(("name", "task", "num_labels"), CLASS_CASES)
def test_class_counts_are_those_of_the_reference(arrays, name, task, num_labels):
    confusion = sums_of(measure(arrays, name, task, num_labels), task)["confusion"].numpy()
    hits = np.diag(confusion)
    np.testing.assert_array_equal(hits, arrays[f"{name}/tp"])
    np.testing.assert_array_equal(confusion.sum(axis=0) - hits, arrays[f"{name}/fp"])
    np.testing.assert_array_equal(confusion.sum(axis=1) - hits, arrays[f"{name}/fn"])


@pytest.mark.parametrize(("name", "task", "num_labels"), CLASS_CASES)
def test_class_scores_are_those_of_the_reference(arrays, name, task, num_labels):
    metric = measure(arrays, name, task, num_labels)
    ious = metric.metric_sums.class_scores()[task]
    np.testing.assert_allclose(ious, arrays[f"{name}/iou_per_class"], rtol=1e-12)
    accuracy = arrays[f"{name}/tp"].sum() / (arrays[f"{name}/tp"] + arrays[f"{name}/fn"]).sum()
    expected = {f"{task}/miou": arrays[f"{name}/mIoU"].item(), f"{task}/pixel_accuracy": accuracy}
    assert metric.compute() == pytest.approx(expected, rel=1e-6)


def test_depth_is_that_of_the_reference(arrays):
    metric = measure(arrays, "depth", "depth")
    sums = sums_of(metric, "depth")
    assert sums["num_valid"] == arrays["depth/n_valid"]
    assert sums["squared_error"].item() == pytest.approx(arrays["depth/sum_sq_err"].item(), rel=1e-5)
    assert sums["squared_log_error"].item() == pytest.approx(arrays["depth/sum_sq_log_err"].item(), rel=1e-5)
    scores = metric.compute()
    for name in ("rmse", "log_rmse", "abs_rel", "sq_rel"):
        assert scores[f"depth/{name}"] == pytest.approx(arrays[f"depth/{name}"].item(), rel=1e-5)
    assert scores["depth/rmse"] == pytest.approx(arrays["depth/own_rmse_float64"].item(), rel=1e-6)


def test_normals_are_those_of_the_reference(arrays):
    metric = measure(arrays, "normals", "normal")
    sums = sums_of(metric, "normal")
    assert sums["num_valid"] == arrays["normals/n_valid"]
    assert sums["degrees"].item() == pytest.approx(arrays["normals/sum_deg"].item(), rel=1e-5)
    scores = metric.compute()
    assert scores["normal/mean_error"] == pytest.approx(arrays["normals/mean"].item(), rel=1e-5)
    exact = {"mean_error": "mean_float64", "rmse": "rmse_deg"}
    exact |= {f"within_{bound}": f"frac_below_{bound}deg" for bound in ("11.25", "22.5", "30")}
    for name, key in exact.items():
        assert scores[f"normal/{name}"] == pytest.approx(arrays[f"normals/own_{key}"].item(), rel=1e-6)
    assert scores["normal/median_error"] == pytest.approx(arrays["normals/own_median"].item(), abs=5e-3)


def test_saliency_is_that_of_the_formula(arrays):
    np.testing.assert_allclose(SALIENCY_THRESHOLDS, arrays["sal/thresholds"], rtol=2e-7)
    metric = measure(arrays, "sal", "saliency")
    sums = {name: value.numpy() for name, value in sums_of(metric, "saliency").items()}
    counts = zip(sums["true_positives"], sums["predicted_positives"], strict=True)
    scores = [f_measure(*count, sums["actual_positives"]) for count in counts]
    np.testing.assert_allclose(scores, arrays["sal/own_F_per_threshold_no_double_sigmoid"], rtol=1e-6)
    expected = arrays["sal/own_maxF_no_double_sigmoid"].item()
    assert metric.compute()["saliency/maxf"] == pytest.approx(expected, rel=1e-6)


def test_legacy_saliency_is_that_of_the_peers(arrays):
    metric = measure(arrays, "sal", "saliency")
    sums = {name: value.numpy() for name, value in sums_of(metric, "saliency").items()}
    np.testing.assert_array_equal(sums["legacy_true_positives"], arrays["sal/true_positives"])
    np.testing.assert_array_equal(sums["legacy_predicted_positives"], arrays["sal/predicted_positives"])
    np.testing.assert_array_equal(np.full(19, sums["actual_positives"]), arrays["sal/actual_positives"])
    assert metric.compute()["saliency/maxf_legacy"] == pytest.approx(arrays["sal/maxF"].item(), rel=1e-6)


@pytest.mark.parametrize("index", range(3))
def test_boundary_levels_are_what_the_peers_write_to_disk(arrays, index):
    prefix = f"edge/batch{index}"
    probability = TASKS["boundary"].kind.predict(torch.from_numpy(arrays[f"{prefix}/logits"])).numpy()
    expected = arrays[f"{prefix}/output_255"]
    np.testing.assert_allclose(probability[:, : expected.shape[1]] * np.float32(255), expected, rtol=1e-6)
    np.testing.assert_array_equal(boundary.to_levels(probability), arrays[f"{prefix}/png_uint8"])


def test_the_boundaries_of_the_reference_are_scored(arrays):
    metric = measure(arrays, "edge", "boundary")
    assert sums_of(metric, "boundary")["num_images"] == 2 + 3 + 2
    assert 0 < metric.compute()["boundary/odsf"] < 1


# Against slow references in float64


def random_distances(size):
    """Predictions and labels in metres; some are zero, some predictions negative, some labels invalid."""
    prediction = 3 * torch.rand(size) * (torch.rand(size) > 0.1) - 0.1 * (torch.rand(size) > 0.9)
    label = (prediction.abs() * torch.empty(size).uniform_(0.5, 2.2)).unsqueeze(0)
    return prediction, label.masked_fill(torch.rand(1, *size) < 0.2, torch.nan)


def slow_depth_scores(prediction, label):
    pairs = [
        (max(value, 0) or 1e-9, truth)
        for value, truth in zip(prediction.flatten().tolist(), label.flatten().tolist(), strict=True)
        if truth > 0  # NaN and 0 are unknown
    ]
    errors = np.array([value - truth for value, truth in pairs])
    truths = np.array([truth for _, truth in pairs])
    ratios = np.array([max(value / truth, truth / value) for value, truth in pairs])
    return {
        "rmse": np.sqrt(np.mean(errors**2)),
        "log_rmse": np.sqrt(np.mean([np.log(value / truth) ** 2 for value, truth in pairs])),
        "abs_rel": np.mean(np.abs(errors) / truths),
        "sq_rel": np.mean(errors**2 / truths),
        **{f"delta{power}": np.mean(ratios < 1.25**power) for power in (1, 2, 3)},
        "scale": np.mean([value for value, _ in pairs]) / np.mean(truths),
    }


def test_depth_that_is_not_positive_is_unknown():
    prediction, label = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[[2.0, 0.0, -1.0, np.nan]]])
    statistics = depth_statistics(prediction, label, num_labels=1)
    assert (statistics["num_valid"], statistics["relative_error"]) == (1, 0.5)


def test_depth_of_another_unit_is_refused():
    for label in (torch.tensor([[[2500.0]]]), torch.tensor([[[2500]]]), torch.tensor([[[np.inf]]])):
        with pytest.raises(ValueError, match="looks like millimetres"):
            depth_statistics(torch.ones(1, 1), label, num_labels=1)


@pytest.mark.parametrize("task", ["saliency", "boundary"])
def test_a_label_of_8_bits_is_not_invalid_where_it_is_white(task):
    label = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    with pytest.raises(ValueError, match="8-bit map of 0 and 255 alone, where 255 is white"):
        score(task, [torch.zeros(2, 2)], [label])
    score(task, [torch.zeros(2, 2)], [label.astype(np.int64 if task == "saliency" else np.float32)])


@pytest.mark.parametrize("attempt", range(3))
def test_depth_against_a_slow_reference(attempt):
    torch.manual_seed(attempt)
    prediction, label = random_distances((23, 31))
    scores, slow_scores = score("depth", [prediction], [label]), slow_depth_scores(prediction, label)
    assert scores == pytest.approx({f"depth/{name}": value for name, value in slow_scores.items()}, rel=1e-9)
    assert 0 < scores["depth/delta1"] < scores["depth/delta2"] < scores["depth/delta3"] < 1


def test_a_ratio_on_the_bound_is_not_within_it():
    prediction = torch.tensor([[1.25, 0.8, 1.24, 2.0]], dtype=torch.float64)
    label = torch.ones(1, 1, 4, dtype=torch.float64)
    assert depth_statistics(prediction, label, num_labels=1)["num_within_ratio"].tolist() == [1, 3, 3]


def random_directions(size, spread):
    """Unit vectors, and labels at angles that `spread` scales, of any length, some invalid."""
    prediction = torch.nn.functional.normalize(torch.randn(3, *size), dim=0)
    label = (prediction + spread * torch.randn(3, *size)) * torch.empty(size).uniform_(0.5, 1.5)
    return prediction, label.masked_fill(torch.rand(size) < 0.2, torch.nan)


def slow_degrees(prediction, label):
    cosines = [
        np.dot(vector, truth) / np.linalg.norm(vector) / np.linalg.norm(truth)
        for vector, truth in zip(prediction.flatten(1).T.tolist(), label.flatten(1).T.tolist(), strict=True)
        if not np.isnan(truth).any()
    ]
    return np.rad2deg(np.arccos(np.clip(cosines, -1, 1)))


@pytest.mark.parametrize("spread", [0.1, 0.5, 3.0])
def test_normals_against_a_slow_reference(spread):
    prediction, label = random_directions((40, 50), spread)
    scores, degrees = normal_scores(normal_statistics(prediction, label, 3)), slow_degrees(prediction, label)
    expected = {
        "mean_error": degrees.mean(),
        "rmse": np.sqrt((degrees**2).mean()),
        **{f"within_{bound:g}": (degrees < bound).mean() for bound in (11.25, 22.5, 30.0)},
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    low, high = (np.percentile(degrees, 50, method=method) for method in ("lower", "higher"))
    assert low - 0.01 <= scores["median_error"] <= high + 0.01


@pytest.mark.parametrize("degrees", [0.0, 1e-6, 0.02, 45.0, 90.0, 179.99, 180.0])
def test_angles_are_exact_from_the_smallest_to_the_greatest(degrees):
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    prediction = torch.stack([angle.sin(), 0 * angle, angle.cos()]).view(3, 1, 1)
    label = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).view(3, 1, 1)
    scores = normal_scores(normal_statistics(prediction, label, num_labels=3))
    assert scores["mean_error"] == pytest.approx(degrees, rel=1e-9, abs=1e-12)
    assert scores["median_error"] == pytest.approx(degrees, abs=0.0101)


def test_a_normal_of_length_zero_is_invalid():
    prediction, label = random_directions((4, 5), spread=0.5)
    label[:, 0] = 0
    statistics = normal_statistics(prediction, label, num_labels=3)
    assert statistics["num_valid"] == label[:, 1:].isfinite().all(dim=0).sum()
    assert statistics["degrees"].isfinite()


@pytest.mark.parametrize("length", [1e-6, 0.3, 40.0])
def test_the_length_of_a_predicted_normal_does_not_matter(length):
    prediction, label = random_directions((6, 7), spread=0.5)
    expected = normal_scores(normal_statistics(prediction, label, num_labels=3))
    assert normal_scores(normal_statistics(length * prediction, label, 3)) == pytest.approx(expected, rel=1e-5)


def test_a_predicted_normal_of_length_zero_is_90_degrees_off():
    label = random_labels("normal", 1, (4, 5), invalid_share=0)[0]
    scores = score("normal", [torch.zeros(3, 4, 5)], [label])
    assert (scores["normal/mean_error"], scores["normal/rmse"]) == pytest.approx((90, 90))
    assert scores["normal/within_30"] == 0


def f_measure(hits, predicted, actual, beta_squared=0.3):
    precision, recall = hits / predicted if predicted else 0.0, hits / actual if actual else 0.0
    denominator = beta_squared * precision + recall
    return (1 + beta_squared) * precision * recall / denominator if denominator else 0.0


def count_at(prediction, label, threshold):
    """One pixel after another."""
    hits = predicted = actual = 0
    for value, truth in zip(prediction.flat, label.flat, strict=True):
        if truth != 255:
            hits += bool(value >= threshold and truth == 1)
            predicted += bool(value >= threshold)
            actual += bool(truth == 1)
    return hits, predicted, actual


@pytest.mark.parametrize("attempt", range(3))
def test_saliency_against_a_slow_count(attempt):
    torch.manual_seed(attempt)
    label = random_labels("saliency", 1, (7, 9))[0]
    steps = torch.randint(21, (7, 9)) / 20  # many values lie on a threshold
    prediction = torch.where(torch.rand(7, 9) < 0.5, steps, torch.rand(7, 9))
    statistics = saliency_statistics(prediction, label, num_labels=2)
    counts = [count_at(prediction.numpy(), label.numpy(), np.float32(step / 20)) for step in range(1, 20)]
    assert statistics["true_positives"].tolist() == [hits for hits, _, _ in counts]
    assert statistics["predicted_positives"].tolist() == [predicted for _, predicted, _ in counts]
    assert statistics["actual_positives"].item() == counts[0][2]
    tensors = [statistics[name].double() for name in ("true_positives", "predicted_positives", "actual_positives")]
    assert max_f_measure(*tensors) == pytest.approx(max(f_measure(*count) for count in counts), rel=1e-12)


@pytest.mark.parametrize(("label", "expected"), [([[0, 0]], 0.0), ([[1, 1]], 1.0)], ids=["none", "all"])
def test_saliency_of_one_sided_labels(label, expected):
    assert score("saliency", [torch.ones(1, 2)], [torch.tensor(label)])["saliency/maxf"] == expected


# By hand


RIGHT, DOWN, FORWARD = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
NOWHERE = (np.nan,) * 3


def vectors(rows):
    """Rows of vectors as a map `(3, height, width)`."""
    return torch.tensor(rows).movedim(-1, 0)


@pytest.mark.parametrize(
    ("task", "prediction", "label", "expected"),
    [
        (
            "semseg",
            torch.tensor([[0, 1], [1, 1]]),
            torch.tensor([[0, 0], [1, 255]]),
            {"miou": (1 / 2 + 1 / 2 + 0) / 3, "pixel_accuracy": 2 / 3},
        ),
        (
            "depth",
            torch.tensor([[2.0, 4.0], [1.2, 7.0]]),
            torch.tensor([[[1.0, 4.0], [1.0, np.nan]]]),
            {
                "rmse": (1.04 / 3) ** 0.5,
                "log_rmse": ((np.log(2) ** 2 + np.log(1.2) ** 2) / 3) ** 0.5,
                "abs_rel": 1.2 / 3,
                "sq_rel": 1.04 / 3,
                "delta1": 2 / 3,
                "delta2": 2 / 3,
                "delta3": 2 / 3,
                "scale": 7.2 / 6,
            },
        ),
        (
            "normal",
            vectors([[FORWARD, RIGHT], [RIGHT, DOWN]]),
            vectors([[(0.0, 0.0, 2.0), FORWARD], [(1.0, 1.0, 0.0), NOWHERE]]),
            {
                "mean_error": 45,
                "rmse": ((90**2 + 45**2) / 3) ** 0.5,
                "median_error": pytest.approx(45, abs=0.0101),
                "within_11.25": 1 / 3,
                "within_22.5": 1 / 3,
                "within_30": 1 / 3,
            },
        ),
        (
            "saliency",
            torch.tensor([[0.9, 0.9], [0.1, 0.9]]),
            torch.tensor([[1, 0], [0, 255]]),
            {"maxf": 1.3 * 0.5 / (0.3 * 0.5 + 1), "maxf_legacy": 1.3 * 0.5 / (0.3 * 0.5 + 1)},
        ),
        (
            "boundary",
            torch.tensor([[True, False], [False, False]]),
            torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
            {"odsf": 1, "ods_threshold": 0.001, "ods_precision": 1, "ods_recall": 1, "ois": 1, "ap": 0.01},
        ),
    ],
)
def test_scores_of_four_pixels(task, prediction, label, expected):
    scores = score(task, [prediction], [label], num_labels=3 if TASKS[task].kind is CLASS_IDS else None)
    assert scores == {f"{task}/{name}": pytest.approx(value) for name, value in expected.items()}


def test_the_confusion_has_labels_in_rows_and_predictions_in_columns():
    statistics = class_statistics(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0, 0], [1, 255]]), num_labels=3)
    assert statistics["confusion"].tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_a_class_score_is_that_of_its_class():
    metric = metric_of("semseg", num_labels=3)
    metric.add({"semseg": torch.tensor([[0, 1], [1, 1]])}, {"semseg": torch.tensor([[0, 0], [1, 255]])})
    assert metric.metric_sums.class_scores() == {"semseg": [0.5, 0.5, 0.0]}


# Sums over images


@pytest.mark.parametrize("split", [[6], [3, 1, 2], [1, 1, 1, 1, 1, 1]], ids=str)
@every_task
def test_a_set_is_the_sum_of_any_split_in_any_order(task, split):
    """Each part in a metric of its own, as on a rank of its own."""
    predictions, labels = predictions_of(task, 6, (14, 19)), random_labels(task, 6, (14, 19), invalid_share=0.02)
    labels[2] = invalid_labels(task, 1, (14, 19))[0]
    whole, parts, order = metric_of(task), [metric_of(task) for _ in split], torch.randperm(6)
    whole.add_batch({task: predictions}, {task: labels})
    for part, images in zip(parts, order.split(split), strict=True):
        part.add_batch({task: predictions[images]}, {task: labels[images]})
    for name, total in sums_of(whole, task).items():
        assert total.dtype == torch.float64
        total_of_parts = sum(sums_of(part, task)[name] for part in parts)
        torch.testing.assert_close(total_of_parts, total, rtol=1e-12, atol=0)
    assert whole.compute().keys() == parts[0].compute().keys()


@pytest.mark.parametrize("task", [task for task in TASKS_WITH_METRIC if task != "boundary"])
def test_every_pixel_counts_the_same(task):
    """A tall image and its two halves score alike; a boundary, which has neighbors, does not."""
    prediction, label = predictions_of(task, 1, (12, 7))[0], random_labels(task, 1, (12, 7))[0]
    halves = score(task, prediction.split([5, 7], dim=-2), label.split([5, 7], dim=-2))
    assert halves == pytest.approx(score(task, [prediction], [label]), rel=1e-12)


@every_task
def test_statistics_leave_their_maps_alone(task):
    prediction, label = predictions_of(task, 1, (9, 11)), random_labels(task, 1, (9, 11))
    copies = prediction.clone(), label.clone()
    score(task, prediction, label)
    torch.testing.assert_close((prediction, label), copies, rtol=0, atol=0, equal_nan=True)


@every_task
def test_the_main_score_is_among_the_scores(task):
    scores = score(task, predictions_of(task, 1, (16, 16)), random_labels(task, 1, (16, 16), invalid_share=0.02))
    assert all(isinstance(value, float) for value in scores.values())
    assert f"{task}/{METRICS[task].main}" in scores


@every_task
def test_a_set_without_valid_pixels_has_no_scores_and_says_so(task, caplog):
    metric = metric_of(task)
    metric.add_batch({task: predictions_of(task, 2, (12, 14))}, {task: invalid_labels(task, 2, (12, 14))})
    assert METRICS[task].reduce(sums_of(metric, task)) == {}
    assert metric.metric_sums.class_scores() == {}
    with caplog.at_level(logging.WARNING):
        assert metric.compute() == {}
    assert f"No image has a valid pixel of {task}" in caplog.text


@every_task
def test_a_valid_pixel_gives_scores_without_a_warning(task, caplog):
    with caplog.at_level(logging.WARNING):
        assert score(task, predictions_of(task, 1, (1, 1)), random_labels(task, 1, (1, 1), invalid_share=0))
    assert "No image" not in caplog.text


@every_task
def test_an_invalid_image_adds_nothing_to_the_scores_of_others(task):
    predictions, labels = predictions_of(task, 2, (14, 19)), random_labels(task, 2, (14, 19), invalid_share=0.02)
    labels[1] = invalid_labels(task, 1, (14, 19))[0]
    assert score(task, predictions, labels) == score(task, predictions[:1], labels[:1])


# Bad input, named with its task


SIZE = (8, 10)
REAL_TASKS = ["depth", "normal", "boundary", "saliency"]
ID_TASKS = ["semseg", "parsing"]


def assert_refused(task, prediction, label, rule):
    with pytest.raises(ValueError, match=f"Cannot score {task}: .*{rule}"):
        score(task, [prediction], [label])


def valid_pair(task):
    return predictions_of(task, 1, SIZE)[0], random_labels(task, 1, SIZE, invalid_share=0)[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("task", REAL_TASKS)
def test_a_prediction_that_is_not_finite_raises(task, value):
    prediction, label = valid_pair(task)
    prediction[..., 3, 4] = value
    rule = "NaN; got" if task == "boundary" else "without NaN or infinity; got torch.float32 with [13] such values"
    assert_refused(task, prediction, label, rule)


@pytest.mark.parametrize("task", REAL_TASKS)
def test_ids_in_place_of_a_measurement_raise(task):
    prediction, label = valid_pair(task)
    assert_refused(task, torch.ones_like(prediction, dtype=torch.int64), label, "floating point.*; got .*int64")


@pytest.mark.parametrize("task", ["boundary", "saliency"])
def test_logits_in_place_of_probabilities_raise(task):
    _, label = valid_pair(task)
    assert_refused(task, torch.linspace(-2, 3, 80).view(SIZE), label, r"in \[0, 1\].*; got -2.0 to 3.0")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool], ids=str)
@pytest.mark.parametrize("task", ID_TASKS)
def test_predicted_ids_of_another_type_raise(task, dtype):
    prediction, label = valid_pair(task)
    assert_refused(task, prediction.to(dtype), label, f"prediction holds integer class ids; got {dtype}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool], ids=str)
@pytest.mark.parametrize("task", [*ID_TASKS, "saliency"])
def test_label_ids_of_another_type_raise(task, dtype):
    prediction, label = valid_pair(task)
    assert_refused(task, prediction, label.to(dtype), f"label holds integer class ids; got {dtype}")


@pytest.mark.parametrize("value", [-1, 40, 254])
@pytest.mark.parametrize("task", ID_TASKS)
def test_predicted_ids_that_are_no_class_raise(task, value):
    prediction, label = valid_pair(task)
    prediction[3, 4] = value
    assert_refused(task, prediction, label, f"prediction holds class ids from 0 to .*; got .*{value}")


@pytest.mark.parametrize("value", [-1, 40, 254, 256])
@pytest.mark.parametrize("task", [*ID_TASKS, "saliency"])
def test_label_ids_that_are_no_class_raise(task, value):
    prediction, label = valid_pair(task)
    label[3, 4] = value
    assert_refused(task, prediction, label, f"label holds class ids from 0 to .*; got .*{value}.*255")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.uint64])
@pytest.mark.parametrize("task", ID_TASKS)
def test_ids_of_any_integer_type_count_the_same(task, dtype):
    prediction, label = valid_pair(task)
    label[0] = 255
    expected = score(task, [prediction], [label])
    assert score(task, [prediction.numpy().astype(dtype)], [label.numpy().astype(dtype)]) == expected


@every_task
def test_a_list_is_no_map(task):
    prediction, label = valid_pair(task)
    assert_refused(task, prediction.tolist(), label, "an array or a dense tensor that holds numbers; got list")
    assert_refused(task, prediction, label.tolist(), "an array or a dense tensor that holds numbers; got list")


@every_task
def test_a_prediction_of_another_size_raises(task):
    prediction, label = predictions_of(task, 1, (4, 5))[0], random_labels(task, 1, SIZE)[0]
    assert_refused(task, prediction, label, r"(8, 10\).*)?; got \(.*4, 5\) and \(.*8, 10\)")


@every_task
def test_a_prediction_with_a_dimension_too_many_raises(task):
    prediction, label = valid_pair(task)
    assert_refused(task, prediction[None], label, r"; got \(1, .*8, 10\) and \(.*8, 10\)")


@every_task
def test_a_label_with_a_dimension_too_many_raises(task):
    prediction, label = valid_pair(task)
    assert_refused(task, prediction, label[None], r"; got \(.*8, 10\) and \(1, .*8, 10\)")


@every_task
def test_a_row_is_no_map(task):
    prediction, label = valid_pair(task)
    assert_refused(
        task, prediction[..., 0, :].squeeze(), label[..., 0, :].squeeze(), r"; got \(.*10,?\) and \(.*10,?\)"
    )


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)], ids=str)
@every_task
def test_an_empty_map_raises(task, size):
    channels = {"normal": ((3,), (3,)), "depth": ((), (1,))}.get(task, ((), ()))
    shapes = [(*channel, *size) for channel in channels]
    dtypes = TASKS[task].kind.predict(random_logits(task, 1, (2, 2))).dtype, TASKS[task].dtype
    pair = [torch.zeros(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    assert_refused(task, *pair, "not empty")

"""`MultiTaskMetric` is a metric of the `evaluate` library; ranks and one-task metrics give the numbers of the whole."""

import json
import os
import subprocess
import sys

import evaluate
import numpy as np
import pytest
import torch

from transformers_sem import TASKS, MultiTaskMetric, TaskKind, TaskSpec, multi_task_gain, register_task

from ..samples import random_labels, random_logits


TASK_NUM_LABELS = {task: spec.num_labels for task, spec in TASKS.items()}
SIZES = [(14, 19), (20, 13), (9, 9)]
TWO_TASKS = {"depth": 1, "semseg": 40}


def random_maps(tasks=TASK_NUM_LABELS, sizes=SIZES):
    """Predictions and labels `{task: [one map per image]}`, of another size for every image."""
    predictions = {
        task: [TASKS[task].kind.predict(random_logits(task, 1, size))[0] for size in sizes] for task in tasks
    }
    references = {task: [random_labels(task, 1, size, invalid_share=0.02)[0] for size in sizes] for task in tasks}
    return predictions, references


def image_of(maps, index):
    return {task: values[index] for task, values in maps.items()}


def images_of(maps, indices):
    return {task: values[indices] for task, values in maps.items()}


@pytest.fixture
def maps():
    return random_maps()


# Ways to add images


def test_it_is_a_metric_of_the_evaluate_library():
    metric = MultiTaskMetric(TASK_NUM_LABELS)
    assert isinstance(metric, evaluate.Metric)
    assert set(metric.features) == {"predictions", "references"}
    assert set(metric.features["predictions"]) == set(TASK_NUM_LABELS)
    assert "Scores of multi-task dense prediction" in metric.description


def by_add(metric, predictions, references):
    for index in range(len(SIZES)):
        metric.add(prediction=image_of(predictions, index), reference=image_of(references, index))
    return metric.compute()


def by_add_batch(metric, predictions, references):
    for indices in (slice(0, 2), slice(2, 3)):
        metric.add_batch(predictions=images_of(predictions, indices), references=images_of(references, indices))
    return metric.compute()


def by_both(metric, predictions, references):
    metric.add(prediction=image_of(predictions, 0), reference=image_of(references, 0))
    rest = slice(1, 3)
    return metric.compute(predictions=images_of(predictions, rest), references=images_of(references, rest))


def by_compute(metric, predictions, references):
    return metric.compute(predictions=predictions, references=references)


WAYS = [by_add, by_add_batch, by_compute]


@pytest.mark.parametrize("way", [by_add, by_add_batch, by_both])
def test_every_way_to_add_images_gives_the_same_scores(maps, way):
    scores = MultiTaskMetric(TASK_NUM_LABELS).compute(predictions=maps[0], references=maps[1])
    assert way(MultiTaskMetric(TASK_NUM_LABELS), *maps) == pytest.approx(scores, rel=1e-12)
    assert {key.split("/")[0] for key in scores} == set(TASKS)


@pytest.mark.parametrize("way", WAYS)
def test_one_task_metrics_combine_into_the_joint_one(maps, way):
    """Each takes its own task from the same maps."""
    combined = evaluate.combine([MultiTaskMetric({task: width}) for task, width in TASK_NUM_LABELS.items()])
    joint = MultiTaskMetric(TASK_NUM_LABELS).compute(predictions=maps[0], references=maps[1])
    assert way(combined, *maps) == pytest.approx(joint, rel=1e-12)


@pytest.mark.parametrize("combine", [False, True], ids=["alone", "combined"])
def test_a_metric_of_one_task_leaves_the_others_alone(maps, combine):
    predictions, references = {**maps[0], "depth": "no maps"}, {**maps[1], "flow": [1, 2]}
    metric = MultiTaskMetric({"semseg": 40})
    metric = evaluate.combine([metric]) if combine else metric
    scores = metric.compute(predictions=predictions, references=references)
    assert {key.split("/")[0] for key in scores} == {"semseg"}


def test_arrays_score_as_tensors_do(maps):
    scores = MultiTaskMetric(TASK_NUM_LABELS).compute(predictions=maps[0], references=maps[1])
    arrays = [{task: [value.numpy() for value in values] for task, values in side.items()} for side in maps]
    assert MultiTaskMetric(TASK_NUM_LABELS).compute(predictions=arrays[0], references=arrays[1]) == scores


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_scores_as_the_same_values_in_float32(dtype):
    tasks = {"depth": 1, "normal": 3, "boundary": 1, "saliency": 2}
    predictions, references = random_maps(tasks)
    halves = {task: [value.to(dtype) for value in values] for task, values in predictions.items()}
    wholes = {task: [value.float() for value in values] for task, values in halves.items()}
    scores = MultiTaskMetric(tasks).compute(predictions=wholes, references=references)
    assert MultiTaskMetric(tasks).compute(predictions=halves, references=references) == scores


def test_a_prediction_that_requires_gradients_is_scored(maps):
    predictions = {
        task: [value.requires_grad_() if value.is_floating_point() else value for value in values]
        for task, values in maps[0].items()
    }
    assert MultiTaskMetric(TASK_NUM_LABELS).compute(predictions=predictions, references=maps[1])


def test_the_length_is_the_number_of_images(maps):
    metric = MultiTaskMetric(TWO_TASKS)
    assert len(metric) == 0
    metric.add_batch(*maps)
    assert len(metric) == 3
    metric.add(image_of(maps[0], 0), image_of(maps[1], 0))
    assert len(metric) == 4


def test_compute_forgets_its_images(maps):
    metric = MultiTaskMetric(TWO_TASKS)
    metric.add_batch(images_of(maps[0], slice(0, 1)), images_of(maps[1], slice(0, 1)))
    first = metric.compute()
    assert len(metric) == 0
    second = by_add_batch(metric, *maps)
    assert second == MultiTaskMetric(TWO_TASKS).compute(predictions=maps[0], references=maps[1])
    assert second != first


def test_a_reset_metric_has_forgotten_its_images(maps):
    metric = MultiTaskMetric(TWO_TASKS)
    metric.add_batch(*maps)
    metric.metric_sums.reset()
    with pytest.raises(ValueError, match="nothing to score"):
        metric.compute()


def test_nothing_is_written_to_disk(maps, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "default"))
    for metric in (MultiTaskMetric(TWO_TASKS), MultiTaskMetric(TWO_TASKS, cache_dir=str(tmp_path / "given"))):
        by_add(metric, *maps)
        by_add_batch(metric, *maps)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# What a metric refuses


def test_compute_without_images_raises(maps):
    metric = MultiTaskMetric(TWO_TASKS)
    with pytest.raises(ValueError, match="nothing to score; call `add`"):
        metric.compute()
    metric.add_batch({"depth": [], "semseg": []}, {"depth": [], "semseg": []})
    with pytest.raises(ValueError, match="nothing to score"):
        metric.compute()


@pytest.mark.parametrize("way", ["add_batch", "compute"])
@pytest.mark.parametrize("task", ["semseg", "boundary"])
def test_a_batch_that_raises_adds_nothing(maps, task, way):
    metric = MultiTaskMetric(TASK_NUM_LABELS)
    metric.add_batch(*maps)
    spoilt = {**maps[0], task: [*maps[0][task][:2], maps[0][task][2][..., 1:]]}
    with pytest.raises(ValueError, match=f"Cannot score {task}"):
        getattr(metric, way)(predictions=spoilt, references=maps[1])
    assert len(metric) == 3
    assert metric.compute() == MultiTaskMetric(TASK_NUM_LABELS).compute(predictions=maps[0], references=maps[1])


def test_different_numbers_of_images_per_task_raise(maps):
    predictions, references = ({**side, "depth": side["depth"][:2]} for side in maps)
    with pytest.raises(ValueError, match=r"same number of images; got \{'depth': 2, 'semseg': 3\}"):
        MultiTaskMetric(TWO_TASKS).add_batch(predictions, references)


def test_a_missing_label_raises(maps):
    with pytest.raises(ValueError, match="one depth label per prediction; got 2 labels for 3 predictions"):
        MultiTaskMetric(TWO_TASKS).add_batch(maps[0], {**maps[1], "depth": maps[1]["depth"][:2]})


@pytest.mark.parametrize("way", ["add", "add_batch", "compute"])
@pytest.mark.parametrize("side", ["predictions", "references"])
def test_a_missing_task_raises(maps, side, way):
    pair = {"predictions": maps[0], "references": maps[1]}
    pair[side] = {task: values for task, values in pair[side].items() if task != "depth"}
    if way == "add":
        pair = {name.removesuffix("s"): image_of(values, 0) for name, values in pair.items()}
    with pytest.raises(ValueError, match=r"need the task 'depth'; got \['semseg'.*\] and \['semseg'"):
        getattr(MultiTaskMetric(TWO_TASKS), way)(**pair)


@pytest.mark.parametrize("side", ["predictions", "references"])
def test_one_side_alone_raises(maps, side):
    with pytest.raises(ValueError, match=r"dicts by task; got .*NoneType"):
        MultiTaskMetric(TWO_TASKS).compute(**{side: maps[0]})


def test_a_list_in_place_of_the_tasks_raises(maps):
    with pytest.raises(ValueError, match="dicts by task; got list and dict"):
        MultiTaskMetric(TWO_TASKS).add_batch(maps[0]["depth"], maps[1])


def test_an_unknown_task_raises():
    with pytest.raises(ValueError, match="Unknown task 'flow'.*'boundary', 'depth'"):
        MultiTaskMetric({"flow": 2})


@pytest.mark.parametrize("task", ["boundary", "flow"])
def test_keyword_arguments_of_a_task_that_is_not_the_metric_s_raise(task):
    with pytest.raises(ValueError, match=rf"tasks of the metric, \['depth', 'semseg'\]; got \['{task}'\]"):
        MultiTaskMetric(TWO_TASKS, task_metric_kwargs={task: {"max_distance": 0.0075}})


# Keyword arguments of a task


def boundary_scores_with(task_metric_kwargs=None):
    """A straight boundary, and a mask 6 pixels from it; the diagonal is 100 pixels."""
    label = torch.repeat_interleave(torch.tensor([[0.0, 1.0]]), 40, dim=1).expand(60, 80)
    prediction = torch.zeros(60, 80, dtype=torch.bool)
    prediction[:, 45] = True
    metric = MultiTaskMetric({"boundary": 1, "depth": 1}, task_metric_kwargs)
    metric.add({"boundary": prediction, "depth": torch.ones(2, 2)}, {"boundary": label, "depth": torch.ones(1, 2, 2)})
    return metric.compute()


def test_the_distance_of_boundaries_is_a_keyword_argument():
    near, far = (boundary_scores_with({"boundary": {"max_distance": share}}) for share in (0.0599, 0.06))
    assert (near["boundary/odsf"], far["boundary/odsf"]) == (0, 1)
    assert near["depth/rmse"] == far["depth/rmse"]


def test_the_default_distance_of_boundaries_is_that_of_nyud_v2(maps):
    default = MultiTaskMetric({"boundary": 1})
    given = MultiTaskMetric({"boundary": 1}, task_metric_kwargs={"boundary": {"max_distance": 0.011}})
    assert by_add(default, *maps) == by_add(given, *maps)


# A task of the user's own without metric


@pytest.fixture
def flow():
    spec = TaskSpec(
        name="flow",
        num_labels=2,
        kind=TaskKind(
            values="pixels",
            num_channels=2,
            predict=lambda logits: logits,
            colorize=lambda flow: np.zeros((*flow.shape[1:], 3), dtype=np.uint8),
        ),
        loss=torch.nn.functional.l1_loss,
    )
    register_task(spec)
    yield spec
    del TASKS["flow"]


def test_a_task_without_a_metric_is_left_out(flow, maps):
    metric = MultiTaskMetric({"flow": 2, "depth": 1})
    assert set(metric.features["predictions"]) == {"depth"}
    flows = {"flow": [torch.ones(2, *size) for size in SIZES]}
    scores = by_add_batch(metric, {**maps[0], **flows}, {**maps[1], **flows})
    assert {key.split("/")[0] for key in scores} == {"depth"}


def test_a_task_without_a_metric_takes_no_keyword_arguments(flow):
    with pytest.raises(ValueError, match=r"tasks of the metric, \['depth'\]; got \['flow'\]"):
        MultiTaskMetric({"flow": 2, "depth": 1}, task_metric_kwargs={"flow": {}})


def test_a_metric_of_no_task_has_nothing_to_score(flow):
    metric = MultiTaskMetric({"flow": 2})
    metric.add_batch({"flow": [torch.ones(2, 3, 3)]}, {"flow": [torch.ones(2, 3, 3)]})
    with pytest.raises(ValueError, match="nothing to score"):
        metric.compute()


def test_a_task_without_a_metric_has_no_gain(flow):
    assert multi_task_gain({"flow/error": 1.0, "semseg/miou": 0.6}, {"semseg/miou": 0.5}) == pytest.approx(20)


# The gain over single tasks: Table 2 of the paper


MAIN = ("semseg/miou", "depth/rmse", "normal/mean_error", "boundary/odsf")


def main_results(*values):
    return dict(zip(MAIN, values, strict=True))


SINGLE_TASKS = main_results(54.27, 0.5147, 18.96, 77.80)


@pytest.mark.parametrize(
    ("results", "gain"),
    [
        (main_results(52.39, 0.5223, 19.23, 77.40), -1.72),
        (main_results(53.40, 0.5192, 19.15, 77.70), -0.90),
        (main_results(56.01, 0.5026, 18.63, 78.20), 1.95),
        (main_results(55.83, 0.5053, 18.60, 78.10), 1.75),
        (main_results(56.82, 0.4937, 18.45, 78.40), 3.06),
        (SINGLE_TASKS, 0.0),
    ],
)
def test_the_gains_of_the_paper(results, gain):
    assert round(multi_task_gain(results, SINGLE_TASKS), 2) == gain


def test_only_main_scores_count():
    results = main_results(56.82, 0.4937, 18.45, 78.40)
    others = {"semseg/pixel_accuracy": 0.1, "depth/abs_rel": 9.0, "normal/within_30": 0.0, "boundary/ap": 0.3}
    better = {"semseg/pixel_accuracy": 0.9, "boundary/ois": 0.8}
    gain = multi_task_gain(results, SINGLE_TASKS)
    assert multi_task_gain({**others, **results}, {**SINGLE_TASKS, **better}) == gain
    # a constant factor on both sides, percent or fraction, changes nothing
    fractions = [{**values, "semseg/miou": values["semseg/miou"] / 100} for values in (results, SINGLE_TASKS)]
    assert multi_task_gain(*fractions) == pytest.approx(gain, rel=1e-12)


@pytest.mark.parametrize(
    ("key", "sign"),
    [
        ("semseg/miou", 1),
        ("depth/rmse", -1),
        ("normal/mean_error", -1),
        ("boundary/odsf", 1),
        ("parsing/miou", 1),
        ("saliency/maxf", 1),
    ],
)
def test_more_is_a_gain_of_scores_and_a_loss_of_errors(key, sign):
    assert multi_task_gain({key: 0.6}, {key: 0.5}) == pytest.approx(20 * sign)


def test_the_scores_of_a_metric_have_a_gain(maps):
    scores = MultiTaskMetric(TASK_NUM_LABELS).compute(predictions=maps[0], references=maps[1])
    better = {**scores, "depth/rmse": scores["depth/rmse"] / 2}
    assert multi_task_gain(better, scores) == pytest.approx(50 / len(TASKS))


@pytest.mark.parametrize(
    ("results", "single_task_results"),
    [
        ({}, {}),
        ({"semseg/miou": 0.5}, {}),
        ({}, {"semseg/miou": 0.5}),
        ({"semseg/miou": 0.5}, {"semseg/miou": 0.5, "depth/rmse": 0.5}),
        ({"semseg/miou": 0.5, "depth/rmse": 0.5}, {"semseg/miou": 0.5}),
        ({"semseg/miou": 0.5}, {"parsing/miou": 0.5}),
        ({"semseg/pixel_accuracy": 0.5}, {"semseg/pixel_accuracy": 0.5}),
        ({"semseg/miou": 0.5}, {"semseg/pixel_accuracy": 0.5}),
    ],
    ids=str,
)
def test_results_without_the_same_main_scores_raise(results, single_task_results):
    with pytest.raises(ValueError, match=r"same main scores of both; got \["):
        multi_task_gain(results, single_task_results)


@pytest.mark.parametrize("single", [0.0, -0.5, np.nan, np.inf], ids=str)
def test_a_baseline_that_is_no_base_of_a_ratio_raises(single):
    with pytest.raises(
        ValueError, match=f"gain of semseg/miou needs numbers, the second above 0; got 0.5 and {single}"
    ):
        multi_task_gain({"semseg/miou": 0.5, "depth/rmse": 1.0}, {"semseg/miou": single, "depth/rmse": 1.0})


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
def test_a_result_that_is_no_number_raises(value):
    with pytest.raises(ValueError, match=f"gain of depth/rmse needs numbers, .* got {value} and 1.0"):
        multi_task_gain({"depth/rmse": value}, {"depth/rmse": 1.0})


# Two ranks


RANK_SCRIPT = """
import json, pathlib, sys

import torch

from accelerate import Accelerator
from transformers_sem import MultiTaskMetric

folder = pathlib.Path(sys.argv[1])
accelerator = Accelerator(cpu=True)
rank, (predictions, references) = accelerator.process_index, torch.load(folder / "maps.pt")
scores = []
for num_first in (0, 1):
    share = slice(0, num_first) if rank == 0 else slice(num_first, None)
    metric = MultiTaskMetric(json.loads((folder / "tasks.json").read_text()))
    metric.add_batch(*({task: maps[share] for task, maps in side.items()} for side in (predictions, references)))
    scores.append(metric.compute(accelerator=accelerator))
    assert accelerator.num_processes == 2 and len(metric) == 0
(folder / f"scores{rank}.json").write_text(json.dumps(scores))
accelerator.end_training()
"""


@pytest.fixture(scope="module")
def rank_results(tmp_path_factory):
    """Scores of two ranks and of one process, of a set of which the first rank holds no image, then one."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(0)
    maps = random_maps(sizes=[*SIZES, (11, 12)])
    torch.save(maps, folder / "maps.pt")
    (folder / "tasks.json").write_text(json.dumps(TASK_NUM_LABELS))
    (folder / "rank.py").write_text(RANK_SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    run = subprocess.run(
        [*launcher, folder / "rank.py", folder],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    ranks = [json.loads((folder / f"scores{rank}.json").read_text()) for rank in range(2)]
    return ranks, MultiTaskMetric(TASK_NUM_LABELS).compute(predictions=maps[0], references=maps[1])


@pytest.mark.slow
@pytest.mark.parametrize("num_first", [0, 1])
@pytest.mark.parametrize("rank", [0, 1])
def test_uneven_ranks_score_as_one_process_does(rank_results, rank, num_first):
    ranks, scores = rank_results
    assert ranks[rank][num_first] == pytest.approx(scores, rel=1e-12)
    assert list(ranks[rank][num_first]) == list(scores)


@pytest.mark.parametrize(
    ("task", "width", "arguments", "expected"),
    [
        ("semseg", 0, {}, r"2 to 255 channels; got 0 for semseg"),
        ("semseg", "3", {}, r"2 to 255 channels; got '3' for semseg"),
        ("semseg", True, {}, r"2 to 255 channels; got True"),
        ("semseg", 2**63, {}, r"2 to 255 channels"),
        (
            "boundary",
            1,
            {"tolerance": 3},
            r"`task_metric_kwargs\['boundary'\]` are arguments of its statistics: got an unex",
        ),
    ],
)
def test_a_metric_that_cannot_be_computed_is_refused(task, width, arguments, expected):
    with pytest.raises(ValueError, match=expected):
        MultiTaskMetric({task: width}, {task: arguments})


def test_an_8_bit_mask_of_two_classes_is_refused():
    """Its foreground would be invalid, and the constant predictor perfect."""
    mask = np.eye(4, dtype=np.uint8) * 255
    with pytest.raises(
        ValueError, match="Cannot score semseg: .* 0 and 255 alone, where 255 is white. Divide it by 255"
    ):
        MultiTaskMetric({"semseg": 2}).compute(predictions={"semseg": [mask * 0]}, references={"semseg": [mask]})
    for width, reference in ((2, mask.astype(np.int64)), (3, mask), (2, mask // 255)):
        metric = MultiTaskMetric({"semseg": width})
        assert metric.compute(predictions={"semseg": [mask * 0]}, references={"semseg": [reference]})


@pytest.mark.parametrize(
    "values", [np.zeros((4, 4), "M8[s]"), torch.zeros(4, 4, device="meta")], ids=["dates", "meta"]
)
def test_what_holds_no_numbers_is_not_scored(values):
    with pytest.raises(ValueError, match="A map is an array or a dense tensor that holds numbers"):
        MultiTaskMetric({"depth": 1}).compute(predictions={"depth": [values]}, references={"depth": [values]})

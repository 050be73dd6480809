"""Evaluation on rooms of the embedded dataset, with a model of random weights."""

import importlib
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from accelerate import Accelerator
from datasets import Dataset, DatasetDict, Features, Image, Value
from huggingface_hub.errors import StrictDataclassError
from PIL import Image as PILImage

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.data.benchmarks import BENCHMARKS, Benchmark
from transformers_sem.data.row_format import FEATURES, encode_row
from transformers_sem.data.scenes import CLASS_NAMES, Scenes, render_scene
from transformers_sem.data.transforms import row_to_tensors
from transformers_sem.evaluation import evaluator as evaluating
from transformers_sem.evaluation.boundary import boundary_counts, boundary_scores
from transformers_sem.evaluation.config import EvaluationConfig, is_only_training_data, read_training
from transformers_sem.evaluation.constant_predictor import ConstantPredictor
from transformers_sem.evaluation.evaluator import (
    Evaluation,
    count_scored,
    describe_unscored,
    evaluate_and_report,
    finish,
    flatten,
    name_classes,
    predict,
    predict_rows,
    unflatten,
)
from transformers_sem.evaluation.metrics import METRICS
from transformers_sem.evaluation.sums import MetricSums
from transformers_sem.utils.files import locked

from ..tiny import tiny_config


WIDTHS = {"semseg": 15, "depth": 1, "normal": 3, "boundary": 1}
SIZES = [(32, 64), (30, 41), (32, 64), (17, 64), (32, 64)]  # heights and widths of the validation images
NAMES = ["e", "d", "c", "b", "a"]
JUDGED = frozenset({"d", "a"})
MAX_DISTANCE = 0.05


def make_row(name, seed, size):
    """A scene, and a label map of its own: two halves."""
    label_map = np.full(size, 400, np.uint16)
    label_map[:, size[1] // 2 :] = 7
    return {"id": name, **encode_row(render_scene(seed, *size)), "label_map": PILImage.fromarray(label_map)}


@pytest.fixture(scope="module")
def rows():
    features = Features({"id": Value("string"), **FEATURES, "label_map": Image()})
    train = [make_row(str(seed), 2 * seed, (32, 64)) for seed in range(3)]
    validation = [make_row(name, 2 * seed + 1, SIZES[seed]) for seed, name in enumerate(NAMES)]
    return DatasetDict(
        train=Dataset.from_list(train, features=features), validation=Dataset.from_list(validation, features=features)
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SEMForMultiTaskDensePrediction(tiny_config(task_num_labels=dict(WIDTHS))).eval()


@pytest.fixture(scope="module")
def image_processor():
    size = {"height": 32, "width": 64}
    return SEMImageProcessor(size=size, pad_size=size, do_resize=False, do_pad=True)


BENCHMARK = Benchmark(
    builder=Scenes,
    tasks=list(WIDTHS),
    class_names={"semseg": CLASS_NAMES["semseg"]},
    needs_data_dir=False,
    task_metric_kwargs={"boundary": {"max_distance": MAX_DISTANCE}, "saliency": {"unused": "by these models"}},
)


@pytest.fixture(scope="module")
def evaluate(rows, model, image_processor, tmp_path_factory):
    """Evaluates and returns the report and the rows of the table."""

    def evaluate(
        folder=None, *, benchmark=BENCHMARK, rows=rows, model=model, processes=None, predictions=None, **settings
    ):
        path = (folder or tmp_path_factory.mktemp("evaluation")) / "evaluation.json"
        config = EvaluationConfig(dataset="mine", **{"batch_size": 2, "seed": 5, **settings})
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(BENCHMARKS, "mine", benchmark)
            if processes is None:  # threads take no second to start
                patch.setattr(evaluating, "process_pool", ThreadPoolExecutor)
            evaluate_and_report(
                config,
                Accelerator(cpu=True),
                model,
                image_processor,
                rows,
                path,
                num_processes=processes or 1,
                predictions_dir=predictions,
            )
        return json.loads(path.read_text()), pq.read_table(path.with_suffix(".parquet")).to_pylist()

    return evaluate


@pytest.fixture(scope="module")
def plain(evaluate):
    """Report and table of all images by the rows' own labels."""
    return evaluate()


@pytest.fixture(scope="module")
def predictions(rows, model, image_processor):
    """What the model predicts, image by image in batches of two, as the evaluation makes them."""
    return list(predict_rows(model, image_processor, rows["validation"], 2))


def outcome(report):
    """A report without the circumstances."""
    return {key: value for key, value in report.items() if key not in ("command", "environment")}


def test_images_without_a_label_do_not_count_for_its_task(evaluate, rows, plain):
    part = rows["validation"].to_list()
    part[0]["depth"] = part[1]["boundary"] = part[1]["label_map"] = None
    partial_rows = DatasetDict(
        train=rows["train"], validation=Dataset.from_list(part, features=rows["validation"].features)
    )
    report, table = evaluate(rows=partial_rows)
    assert report["num_scored_images"] == {"semseg": 5, "depth": 4, "normal": 5, "boundary": 4}
    assert table[0]["depth/rmse"] is None and table[1]["boundary/odsf"] is None
    assert table[1]["depth/rmse"] == plain[1][1]["depth/rmse"]
    assert report["scores"]["semseg/miou"] == plain[0]["scores"]["semseg/miou"]


# ----------------------------------------------------------------------------------------------------------------------
# predict and predict_rows


def test_every_image_is_predicted_at_its_size_and_in_order(predictions, rows):
    for prediction, size, row in zip(predictions, SIZES, rows["validation"], strict=True):
        assert prediction.image.shape == (3, *size) and prediction.image.dtype == torch.uint8
        np.testing.assert_array_equal(prediction.image.permute(1, 2, 0), np.asarray(row["image"]))
        assert list(prediction.maps) == list(prediction.labels) == list(WIDTHS)
        assert {tuple(value.shape[-2:]) for value in prediction.maps.values()} == {size}


def test_the_batch_size_makes_no_difference(predictions, rows, model, image_processor):
    for batch_size in (1, 5, 100):
        for found, expected in zip(
            predict_rows(model, image_processor, rows["validation"], batch_size), predictions, strict=True
        ):
            torch.testing.assert_close(found.maps["depth"], expected.maps["depth"])
            torch.testing.assert_close(found.maps["boundary"], expected.maps["boundary"])


def test_prediction_leaves_no_gradient_and_lies_in_memory(model, image_processor):
    maps = predict(model, image_processor, [torch.zeros(3, 20, 30, dtype=torch.uint8)])
    assert len(maps) == 1
    assert not any(value.requires_grad or value.device.type != "cpu" for value in maps[0].values())


# ----------------------------------------------------------------------------------------------------------------------
# What is scored


def test_scores_are_those_of_the_predictions(plain, predictions, rows, model):
    report, _ = plain
    constant = ConstantPredictor(WIDTHS)
    for row in rows["train"]:
        constant.add(row_to_tensors(row, WIDTHS)[1])
    for key, maps in (
        ("scores", [prediction.maps for prediction in predictions]),
        ("constant_scores", [constant.predict(size) for size in SIZES]),
    ):
        metric = MetricSums(WIDTHS, {"boundary": {"max_distance": MAX_DISTANCE}})
        for image_maps, prediction in zip(maps, predictions, strict=True):
            metric.add(
                {task: metric.image_statistics(task, image_maps[task], prediction.labels[task]) for task in WIDTHS}
            )
        assert report[key] == pytest.approx(metric.scores(), rel=1e-12)
    assert report["scores"] != report["constant_scores"]
    assert (report["dataset"], report["num_images"], report["seed"]) == ("mine", 5, 5)
    assert report["num_scored_images"] == dict.fromkeys(WIDTHS, 5)
    assert report["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert report["data"] == {"title": "", "terms": "", "license": "other", "limits": ""}
    assert report["training"] is None  # of a model that was never saved


def test_every_image_has_the_scores_that_it_gets_alone(plain, evaluate, rows):
    report, table = plain
    assert [row["id"] for row in table] == NAMES
    assert set(table[0]) == {"id", *report["scores"]}
    for index, image_scores in enumerate(table):
        alone = DatasetDict(train=rows["train"], validation=rows["validation"].select([index]))
        scores, _ = evaluate(rows=alone)
        assert {key: image_scores[key] for key in scores["scores"]} == pytest.approx(scores["scores"], rel=1e-5)


def test_tasks_that_an_image_lacks_are_null(evaluate, rows):
    def hide(row):
        return {"semseg": PILImage.new("L", row["semseg"].size, 255)} if row["id"] == "d" else row

    validation = rows["validation"].map(hide, load_from_cache_file=False)
    report, table = evaluate(rows=DatasetDict(train=rows["train"], validation=validation))
    assert [row["semseg/miou"] is None for row in table] == [False, True, False, False, False]
    assert not any(row["depth/rmse"] is None for row in table)
    assert report["num_scored_images"] == {"semseg": 4, "depth": 5, "normal": 5, "boundary": 5}


def without_boundaries(report):
    return {key: value for key, value in report["scores"].items() if not key.startswith("boundary")}


def label_maps(rows):
    return [np.asarray(label_map) for label_map in rows["validation"]["label_map"]]


def odsf(predictions, labels):
    pairs = zip(predictions, labels, strict=True)
    counts = [boundary_counts(prediction.maps["boundary"], label, MAX_DISTANCE) for prediction, label in pairs]
    return boundary_scores(np.stack(counts))["ods"]


def test_a_task_is_judged_on_the_column_of_the_protocol(plain, evaluate, predictions, rows):
    benchmark = replace(BENCHMARK, reference_columns={"boundary": "label_map"})
    report, table = evaluate(benchmark=benchmark)
    scores = plain[0]["scores"]
    assert report["scores"]["boundary/odsf"] == odsf(predictions, label_maps(rows))
    assert scores["boundary/odsf"] == odsf(predictions, [image.labels["boundary"] for image in predictions])
    assert scores["boundary/odsf"] != report["scores"]["boundary/odsf"]
    assert table[1]["boundary/odsf"] == odsf(predictions[1:2], label_maps(rows)[1:2])
    assert without_boundaries(report) == without_boundaries(plain[0])


def test_a_task_is_judged_on_the_images_of_the_protocol(plain, evaluate, predictions, rows):
    benchmark = replace(BENCHMARK, reference_columns={"boundary": "label_map"}, scored_ids={"boundary": JUDGED})
    report, table = evaluate(benchmark=benchmark)
    judged = [index for index, name in enumerate(NAMES) if name in JUDGED]
    labels = label_maps(rows)
    expected = odsf([predictions[index] for index in judged], [labels[index] for index in judged])
    assert report["scores"]["boundary/odsf"] == expected
    assert report["num_images"] == 5
    assert report["num_scored_images"] == {"semseg": 5, "depth": 5, "normal": 5, "boundary": 2}
    assert [row["boundary/odsf"] is None for row in table] == [name not in JUDGED for name in NAMES]
    assert without_boundaries(report) == without_boundaries(plain[0])


def test_without_a_judged_image_a_task_has_no_scores_and_a_warning(evaluate, caplog):
    report, table = evaluate(benchmark=replace(BENCHMARK, scored_ids={"boundary": frozenset({"elsewhere"})}))
    assert {key.split("/")[0] for key in report["scores"]} == {"semseg", "depth", "normal"}
    assert "boundary/odsf" not in table[0]
    assert "boundary" in caplog.text


def test_the_tolerance_of_the_protocol_is_used(plain, evaluate):
    benchmark = replace(BENCHMARK, task_metric_kwargs={"boundary": {"max_distance": 0.2}})
    assert evaluate(benchmark=benchmark)[0]["scores"]["boundary/odsf"] > plain[0]["scores"]["boundary/odsf"]


def test_classes_have_names_and_scores(evaluate, model, monkeypatch):
    names = {"semseg": {0: "wall", 3: "window"}}
    monkeypatch.setattr(model.config, "task_id2label", names)
    report, _ = evaluate()
    semseg = report["class_scores"]["semseg"]
    assert list(semseg) == ["wall", "1", "2", "window", *map(str, range(4, 15))]
    assert np.mean(list(semseg.values())) == pytest.approx(report["scores"]["semseg/miou"])
    assert list(report["class_scores"]) == ["semseg"]


def test_classes_without_names_go_by_their_ids():
    assert name_classes({"parsing": [0.5, 1.0]}, {"semseg": {0: "wall"}}) == {"parsing": {"0": 0.5, "1": 1.0}}


def test_scored_images_are_counted_by_their_main_score():
    images = [{"id": "a", "depth/rmse": 1.0}, {"id": "b", "depth/absrel": 1.0}, {"id": "c", "semseg/miou": 0.0}]
    assert count_scored(images, {"depth/rmse": 1.0, "depth/absrel": 1.0, "semseg/miou": 0.0}) == {
        "depth": 1,
        "semseg": 1,
    }


def test_some_images_are_the_first_ones(evaluate):
    report, table = evaluate(num_evaluation_images=2)
    assert [row["id"] for row in table] == NAMES[:2]
    assert report["num_images"] == 2
    assert evaluate(num_evaluation_images=100)[0]["num_images"] == 5


def test_rows_without_names_go_by_their_numbers(evaluate, rows):
    _, table = evaluate(rows=DatasetDict({split: part.remove_columns("id") for split, part in rows.items()}))
    assert [row["id"] for row in table] == ["0", "1", "2", "3", "4"]


def test_a_model_of_one_task_is_judged_on_it(evaluate):
    torch.manual_seed(0)
    model = SEMForMultiTaskDensePrediction(tiny_config(task_num_labels={"depth": 1}))
    report, _ = evaluate(model=model)
    assert {key.split("/")[0] for key in report["scores"]} == {"depth"}
    assert report["class_scores"] == {}


def test_a_model_is_judged_on_the_tasks_that_the_data_has_too(plain, evaluate, make_evaluation, rows, model):
    scores = {key: value for key, value in plain[0]["scores"].items() if key.split("/")[0] in ("depth", "normal")}
    fewer = replace(BENCHMARK, tasks=["normal", "depth"], task_metric_kwargs={})
    without = DatasetDict({split: part.remove_columns(["semseg", "boundary"]) for split, part in rows.items()})
    for values in ({"benchmark": fewer}, {"rows": without}):
        assert evaluate(**values)[0]["scores"] == pytest.approx(scores)
    line = describe_unscored(model, make_evaluation(benchmark=fewer))
    assert line == "\nNot scored, because the data has no labels of them: semseg, boundary."
    assert describe_unscored(model, make_evaluation()) == ""
    with pytest.raises(ValueError, match="tasks that the data has labels of, .'parsing'.; it predicts"):
        evaluate(benchmark=replace(fewer, tasks=["parsing"]))


def test_one_evaluation_writes_a_report_at_a_time(evaluate, tmp_path):
    with locked(tmp_path / ".evaluation.lock", "One test"), pytest.raises(ValueError, match="at a time; another"):
        evaluate(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".evaluation.lock"]


def test_one_evaluation_writes_predictions_to_a_folder_at_a_time(evaluate, tmp_path):
    with (
        locked(tmp_path / ".maps_predictions.lock", "One test"),
        pytest.raises(ValueError, match="predictions to a folder"),
    ):
        evaluate(tmp_path, predictions=tmp_path / "maps")
    assert not (tmp_path / "evaluation.json").exists()


def test_the_locks_are_held_until_the_report_is_written(evaluate, tmp_path, monkeypatch):
    def save(path, **values):
        for lock in (tmp_path / ".evaluation.lock", tmp_path / ".maps_predictions.lock"):
            with pytest.raises(ValueError, match="at a time; another"), locked(lock, "One test at a time"):
                pass
        save_report(path, **values)

    save_report = evaluating.save_report
    monkeypatch.setattr(evaluating, "save_report", save)
    report, _ = evaluate(tmp_path, predictions=tmp_path / "maps", num_evaluation_images=1)
    assert report["num_images"] == 1


def test_without_an_image_there_is_no_report(evaluate, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluating, "gather_object", lambda values: values[1:])
    with pytest.raises(ValueError, match="every image once; got 4 of 5"):
        evaluate(tmp_path)
    assert not (tmp_path / "evaluation.json").exists()


@pytest.mark.parametrize("task", ["depth", "boundary"])
def test_a_model_that_predicts_nan_is_an_error_and_writes_no_scores(evaluate, tmp_path, task):
    model = SEMForMultiTaskDensePrediction(tiny_config(task_num_labels={task: 1}))
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    with pytest.raises(ValueError, match=r"NaN|nan"):
        evaluate(tmp_path, model=model)
    assert not (tmp_path / "evaluation.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_any_number_of_processes_gives_the_same(plain, evaluate, processes):
    report, table = evaluate(processes=processes)
    assert outcome(report) == outcome(plain[0])
    assert table == plain[1]


# ----------------------------------------------------------------------------------------------------------------------
# Interrupted evaluations


class Seen(list):
    """Sizes of the images that models saw; an evaluation is interrupted before it sees image number `interrupt_at`."""

    interrupt_at = None


@pytest.fixture
def seen(monkeypatch):
    """What models see from now on."""
    seen = Seen()

    def predict_and_note(model, image_processor, images):
        if len(seen) == seen.interrupt_at:
            raise KeyboardInterrupt
        seen.extend(tuple(image.shape[-2:]) for image in images)
        return predict(model, image_processor, images)

    monkeypatch.setattr(evaluating, "predict", predict_and_note)
    return seen


@pytest.fixture
def interrupted(evaluate, seen, tmp_path):
    """The files of an evaluation that was interrupted: of five images the model saw four, and one or two are finished."""
    seen.interrupt_at = 4
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path)
    seen.interrupt_at = None
    seen.clear()
    assert not (tmp_path / "evaluation.json").exists()
    return tmp_path / "unfinished_evaluation"


def finished_images(folder):
    """Names of the images that are finished."""
    return {path.stem for path in folder.glob("*/*.npz")}


def sizes_without(finished):
    """The sizes of the images that are predicted again: those of the batches of two that are not finished."""
    batches = [range(start, min(start + 2, len(SIZES))) for start in range(0, len(SIZES), 2)]
    return [SIZES[index] for batch in batches if not {str(i) for i in batch} <= set(finished) for index in batch]


def assert_same_outcome(found, expected):
    """Equal but for the last bits: the statistics of the images are added in another order."""
    assert found[0]["scores"] == pytest.approx(expected[0]["scores"], rel=1e-5)
    assert found[0]["num_images"] == expected[0]["num_images"]
    assert found[0]["num_scored_images"] == expected[0]["num_scored_images"]
    for found_row, expected_row in zip(found[1], expected[1], strict=True):
        assert found_row == {
            key: value if key == "id" else pytest.approx(value, rel=1e-5) for key, value in expected_row.items()
        }


def test_a_changed_file_of_a_metric_is_another_metric(evaluate, plain, make_evaluation, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_metric.py").write_text("def reduce(statistics):\n    return {'rmse': 1.0}\n")
    reduce = importlib.import_module("own_metric").reduce
    monkeypatch.setitem(METRICS, "depth", replace(METRICS["depth"], reduce=reduce))
    fingerprint = make_evaluation().fingerprint()
    assert evaluate()[0]["constant_scores"]["depth/rmse"] == 1
    (tmp_path / "own_metric.py").write_text("def reduce(statistics):\n    return {'rmse': 2.00}\n")
    reduce = importlib.reload(sys.modules["own_metric"]).reduce
    monkeypatch.setitem(METRICS, "depth", replace(METRICS["depth"], reduce=reduce))
    assert make_evaluation().fingerprint() != fingerprint
    assert evaluate()[0]["constant_scores"]["depth/rmse"] == 2


def test_an_interrupted_evaluation_goes_on_where_it_was(plain, evaluate, seen, interrupted, tmp_path):
    finished = finished_images(interrupted)
    assert 0 < len(finished) < 4
    assert_same_outcome(evaluate(tmp_path), plain)
    assert seen == sizes_without(finished)
    assert not interrupted.exists()


def test_the_scores_of_the_constant_predictor_may_become_known_meanwhile(plain, evaluate, seen, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    seen.interrupt_at = 4
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path)
    seen.interrupt_at = None
    finished = finished_images(tmp_path / "unfinished_evaluation")
    evaluate()
    seen.clear()
    assert_same_outcome(evaluate(tmp_path), plain)
    assert seen == sizes_without(finished)


def test_images_that_no_task_is_scored_on_are_finished_too(evaluate, seen, tmp_path):
    unscored = replace(BENCHMARK, scored_ids={task: frozenset(NAMES[2:]) for task in WIDTHS})
    seen.interrupt_at = 4
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, benchmark=unscored)
    seen.interrupt_at = None
    finished = finished_images(tmp_path / "unfinished_evaluation")
    seen.clear()
    assert evaluate(tmp_path, benchmark=unscored)[0]["num_scored_images"] == dict.fromkeys(WIDTHS, 3)
    assert finished and seen == sizes_without(finished)


def test_images_without_the_constant_predictor_are_evaluated_again(
    plain, evaluate, seen, interrupted, tmp_path, monkeypatch
):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    report, table = evaluate(tmp_path)
    assert seen == SIZES
    assert (report["constant_scores"], table) == (plain[0]["constant_scores"], plain[1])


def test_images_that_other_ranks_finished_are_used(evaluate, seen, interrupted, tmp_path):
    first = next(interrupted.glob("*/0.npz"))
    for name in ("4", "3"):
        shutil.copyfile(first, first.with_name(f"{name}.npz"))
    finished = finished_images(interrupted)
    report, table = evaluate(tmp_path)
    assert seen == sizes_without(finished)
    assert report["num_images"] == 5
    assert table[3]["depth/rmse"] == table[4]["depth/rmse"] == table[0]["depth/rmse"]
    assert not interrupted.exists()


def test_an_evaluation_that_ended_leaves_nothing_to_go_on_from(plain, evaluate, seen, tmp_path):
    for _ in range(2):
        assert evaluate(tmp_path)[1] == plain[1]
    assert seen == SIZES * 2
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["evaluation.json", "evaluation.parquet"]


def test_another_model_starts_anew(evaluate, seen, interrupted, model, tmp_path, caplog):
    other = deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    found = evaluate(tmp_path, model=other)
    assert seen == SIZES
    assert "another model or other settings" in caplog.text
    assert found[1] == evaluate(model=other)[1]


def test_a_damaged_image_is_evaluated_again(plain, evaluate, seen, interrupted, tmp_path, caplog):
    path = next(interrupted.glob("*/0.npz"))
    path.write_bytes(path.read_bytes()[:-100])
    finished = finished_images(interrupted) - {"0"}
    assert_same_outcome(evaluate(tmp_path), plain)
    assert seen == sizes_without(finished)
    assert "0.npz is damaged" in caplog.text


def test_images_of_the_predictions_are_complete_after_an_interruption(evaluate, seen, tmp_path):
    images = tmp_path / "images"
    seen.interrupt_at = 4
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, predictions=images)
    seen.interrupt_at = None
    evaluate(tmp_path, predictions=images)
    assert len(seen) < 4 + len(SIZES)
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.*"))
    assert names == sorted(f"{task}/{name}.png" for task in WIDTHS for name in NAMES)


def test_the_constant_predictor_is_fitted_and_scored_once(evaluate, plain, rows, model, monkeypatch):
    other = deepcopy(model)
    other.heads["depth"].classifier.bias.data += 1.0
    monkeypatch.setattr(ConstantPredictor, "add", None)
    monkeypatch.setattr(ConstantPredictor, "predict", None)
    report, _ = evaluate(model=other)
    assert report["constant_scores"] == plain[0]["constant_scores"]
    assert report["scores"]["depth/rmse"] != plain[0]["scores"]["depth/rmse"]
    monkeypatch.undo()
    assert evaluate(num_evaluation_images=2)[0]["constant_scores"] != plain[0]["constant_scores"]
    monkeypatch.setitem(METRICS, "depth", replace(METRICS["depth"], reduce=lambda statistics: {"rmse": -1.0}))
    assert evaluate()[0]["constant_scores"]["depth/rmse"] == -1
    monkeypatch.undo()
    of_two = replace(BENCHMARK, scored_ids={"depth": frozenset(NAMES[:2])})
    assert evaluate(benchmark=of_two)[0]["constant_scores"] != plain[0]["constant_scores"]


# ----------------------------------------------------------------------------------------------------------------------
# Parts of Evaluation


@pytest.fixture
def make_evaluation(rows, model, image_processor, tmp_path):
    def make_evaluation(**values):
        constant = ConstantPredictor(WIDTHS)
        constant.add(row_to_tensors(rows["train"][0], WIDTHS)[1])
        defaults = {
            "model": model,
            "image_processor": image_processor,
            "rows": rows["validation"],
            "benchmark": BENCHMARK,
            "constant": constant,
            "accelerator": Accelerator(cpu=True),
            "batch_size": 2,
            "num_processes": 1,
            "unfinished_dir": tmp_path / "unfinished",
        }
        return Evaluation(**{**defaults, **values})

    return make_evaluation


def test_a_fingerprint_does_not_change_by_itself(make_evaluation, model):
    fingerprint = make_evaluation().fingerprint()
    assert make_evaluation(model=deepcopy(model)).fingerprint() == fingerprint
    assert make_evaluation(num_processes=7).fingerprint() == fingerprint


def test_a_fingerprint_changes_with_what_statistics_depend_on(make_evaluation, rows, tmp_path):
    constant = ConstantPredictor(WIDTHS)
    constant.add(row_to_tensors(rows["train"][1], WIDTHS)[1])
    size = {"height": 64, "width": 64}
    changes = [
        {},
        {"image_processor": SEMImageProcessor(size=size, pad_size=size, do_resize=False, do_pad=True)},
        {"rows": rows["validation"].select([4, 3, 2, 1, 0])},
        {"rows": rows["validation"].select([0, 1, 2, 3])},
        {"benchmark": replace(BENCHMARK, task_metric_kwargs={"boundary": {"max_distance": 0.051}})},
        {"constant": constant},
        {"batch_size": 3},
        {"predictions_dir": tmp_path / "images"},
    ]
    assert len({make_evaluation(**change).fingerprint() for change in changes}) == len(changes)


def test_statistics_come_back_from_arrays_as_they_were():
    statistics = {
        "model": {
            "depth": {"sum": torch.tensor(0.1, dtype=torch.float64), "counts": torch.arange(3)},
            "boundary": {"counts": np.arange(8).reshape(2, 4)},
        },
        "constant": {"depth": {"sum": torch.tensor(7)}},
    }
    arrays = flatten(statistics)
    assert set(arrays) == {
        "model/depth/sum",
        "model/depth/counts",
        "model/boundary/counts",
        "constant/depth/sum",
    }
    again = flatten(unflatten(arrays))
    assert again.keys() == arrays.keys()
    for key, value in arrays.items():
        assert again[key].dtype == value.dtype
        np.testing.assert_array_equal(again[key], value)


def test_an_image_without_statistics_comes_back_empty():
    assert flatten({"model": {}, "constant": {}}) == {}
    assert unflatten({}) == {}


def test_what_other_processes_work_on_is_waited_for():
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(lambda: {"counts": 1})
        assert finish({"model": {"boundary": later, "depth": {"sum": 2}}}) == {
            "model": {"boundary": {"counts": 1}, "depth": {"sum": 2}}
        }


# ----------------------------------------------------------------------------------------------------------------------
# Settings


@pytest.mark.parametrize(
    "text", ["gradient_accumulation_steps: 0", "gradient_accumulation_steps: a", "datasets: 5", "datasets: [5]"]
)
def test_settings_of_a_run_that_cannot_be_used_are_named(tmp_path, text):
    path = tmp_path / "training.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"Cannot use {path}: .* Correct the file"):
        EvaluationConfig.load(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "5"])
def test_a_damaged_note_of_the_training_is_named(tmp_path, text):
    assert read_training(tmp_path) is None
    path = tmp_path / "training.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"Cannot use {path}: .* Correct the file"):
        read_training(tmp_path)


@pytest.mark.parametrize("data", [5, {"scenes": {}}, {"scenes": 5}])
def test_a_damaged_note_of_the_data_is_named(tmp_path, data):
    (tmp_path / "training.json").write_text(json.dumps({"data": data}))
    with pytest.raises(ValueError, match="Cannot use .*training.json: .* Correct the file"):
        is_only_training_data(tmp_path, "scenes", EvaluationConfig(dataset="scenes"))


def test_settings_of_a_run_are_read_and_replaced(tmp_path):
    settings = {
        "dataset": "scenes",
        "dataset_kwargs": {"num_train": 8},
        "batch_size": 6,
        "learning_rate": 1.0,
        "seed": 3,
    }
    (tmp_path / "training.yaml").write_text(yaml.safe_dump({**settings, "gradient_accumulation_steps": 2}))
    config = EvaluationConfig.load(tmp_path, ["dataset_kwargs.num_validation=2", "num_evaluation_images=1"])
    expected = {"dataset_kwargs": {"num_train": 8, "num_validation": 2}, "num_evaluation_images": 1}
    assert config == EvaluationConfig(dataset="scenes", batch_size=3, seed=3, **expected)


@pytest.fixture
def run_of_several(tmp_path):
    entries = [
        {"dataset": "nyud_v2", "data_dir": "/nyud", "weight": 2},
        {"dataset": "scenes", "tasks": {"semseg": "semseg_rooms"}},
    ]
    settings = {"dataset": "nyud_v2", "data_dir": None, "datasets": entries, "tasks": ["semseg"], "seed": 3}
    (tmp_path / "training.yaml").write_text(json.dumps(settings))
    return tmp_path


def test_each_dataset_of_a_run_is_evaluated(run_of_several):
    nyud = EvaluationConfig(dataset="nyud_v2", data_dir="/nyud", seed=3, batch_size=2)
    rooms = EvaluationConfig(dataset="scenes", tasks={"semseg": "semseg_rooms"}, seed=3, batch_size=2)
    assert EvaluationConfig.load_all(run_of_several, ["batch_size=2"]) == {"nyud_v2": nyud, "scenes": rooms}
    moved = EvaluationConfig.load(run_of_several, ["batch_size=2", "dataset=nyud_v2", "data_dir=/moved"])
    assert moved == replace(nyud, data_dir="/moved")
    other = EvaluationConfig.load(run_of_several, ["dataset=cityscapes", "data_dir=/data"])
    assert (other.dataset, other.data_dir, other.tasks) == ("cityscapes", "/data", {})


def test_one_of_two_folders_is_chosen_by_its_own_name(tmp_path):
    entries = [{"dataset": "folder", "data_dir": f"/{name}"} for name in ("rooms", "streets")]
    (tmp_path / "training.yaml").write_text(json.dumps({"datasets": entries}))
    assert EvaluationConfig.load(tmp_path, ["dataset=folder_2"]).data_dir == "/streets"
    assert EvaluationConfig.load(tmp_path, ["dataset=folder", "data_dir=/gardens"]).data_dir == "/gardens"
    with pytest.raises(ValueError, match=r"dataset=folder is one of \['folder_1', 'folder_2'\]"):
        EvaluationConfig.load(tmp_path, ["dataset=folder"])


def test_a_folder_of_one_of_several_datasets_needs_its_name(run_of_several):
    with pytest.raises(ValueError, match=r"belong to one dataset.*'nyud_v2', 'scenes'.*dataset=NAME"):
        EvaluationConfig.load_all(run_of_several, ["data_dir=/moved"])
    with pytest.raises(ValueError, match=r"Choose one of the datasets"):
        EvaluationConfig.load(run_of_several)


def test_a_model_without_a_run_has_the_defaults(tmp_path):
    assert EvaluationConfig.load(tmp_path, ["data_dir=/data"]) == EvaluationConfig(data_dir="/data")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("learning_rate=1", r"learning_rate.*known.*batch_size"),
        ("batch_size=0", "`batch_size` is 1 or more; got 0"),
        ("num_evaluation_images=many", "num_evaluation_images"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, override, words):
    with pytest.raises((ValueError, StrictDataclassError), match=words):
        EvaluationConfig.load(tmp_path, [override])


# ----------------------------------------------------------------------------------------------------------------------
# Class names


def model_of(names):
    config = tiny_config(
        task_num_labels={"semseg": 3}, task_id2label={"semseg": dict(enumerate(names))}, use_decoder=False
    )
    return SEMForMultiTaskDensePrediction(config).eval()


def benchmark_of(names):
    return replace(BENCHMARK, tasks=["semseg"], class_names={"semseg": names}, task_metric_kwargs={})


def test_classes_in_another_order_get_the_ids_of_the_data(caplog):
    model, images = model_of(["wall", "floor", "lamp"]), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(images).logits["semseg"]
        evaluating.match_classes(model, benchmark_of(["wall", "floor", "lamp"]), ["semseg"])
        assert not caplog.messages and torch.equal(model(images).logits["semseg"], before)
        evaluating.match_classes(model, benchmark_of(["lamp", "wall", "floor"]), ["semseg"])
        torch.testing.assert_close(model(images).logits["semseg"], before[:, [2, 0, 1]])
    assert model.config.id2label == model.config.task_id2label["semseg"] == {0: "lamp", 1: "wall", 2: "floor"}
    assert "'semseg'" in caplog.text and "another order" in caplog.text


@pytest.mark.parametrize("names", [["wall", "floor", "chair"], ["wall", "wall", "floor"]])
def test_other_classes_are_not_evaluated(names):
    with pytest.raises(ValueError, match=r"'semseg' are \['wall', 'floor', 'lamp'\]; the data has \['wall'.*one name"):
        evaluating.match_classes(model_of(["wall", "floor", "lamp"]), benchmark_of(names), ["semseg"])


def test_the_scores_use_the_ids_of_the_data(rows, model, image_processor, evaluate, plain):
    """The rows name their classes; a model that has learned them in another order has the same scores."""
    names = CLASS_NAMES["semseg"]
    shuffled, config = [*names[1:], names[0]], deepcopy(model.config)
    config.rename_classes("semseg", names)
    twin = SEMForMultiTaskDensePrediction(config)
    twin.load_state_dict(model.state_dict())
    twin.reorder_classes("semseg", shuffled)
    assert evaluate(model=twin.eval())[0]["scores"] == plain[0]["scores"]


def test_another_dataset_has_no_settings_of_the_run(tmp_path):
    settings = {"dataset": "nyud_v2", "data_dir": "/nyud", "dataset_kwargs": {"x": 1}, "batch_size": 2}
    (tmp_path / "training.yaml").write_text(json.dumps(settings))
    (config,) = EvaluationConfig.load_all(tmp_path, ["dataset=scenes"]).values()
    assert (config.dataset, config.data_dir, config.dataset_kwargs, config.batch_size) == ("scenes", None, {}, 2)
    (config,) = EvaluationConfig.load_all(tmp_path, ["dataset=nyud_v2"]).values()
    assert config.data_dir == "/nyud"


def test_ids_beyond_the_head_are_an_error():
    constant = ConstantPredictor({"semseg": 3})
    with pytest.raises(ValueError, match="Ids of semseg are from 0 to 2, 255 invalid; got 7"):
        constant.add({"semseg": torch.tensor([[0, 7], [255, 2]])})

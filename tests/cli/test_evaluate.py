"""The command `evaluate`, alone and on two ranks, interrupted and resumed."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from transformers_sem.data.scenes import render_scene, split_seeds
from transformers_sem.evaluation.boundary import boundary_scores
from transformers_sem.evaluation.boundary_files import count_boundaries, pair_files
from transformers_sem.evaluation.statistics_folder import StatisticsFolder
from transformers_sem.evaluation.sums import MetricSums, scores_of
from transformers_sem.tasks import to_label

from .commands import (
    MAIN_SCORES,
    SETTINGS,
    TASKS,
    error_line,
    is_alive,
    read_report,
    read_table,
    run,
    run_ranks,
    save_image,
    start,
    stop,
    stop_after,
)


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """The folder of an evaluation in two processes that saved the predictions."""
    folder = tmp_path_factory.mktemp("evaluated")
    arguments = ["--output", folder / "scores.json", "--save-predictions", folder / "maps", "--processes", 2]
    result = run("evaluate", "--model", trained, *arguments)
    assert result.code == 0, result.errors
    assert all(str(folder / name) in result.output for name in ("scores.json", "scores.parquet", "maps"))
    assert [score for score in MAIN_SCORES if f"* {score}" not in result.output] == []
    return folder


def test_evaluating_again_gives_the_same_numbers(trained, evaluated, tmp_path):
    result = run("evaluate", "--model", trained, "--output", tmp_path / "again.json", "--processes", 1)
    assert result.code == 0, result.errors
    for path in (evaluated / "scores.json", tmp_path / "again.json"):
        assert read_report(path) == read_report(trained / "evaluation.json")
        assert read_table(path.with_suffix(".parquet")) == read_table(trained / "evaluation.parquet")
    assert sorted(path.name for path in evaluated.glob("[!.]*")) == ["maps", "scores.json", "scores.parquet"]


def test_an_evaluation_says_what_and_how(trained, evaluated):
    report = json.loads((evaluated / "scores.json").read_text())
    assert set(report["scores"]) == set(report["constant_scores"]) >= set(MAIN_SCORES)
    assert {task: len(scores) for task, scores in report["class_scores"].items()} == {"semseg": 15, "parsing": 7}
    assert list(report["class_scores"]["semseg"])[:3] == ["wall", "floor", "ceiling"]
    assert np.mean(list(report["class_scores"]["parsing"].values())) == pytest.approx(report["scores"]["parsing/miou"])
    assert (report["dataset"], report["num_images"]) == ("scenes", 4)
    assert report["num_scored_images"] == dict.fromkeys(TASKS, 4)
    command = shlex.split(report["command"])
    assert command[:4] == ["transformers-sem", "evaluate", "--model", str(trained)]
    assert {"commit", "torch", "transformers", "transformers-sem", "python", "hardware"} <= set(report["environment"])


def read_picture(path):
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture))


def read_prediction(folder, name):
    """Maps of one image in physical units, from their pictures."""
    pictures = {task: read_picture(folder / task / f"{name}.png") for task in TASKS}
    return {
        "semseg": pictures["semseg"].long(),
        "parsing": pictures["parsing"].long(),
        "depth": pictures["depth"].float() / 1000,
        "normal": pictures["normal"].permute(2, 0, 1) / 127.5 - 1,
        "saliency": pictures["saliency"] / 255,
        "boundary": pictures["boundary"].numpy(),
    }


def validation_labels():
    """Labels of the validation images, rendered anew."""
    scenes = [render_scene(seed, 32, 64) for seed in split_seeds(0, "validation", 4)]
    return [{task: to_label(task, scene[task]) for task in TASKS} for scene in scenes]


def test_saved_predictions_give_the_scores_of_the_evaluation(evaluated):
    metric = MetricSums({"semseg": 15, "depth": 1, "normal": 3, "boundary": 1, "parsing": 7, "saliency": 2})
    image_scores = []
    for index, labels in enumerate(validation_labels()):
        maps = read_prediction(evaluated / "maps", index)
        statistics = {task: metric.image_statistics(task, maps[task], labels[task]) for task in TASKS}
        metric.add(statistics)
        image_scores.append(scores_of(statistics))
    # millimetres, 8-bit normals and 8-bit probabilities
    tolerances = {"depth/rmse": 0.001, "normal/mean_error": 0.3, "saliency/maxf": 0.05}
    expected = [read_report(evaluated / "scores.json")[0], *read_table(evaluated / "scores.parquet")]
    for found, scores in zip([metric.scores(), *image_scores], expected, strict=True):
        for key in MAIN_SCORES:
            assert found[key] == pytest.approx(scores[key], abs=tolerances.get(key, 0), rel=0), key
    assert [row["id"] for row in expected[1:]] == ["0", "1", "2", "3"]


def test_boundaries_of_saved_predictions_score_the_same_from_disk(evaluated, tmp_path):
    for index, labels in enumerate(validation_labels()):
        save_image(tmp_path / "labels" / f"{index}.png", (labels["boundary"].numpy() * 255).astype(np.uint8))
    pairs = pair_files(evaluated / "maps" / "boundary", tmp_path / "labels")
    counts = count_boundaries(pairs, 0.011, tmp_path / "counts")
    table = read_table(evaluated / "scores.parquet")
    assert {row["id"]: row["boundary/odsf"] for row in table} == {
        name: boundary_scores(image_counts[None])["ods"] for name, image_counts in counts.items()
    }
    scores = read_report(evaluated / "scores.json")[0]
    assert scores["boundary/odsf"] == boundary_scores(list(counts.values()))["ods"] > 0


def test_evaluating_some_images_beside_what_another_model_left(trained, tmp_path):
    output, left = tmp_path / "some.json", tmp_path / "unfinished_some"
    StatisticsFolder(left, "another model").add("0", {"model/depth/num_valid": np.array(7)})
    result = run("evaluate", "--model", trained, "--output", output, "num_evaluation_images=2")
    assert "are of another model or other settings; they are removed" in result.errors
    scores, _, num_images = read_report(output)
    assert num_images == 2
    assert set(scores) == set(read_report(trained / "evaluation.json")[0])
    assert scores != read_report(trained / "evaluation.json")[0]
    assert read_table(output.with_suffix(".parquet")) == read_table(trained / "evaluation.parquet")[:2]
    assert not left.exists()


def copy_model(trained, folder):
    """A model as the Hub has it: without the settings of its run."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(trained / name, folder)
    return folder


def test_a_model_without_a_run_is_evaluated_by_settings(trained, tmp_path):
    folder = copy_model(trained, tmp_path / "model")
    assert "data_dir" in error_line(run("evaluate", "--model", folder))
    result = run("evaluate", "--model", folder, "dataset=scenes", SETTINGS[0], "batch_size=2")
    assert result.code == 0, result.errors
    assert read_report(folder / "evaluation.json") == read_report(trained / "evaluation.json")


def test_scores_on_another_dataset_leave_those_of_the_run(trained, tmp_path):
    folder = copy_model(trained, tmp_path / "model")
    scenes, other = json.loads((trained / "training.json").read_text())["data"], {"title": "other"}
    for data in ({"nyud_v2": other, **scenes}, {"folder": other}):
        (folder / "training.json").write_text(json.dumps({"data": data}))
        result = run("evaluate", "--model", folder, "dataset=scenes", SETTINGS[0], "batch_size=2")
        assert result.code == 0, result.errors
        assert read_report(folder / "evaluation_scenes.json") == read_report(trained / "evaluation.json")
        assert not (folder / "evaluation.json").exists()
        (folder / "evaluation_scenes.json").unlink()


def test_settings_may_stand_between_options(tmp_path):
    result = run("evaluate", "batch_size=1", "--model", tmp_path / "absent", "--output", tmp_path / "s.json", "seed=1")
    assert "absent" in error_line(result)


def test_evaluating_what_is_not_there(tmp_path):
    result = run("evaluate", "--model", tmp_path / "absent", "--output", tmp_path / "scores.json")
    assert "absent" in error_line(result)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--model", "someone/model"], "--output FILE.json"),
        (["--model", "someone/model", "--output", "scores.txt"], "'scores.txt'"),
        (["--model", ".", "--processes", "0"], "'0'"),
    ],
    ids=["nowhere to write to", "no JSON file", "no process"],
)
def test_a_command_that_makes_no_sense_ends_with_the_usage(arguments, word):
    result = run("evaluate", *arguments)
    assert result.code == 2
    assert result.errors.startswith("usage: transformers-sem evaluate") and word in result.errors
    assert "Traceback" not in result.errors


NUM_MANY = 10
MANY_IMAGES = [
    "--processes",
    1,
    SETTINGS[0].replace("num_validation: 4", f"num_validation: {NUM_MANY}"),
    "batch_size=1",
]


@pytest.fixture(scope="module")
def evaluated_many(trained, tmp_path_factory):
    """The report of an evaluation of many images, one at a time, that nothing interrupted."""
    path = tmp_path_factory.mktemp("many") / "scores.json"
    result = run("evaluate", "--model", trained, "--output", path, *MANY_IMAGES)
    assert result.code == 0, result.errors
    return path


def finished_images(folder):
    """Names of the images that an evaluation has finished."""
    return [path.stem for path in folder.glob("*/[0-9]*.npz")]


def wait_for_two_images(path, pid):
    """Waits for one finished image, a second being there or on its way, and returns the workers of the evaluation."""
    evaluation = psutil.Process(pid)
    while len(finished_images(path)) < 2:
        assert is_alive(evaluation)
        time.sleep(0.002)
    return evaluation.children(recursive=True)


def kill_evaluation(process, path):
    """Kills it after the first images, and returns its workers."""
    workers = wait_for_two_images(path, process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return workers


def assert_goes_on(arguments, output, expected):
    """The command that was interrupted, given again, does what was left, and nothing can be told from its results."""
    kept = output.parent / f"unfinished_{output.stem}"
    assert not output.exists()
    num_finished = len(finished_images(kept))
    assert 0 < num_finished < NUM_MANY
    result = run("evaluate", *arguments)
    assert result.code == 0, result.errors
    assert f"/{NUM_MANY - num_finished} [" in result.errors  # of the progress bar
    assert read_report(output) == read_report(expected)
    assert read_table(output.with_suffix(".parquet")) == read_table(expected.with_suffix(".parquet"))
    assert not kept.exists()


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(trained, evaluated_many, tmp_path):
    output, kept = tmp_path / "scores.json", tmp_path / "unfinished_scores"
    arguments = ["--model", trained, "--output", output, *MANY_IMAGES]
    stop(kill_evaluation(start("evaluate", arguments, tmp_path / "printed"), kept))
    assert_goes_on(arguments, output, evaluated_many)


@pytest.mark.slow
def test_an_evaluation_that_was_stopped_by_hand_goes_on(trained, evaluated_many, tmp_path):
    """In an interpreter of its own: how it waits for threads and workers at its end belongs to the test."""
    output, kept = tmp_path / "scores.json", tmp_path / "unfinished_scores"
    arguments = ["--model", trained, "--output", output, *MANY_IMAGES]
    command = [str(part) for part in (sys.executable, "-m", "transformers_sem", "evaluate", *arguments)]
    process = subprocess.Popen(command, start_new_session=True)
    workers = wait_for_two_images(kept, process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: the workers too
    assert process.wait(timeout=30) != 0
    assert stop_after(workers, seconds=30) == []  # the server that forks workers ends a moment after its parent
    assert_goes_on(arguments, output, evaluated_many)


THREE_IMAGES = [*MANY_IMAGES, "num_evaluation_images=3"]


@pytest.fixture(scope="module")
def evaluated_three(trained, tmp_path_factory):
    """The report of an evaluation of three images on one rank."""
    path = tmp_path_factory.mktemp("three") / "scores.json"
    result = run("evaluate", "--model", trained, "--output", path, *THREE_IMAGES)
    assert result.code == 0, result.errors
    return path


def assert_same_scores(path, expected_path):
    """Up to the order in which ranks add up."""
    found, expected = (json.loads(report.read_text()) for report in (path, expected_path))
    for key in ("scores", "constant_scores"):
        assert found[key] == pytest.approx(expected[key], rel=1e-12)
    assert found["num_images"] == expected["num_images"]
    assert found["num_scored_images"] == expected["num_scored_images"]
    assert read_table(path.with_suffix(".parquet")) == read_table(expected_path.with_suffix(".parquet"))
    assert not path.with_name(f"unfinished_{path.stem}").exists()


@pytest.mark.slow
def test_two_ranks_with_uneven_shares_score_as_one(trained, evaluated_three, tmp_path):
    output = tmp_path / "scores.json"
    results = run_ranks("evaluate", ["--model", trained, "--output", output, *THREE_IMAGES], tmp_path / "ranks")
    assert [result.code for result in results] == [0, 0], results
    assert_same_scores(output, evaluated_three)
    # one rank speaks for all
    assert "depth/rmse" in results[0].output and results[1].output == ""


@pytest.mark.slow
def test_a_rank_without_an_image_does_no_harm(trained, evaluated_three, tmp_path):
    output = tmp_path / "scores.json"
    arguments = ["--model", trained, "--output", output, *MANY_IMAGES, "num_evaluation_images=1"]
    results = run_ranks("evaluate", arguments, tmp_path / "ranks")
    assert [result.code for result in results] == [0, 0], results
    table = read_table(output.with_suffix(".parquet"))
    assert table == read_table(evaluated_three.with_suffix(".parquet"))[:1]
    assert table[0].pop("id") == "0"
    assert table[0] == pytest.approx(read_report(output)[0])


@pytest.mark.slow
def test_torchrun_scores_as_one(trained, evaluated_three, tmp_path):
    output = tmp_path / "scores.json"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command = [*launch, "-m", "transformers_sem.cli.evaluate", "--model", trained, "--output", output, *THREE_IMAGES]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    assert_same_scores(output, evaluated_three)


@pytest.mark.slow
def test_a_killed_evaluation_leaves_no_process_behind(trained, tmp_path):
    arguments = ["--model", trained, "--output", tmp_path / "scores.json", *MANY_IMAGES]
    process = start("evaluate", arguments, tmp_path / "printed")
    workers = kill_evaluation(process, tmp_path / "unfinished_scores")
    assert stop_after(workers, seconds=150) == []

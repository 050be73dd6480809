"""The scripts from end to end, on scenes of 32 x 64 pixels and with a model of a few thousand weights."""

import ast
import contextlib
import json
import multiprocessing
import os
import runpy
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import namedtuple
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.data.scenes import render_scene, split_seeds
from transformers_sem.evaluation.boundary import boundary_counts, boundary_scores
from transformers_sem.evaluation.boundary_files import count_boundaries, pair_files
from transformers_sem.evaluation.statistics_file import StatisticsFile
from transformers_sem.evaluation.sums import MetricSums, scores_of
from transformers_sem.tasks import TASKS as TASK_TABLE
from transformers_sem.tasks import to_label
from transformers_sem.training.checkpoint import verify
from transformers_sem.training.config import TrainingConfig
from transformers_sem.training.history import read_history

from .test_architecture import absolute_imports, parse, reachable
from .tiny import tiny_config


SCRIPTS = Path(__file__).parents[1] / "scripts"
QUICKSTART = SCRIPTS / "configs" / "quickstart.yaml"
SETTINGS = [
    "dataset_kwargs={num_train: 8, num_validation: 4, height: 32, width: 64}",
    "model={backbone_config: {model_name: test_convnext, out_indices: [1, 2, 3, 4]}, hidden_size: 16, mlp_ratio: 2.0,"
    " num_attention_heads: 2, decoder_hidden_sizes: [16, 16, 8, 8], decoder_num_attention_heads: [2, 2, 1, 1],"
    " num_bases: 4, num_em_iterations: 2}",
    "input_size=[32, 64]",
    "batch_size=2",
    "max_steps=6",
    "save_every=2",
    "log_every=2",
    "keep_checkpoints=1",
    "num_workers=0",
]
TASKS = ["semseg", "depth", "normal", "boundary", "parsing", "saliency"]
MAIN_SCORES = [
    "semseg/miou",
    "depth/rmse",
    "normal/mean_error",
    "boundary/odsf",
    "parsing/miou",
    "saliency/maxf",
]

# Importing the libraries takes seconds; the server of this context does it once and forks every script from there.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["accelerate", "transformers_sem.evaluation.evaluator"])

Result = namedtuple("Result", ["code", "output", "errors"])


def play_script(name, arguments, folder, environment):
    """Runs in a process of its own what `python scripts/NAME` runs, and notes what it prints."""
    for stream in (sys.stdout, sys.stderr):
        file = os.open(Path(folder) / f"{stream.fileno()}.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(file, stream.fileno())
    os.environ.update(environment)
    sys.argv = [f"scripts/{name}", *arguments]
    sys.path.insert(0, str(SCRIPTS))
    runpy.run_path(str(SCRIPTS / name), run_name="__main__")


def start_script(name, arguments, folder, environment=None):
    folder.mkdir(parents=True)
    arguments = [str(argument) for argument in arguments]
    process = CONTEXT.Process(target=play_script, args=(name, arguments, folder, environment or {}))
    process.start()
    return process


def result_of(process, folder):
    process.join(timeout=120)
    return Result(process.exitcode, (folder / "1.txt").read_text(), (folder / "2.txt").read_text())


@pytest.fixture(scope="module")
def run_script(tmp_path_factory, datasets_cache):
    def run(name, *arguments):
        folder = tmp_path_factory.mktemp("printed") / "here"
        return result_of(start_script(name, arguments, folder), folder)

    return run


@pytest.fixture(scope="module")
def datasets_cache(tmp_path_factory):
    """An empty cache of data sets for all scripts of this file, and no network."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("datasets")
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        forkserver.ensure_running()  # it imports while the first run trains
        yield folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, datasets_cache):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    command = [sys.executable, SCRIPTS / "train.py", "--config", QUICKSTART, *SETTINGS, f"output_dir={folder}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert str(folder) in result.stdout
    return folder


def read_report(path):
    report = json.loads(path.read_text())
    return report["scores"], report["constant_scores"], report["num_images"]


def save_photo(path, size=(70, 45), **kwargs):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **kwargs)
    return path


def error_line(result):
    """What a person reads when a script refuses to start."""
    assert "Traceback" not in result.errors
    assert result.code == 1
    lines = [line for line in result.errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


# ----------------------------------------------------------------------------------------------------------------------
# train.py


def test_a_run_leaves_its_files(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "training.yaml",
        "training.json",
        "evaluation.json",
        "predictions.png",
        "training_report.html",
        "snapshots",
        "logs",
        "checkpoints",
    }
    assert not [name for name in names if name.startswith("unfinished")]
    assert [path.name for path in (trained / "checkpoints").iterdir()] == ["step_000006"]
    assert list((trained / "logs").rglob("events*"))


def test_scores_are_finite(trained):
    report = json.loads((trained / "evaluation.json").read_text())
    scores, constant_scores = report["scores"], report["constant_scores"]
    assert set(scores) == set(constant_scores)
    assert set(MAIN_SCORES) <= set(scores)
    assert all(np.isfinite(list(scores.values()))) and all(np.isfinite(list(constant_scores.values())))
    assert (report["dataset"], report["num_images"], report["seed"]) == ("scenes", 4, 0)
    assert "train.py" in report["command"]
    training = json.loads((trained / "training.json").read_text())
    assert report["training"] == training
    assert training["settings"] == TrainingConfig.load(trained / "training.yaml").describe()
    assert "train.py" in training["command"] and "commit" in training["environment"]
    assert torch.__version__.startswith(report["environment"]["torch"])


def test_the_panel_shows_images_and_tasks(trained):
    with Image.open(trained / "predictions.png") as panel:
        width, height = panel.size
    assert width >= 64 * (1 + len(TASKS))
    assert height >= 32 * 2 * 4


def test_the_trained_model_loads_and_predicts(trained):
    model = SEMForMultiTaskDensePrediction.from_pretrained(trained)
    image_processor = SEMImageProcessor.from_pretrained(trained)
    assert model.config.tasks == TASKS
    assert model.config.task_id2label["semseg"][0] == "wall"
    inputs = image_processor([np.zeros((32, 64, 3), dtype=np.uint8)], return_tensors="pt")
    predictions = image_processor.post_process_dense_prediction(model(**inputs), target_sizes=[(32, 64)])
    assert {task: tuple(value.shape[-2:]) for task, value in predictions[0].items()} == dict.fromkeys(TASKS, (32, 64))


def test_the_bases_have_learnt(trained):
    weights = load_file(trained / "model.safetensors")
    bases = [value for name, value in weights.items() if name.endswith("initial_bases")]
    assert len(bases) == 4
    for value in bases:
        torch.testing.assert_close(value.norm(dim=-1), torch.ones(len(value)))


def wait_for(path, process):
    while not path.exists():
        assert process.is_alive()
        time.sleep(0.005)


def test_a_killed_run_resumes_to_the_same_weights(trained, run_script, tmp_path):
    folder = tmp_path / "killed"
    arguments = ["--config", QUICKSTART, *SETTINGS, f"output_dir={folder}"]
    process = start_script("train.py", arguments, tmp_path / "first")
    wait_for(folder / "checkpoints" / "step_000002", process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (folder / "model.safetensors").exists()
    result = run_script("train.py", *arguments)
    assert result.code == 0, result.errors
    assert_same_run(folder, trained)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_000006"]


def history_of(folder):
    """Log entries, without what depends on the machine."""
    machine = {"images_per_second", "memory_gigabytes"}
    return [{key: entry[key] for key in entry.keys() - machine} for entry in read_history(folder)]


def assert_same_run(folder, expected):
    """To the last bit: nothing can be told from the results of a run that was interrupted."""
    found_weights, weights = (load_file(run / "model.safetensors") for run in (folder, expected))
    assert set(found_weights) == set(weights)
    assert [name for name in weights if not torch.equal(found_weights[name], weights[name])] == []
    assert read_report(folder / "evaluation.json") == read_report(expected / "evaluation.json")
    assert history_of(folder) == history_of(expected)


def test_the_history_follows_the_training(trained):
    entries = read_history(trained)
    assert [entry["step"] for entry in entries] == [2, 4, 6]
    assert all(list(entry["losses"]) == TASKS and entry["skipped_steps"] == 0 for entry in entries)
    assert entries[-1]["loss"] < entries[0]["loss"]


# Everything that a resumed run could lose: stochastic depth, micro-batches, an average, an entry of the log cut in two
INTERRUPTIBLE = [
    *SETTINGS,
    "model.backbone_config.drop_path_rate=0.3",
    "max_steps=18",
    "save_every=3",
    "log_every=4",
    "batch_size=4",
    "gradient_accumulation_steps=2",
    "weight_average_decay=0.8",
    "keep_checkpoints=2",
]


@pytest.fixture(scope="module")
def uninterrupted(run_script, tmp_path_factory):
    """The folder of a run of `INTERRUPTIBLE` settings that nothing interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    result = run_script("train.py", "--config", QUICKSTART, *INTERRUPTIBLE, f"output_dir={folder}")
    assert result.code == 0, result.errors
    return folder


def start_interruptible(folder, printed):
    return start_script("train.py", ["--config", QUICKSTART, *INTERRUPTIBLE, f"output_dir={folder}"], printed)


def kill_at(path, process):
    wait_for(path, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    stop(workers)


def finish_interruptible(run_script, folder):
    result = run_script("train.py", "--config", QUICKSTART, *INTERRUPTIBLE, f"output_dir={folder}")
    assert result.code == 0, result.errors
    return result


@pytest.mark.slow
def test_a_run_killed_again_and_again_is_the_same(uninterrupted, run_script, tmp_path):
    folder = tmp_path / "run"
    moments = [
        "checkpoints/unfinished_000003",
        "checkpoints/unfinished_000009/optimizer.bin",
        "checkpoints/unfinished_000015/manifest.json",
        "checkpoints/step_000018",
        "unfinished_model",
        "unfinished_evaluation",
    ]
    for number, moment in enumerate(moments):
        kill_at(folder / moment, start_interruptible(folder, tmp_path / str(number)))
        shutil.rmtree(
            folder / "unfinished_model", ignore_errors=True
        )  # or the next one would be killed before it starts
        for leftover in (folder / "checkpoints").glob("unfinished_*"):
            shutil.rmtree(leftover)
    finish_interruptible(run_script, folder)
    assert_same_run(folder, uninterrupted)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "name", "reason"),
    [
        (flip_a_bit, "optimizer.bin", "another checksum"),
        (lambda path: os.truncate(path, 100), "model.safetensors", "100 bytes instead of"),
        (Path.unlink, "random_states_0.pkl", "is missing"),
    ],
    ids=["bit", "truncated", "deleted"],
)
def test_a_run_recovers_from_a_broken_checkpoint(uninterrupted, run_script, tmp_path, damage, name, reason):
    folder = tmp_path / "run"
    kill_at(folder / "checkpoints" / "step_000009", start_interruptible(folder, tmp_path / "first"))
    newest = max((folder / "checkpoints").glob("step_*"))
    damage(newest / name)
    result = finish_interruptible(run_script, folder)
    assert f"{newest} is broken: {name}" in result.errors and reason in result.errors
    assert_same_run(folder, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_and_leaves(uninterrupted, run_script, tmp_path, signum):
    """In a process group of its own, to which the signal goes as Ctrl-C does: workers get it too."""
    folder = tmp_path / "run"
    arguments = ["--config", QUICKSTART, *INTERRUPTIBLE, "num_workers=1", f"output_dir={folder}"]
    command = [sys.executable, SCRIPTS / "train.py", *arguments]
    with (tmp_path / "printed.txt").open("w") as printed:
        process = subprocess.Popen(list(map(str, command)), start_new_session=True, stdout=printed, stderr=printed)
    while not (folder / "checkpoints" / "step_000003").exists():
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signum)
    assert process.wait(timeout=60) == 128 + signum
    message = (tmp_path / "printed.txt").read_text()
    newest = max((folder / "checkpoints").glob("step_*"))
    assert f"Stopped by {signum.name} after step {int(newest.name[5:])}, which is saved in {newest.parent}" in message
    assert "Traceback" not in message
    assert not (folder / "model.safetensors").exists()
    finish_interruptible(run_script, folder)
    assert_same_run(folder, uninterrupted)


@pytest.mark.slow
def test_ranks_stop_together(uninterrupted, tmp_path):
    """Only one of them gets the signal."""
    folder = tmp_path / "run"
    arguments = ["--config", QUICKSTART, *INTERRUPTIBLE, f"output_dir={folder}"]
    ranks = start_ranks("train.py", arguments, tmp_path / "ranks")
    wait_for(folder / "checkpoints" / "step_000003", ranks[0])
    os.kill(ranks[1].pid, signal.SIGTERM)
    results = [result_of(rank, tmp_path / "ranks" / str(number)) for number, rank in enumerate(ranks)]
    assert [result.code for result in results] == [143, 143]
    assert "Stopped by SIGTERM" in results[0].output and results[1].output == ""


@pytest.mark.slow
def test_two_ranks_train_as_one(run_script, tmp_path):
    """The same images per step, on one rank or in halves: losses, weights and bases agree as far as sums commute."""
    settings = [
        *SETTINGS,
        "batch_size=8",
        "max_steps=20",
        "log_every=1",
        "save_every=20",
        "learning_rate=2.0e-4",
    ]
    settings = ["--config", QUICKSTART, *settings, "model.backbone_config.drop_path_rate=0.0"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_script("train.py", *settings, f"output_dir={one}").code == 0
    results = run_ranks("train.py", [*settings, f"output_dir={two}"], tmp_path / "ranks")
    assert [result.code for result in results] == [0, 0], results
    losses = [[entry["loss"] for entry in read_history(folder)] for folder in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    found, expected = (load_file(folder / "model.safetensors") for folder in (two, one))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_run_that_only_meets_nan_ends_with_its_last_checkpoint(run_script, tmp_path):
    folder = tmp_path / "run"
    settings = [*SETTINGS, "learning_rate=1.0e+30", "max_skipped_steps=2", "save_every=1", "max_steps=9"]
    message = error_line(run_script("train.py", "--config", QUICKSTART, *settings, f"output_dir={folder}"))
    assert "`max_skipped_steps`" in message and "got 3 at step" in message
    newest = max((folder / "checkpoints").iterdir())
    assert verify(newest) is None
    assert all(value.isfinite().all() for value in load_file(newest / "model.safetensors").values())
    assert not (folder / "model.safetensors").exists()


@pytest.mark.slow
def test_compiled_training_is_the_same_training(datasets_cache, tmp_path):
    """Compiling for a CPU takes minutes."""
    settings = [
        "--config",
        QUICKSTART,
        *SETTINGS,
        "tasks=[depth]",
        "log_every=1",
        "max_steps=3",
        "learning_rate=2.0e-4",
    ]
    histories = []
    for value in ("true", "false"):
        folder = tmp_path / value
        command = [sys.executable, SCRIPTS / "train.py", *settings, f"compile={value}", f"output_dir={folder}"]
        command.append("model.backbone_config.drop_path_rate=0.0")
        subprocess.run(list(map(str, command)), check=True, timeout=1200)
        histories.append([entry["loss"] for entry in read_history(folder)])
    np.testing.assert_allclose(*histories, rtol=1e-4)
    assert SEMForMultiTaskDensePrediction.from_pretrained(tmp_path / "true").config.tasks == ["depth"]


def test_a_run_starts_from_a_trained_model(trained, run_script, tmp_path):
    """Of other tasks: what both have is kept, and a step of no size shows what it started from."""
    folder = tmp_path / "run"
    overrides = ["tasks=[depth, parsing]", "dataset_kwargs.seed=3", "max_steps=1", "learning_rate=0.0"]
    arguments = ["--config", QUICKSTART, *SETTINGS, *overrides, f"output_dir={folder}", f"pretrained_model={trained}"]
    result = run_script("train.py", *arguments)
    assert result.code == 0, result.errors
    model = SEMForMultiTaskDensePrediction.from_pretrained(folder)
    start = dict(SEMForMultiTaskDensePrediction.from_pretrained(trained).named_parameters())
    assert model.config.tasks == ["depth", "parsing"]
    assert all(torch.equal(parameter, start[name]) for name, parameter in model.named_parameters())


def test_other_settings_do_not_go_on_with_a_run(trained, run_script):
    before = (trained / "training.yaml").read_text()
    result = run_script("train.py", "--config", QUICKSTART, *SETTINGS, f"output_dir={trained}", "learning_rate=0.5")
    assert "learning_rate 0.002 -> 0.5" in error_line(result)
    assert (trained / "training.yaml").read_text() == before


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["dataset=nyud"], ["'nyud'", "nyud_v2", "scenes"]),
        (["dataset=nyud_v2", "dataset_kwargs={}"], ["NYUDv2", "data_dir"]),
        (["dataset=nyud_v2", "dataset_kwargs={}", "data_dir=."], ["NYUDv2", "images", "tar archive"]),
        (["max_step=3"], ["'max_step'", "max_steps"]),
        (["tasks=[depth, albedo]"], ["'albedo'", "saliency"]),
        (["model.num_bases=many"], ["num_bases", "many"]),
        (["model.num_base=8"], ["num_base"]),
        (["model.backbone_config.model_name=swim_tiny"], ["'swim_tiny'"]),
        (["pretrained_backbone=absent.safetensors"], ["absent.safetensors"]),
        (["pretrained_model=absent/model"], ["absent/model"]),
        (["batch_size=3", "gradient_accumulation_steps=2"], ["3 images", "2 micro-batches"]),
        (["dataset_kwargs.heigth=3"], ["heigth"]),
        (["mixed_precision=half"], ["half", "bf16"]),
        (["zoom=[0.5]"], ["zoom"]),
        (["input_size=[32]"], ["input_size"]),
    ],
    ids=str,
)
def test_bad_settings_end_in_one_line(run_script, tmp_path, overrides, words):
    arguments = ["--config", QUICKSTART, *SETTINGS, f"output_dir={tmp_path / 'run'}", *overrides]
    message = error_line(run_script("train.py", *arguments))
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("override", ["dataset=nyud_v2", "model.num_bases=many", "tasks=[depth, albedo]"])
def test_a_run_that_did_not_start_claims_no_folder(run_script, tmp_path, override):
    """Else the corrected command is told that the folder holds a run of other settings."""
    folder = tmp_path / "run"
    error_line(run_script("train.py", "--config", QUICKSTART, *SETTINGS, f"output_dir={folder}", override))
    assert not (folder / "training.yaml").exists()


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(run_script, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    for name in ("HF_HOME", "HF_DATASETS_CACHE", "TMPDIR"):
        (tmp_path / name).mkdir()
    environment = {name: str(tmp_path / name) for name in ("HF_HOME", "HF_DATASETS_CACHE", "TMPDIR")}
    arguments = ["--config", QUICKSTART, "--dry-run", *SETTINGS, f"output_dir={folder}"]
    before = sorted(tmp_path.rglob("*"))
    process = start_script("train.py", arguments, tmp_path / "printed", environment)
    result = result_of(process, tmp_path / "printed")
    assert result.code == 0, result.errors
    words = ["* max_steps", "6 steps of 2 images", "1.5 epochs of 8", "Files in", "(images: 2, each 32 x 64) took"]
    assert [word for word in words if word not in result.output] == []
    written = set(tmp_path.rglob("*")) - set(before)
    assert {path.relative_to(tmp_path).parts[0] for path in written} == {"printed"}


def test_a_dry_run_of_bad_settings_ends_in_one_line(run_script, tmp_path):
    arguments = ["--config", QUICKSTART, *SETTINGS, f"output_dir={tmp_path / 'run'}", "--dry-run", "dataset=nyud_v2"]
    assert "data_dir" in error_line(run_script("train.py", *arguments, "dataset_kwargs={}"))


def test_the_training_report_has_the_scores_of_the_evaluation(trained):
    page = (trained / "training_report.html").read_text(encoding="utf-8")
    assert "finished" in page and "6 of 6" in page
    scores, _, _ = read_report(trained / "evaluation.json")
    assert [key for key in MAIN_SCORES if f"{scores[key]:.4f}" not in page] == []
    steps = [int(path.stem.removeprefix("step_")) for path in sorted((trained / "snapshots").glob("*.json"))]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_missing_configuration_is_named(run_script):
    assert "absent.yaml" in error_line(run_script("train.py", "--config", "absent.yaml"))


# ----------------------------------------------------------------------------------------------------------------------
# evaluate.py


@pytest.fixture(scope="module")
def evaluated(trained, run_script, tmp_path_factory):
    """The folder of an evaluation in two processes that saved the predictions."""
    folder = tmp_path_factory.mktemp("evaluated")
    arguments = ["--output", folder / "scores.json", "--save-predictions", folder / "maps", "--processes", 2]
    result = run_script("evaluate.py", "--model", trained, *arguments)
    assert result.code == 0, result.errors
    assert all(str(folder / name) in result.output for name in ("scores.json", "scores.parquet", "maps"))
    assert [score for score in MAIN_SCORES if f"* {score}" not in result.output] == []
    return folder


def read_table(path):
    return pq.read_table(path).to_pylist()


def test_evaluating_again_gives_the_same_numbers(trained, evaluated, run_script, tmp_path):
    result = run_script("evaluate.py", "--model", trained, "--output", tmp_path / "again.json", "--processes", 1)
    assert result.code == 0, result.errors
    for path in (evaluated / "scores.json", tmp_path / "again.json"):
        assert read_report(path) == read_report(trained / "evaluation.json")
        assert read_table(path.with_suffix(".parquet")) == read_table(trained / "evaluation.parquet")
    assert sorted(path.name for path in evaluated.iterdir()) == ["maps", "scores.json", "scores.parquet"]


def test_an_evaluation_says_what_and_how(trained, evaluated):
    report = json.loads((evaluated / "scores.json").read_text())
    assert set(report["scores"]) == set(report["constant_scores"]) >= set(MAIN_SCORES)
    assert {task: len(scores) for task, scores in report["class_scores"].items()} == {"semseg": 15, "parsing": 7}
    assert list(report["class_scores"]["semseg"])[:3] == ["wall", "floor", "ceiling"]
    assert np.mean(list(report["class_scores"]["parsing"].values())) == pytest.approx(report["scores"]["parsing/miou"])
    assert (report["dataset"], report["num_images"]) == ("scenes", 4)
    assert report["num_scored_images"] == dict.fromkeys(TASKS, 4)
    command = shlex.split(report["command"])
    assert command[0] == "python" and command[1].endswith("scripts/evaluate.py")
    assert command[2:4] == ["--model", str(trained)]
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
        save_picture(tmp_path / "labels" / f"{index}.png", (labels["boundary"].numpy() * 255).astype(np.uint8))
    pairs = pair_files(evaluated / "maps" / "boundary", tmp_path / "labels")
    counts = count_boundaries(pairs, 0.011, tmp_path / "counts.sqlite")
    table = read_table(evaluated / "scores.parquet")
    assert {row["id"]: row["boundary/odsf"] for row in table} == {
        name: boundary_scores(image_counts[None])["ods"] for name, image_counts in counts.items()
    }
    scores = read_report(evaluated / "scores.json")[0]
    assert scores["boundary/odsf"] == boundary_scores(list(counts.values()))["ods"] > 0


def test_evaluating_some_images_beside_what_another_model_left(trained, run_script, tmp_path):
    output, left = tmp_path / "some.json", tmp_path / "unfinished_some" / "rank0.sqlite"
    with StatisticsFile(left, "another model") as file:
        file.add("0", {"model/depth/num_valid": np.array(7)})
    result = run_script("evaluate.py", "--model", trained, "--output", output, "num_evaluation_images=2")
    assert "started anew" in result.errors
    scores, _, num_images = read_report(output)
    assert num_images == 2
    assert set(scores) == set(read_report(trained / "evaluation.json")[0])
    assert scores != read_report(trained / "evaluation.json")[0]
    assert read_table(output.with_suffix(".parquet")) == read_table(trained / "evaluation.parquet")[:2]
    assert not left.parent.exists()


def copy_model(trained, folder):
    """A model as the Hub has it: without the settings of its run."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(trained / name, folder)
    return folder


def test_a_model_without_a_run_is_evaluated_by_settings(trained, run_script, tmp_path):
    folder = copy_model(trained, tmp_path / "model")
    assert "data_dir" in error_line(run_script("evaluate.py", "--model", folder))
    result = run_script("evaluate.py", "--model", folder, "dataset=scenes", SETTINGS[0], "batch_size=2")
    assert result.code == 0, result.errors
    assert read_report(folder / "evaluation.json") == read_report(trained / "evaluation.json")


def test_evaluating_what_is_not_there(run_script, tmp_path):
    result = run_script("evaluate.py", "--model", tmp_path / "absent", "--output", tmp_path / "scores.json")
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
def test_a_command_that_makes_no_sense_ends_with_the_usage(run_script, arguments, word):
    result = run_script("evaluate.py", *arguments)
    assert result.code == 2
    assert result.errors.startswith("usage: evaluate.py") and word in result.errors
    assert "Traceback" not in result.errors


NUM_MANY = 10
MANY_IMAGES = [
    "--processes",
    1,
    SETTINGS[0].replace("num_validation: 4", f"num_validation: {NUM_MANY}"),
    "batch_size=1",
]


@pytest.fixture(scope="module")
def evaluated_many(trained, run_script, tmp_path_factory):
    """The report of an evaluation of many images, one at a time, that nothing interrupted."""
    path = tmp_path_factory.mktemp("many") / "scores.json"
    result = run_script("evaluate.py", "--model", trained, "--output", path, *MANY_IMAGES)
    assert result.code == 0, result.errors
    return path


def finished_images(path, options="immutable=1"):
    """Names of the images that an evaluation has finished, by default of one that is running and has locked the file."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?{options}", uri=True)) as connection:
            return [name for (name,) in connection.execute("SELECT name FROM images")]
    except sqlite3.DatabaseError:  # not there yet, or half written
        return []


def is_alive(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def stop(processes):
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


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


def assert_goes_on(run_script, arguments, output, expected):
    """The command that was interrupted, given again, does what was left, and nothing can be told from its results."""
    kept = output.parent / f"unfinished_{output.stem}" / "rank0.sqlite"
    assert not output.exists()
    num_finished = len(finished_images(kept, "mode=rw"))
    assert 0 < num_finished < NUM_MANY
    result = run_script("evaluate.py", *arguments)
    assert result.code == 0, result.errors
    assert f"/{NUM_MANY - num_finished} [" in result.errors  # of the progress bar
    assert read_report(output) == read_report(expected)
    assert read_table(output.with_suffix(".parquet")) == read_table(expected.with_suffix(".parquet"))
    assert not kept.parent.exists()


def test_a_killed_evaluation_goes_on(trained, evaluated_many, run_script, tmp_path):
    output, kept = tmp_path / "scores.json", tmp_path / "unfinished_scores" / "rank0.sqlite"
    arguments = ["--model", trained, "--output", output, *MANY_IMAGES]
    stop(kill_evaluation(start_script("evaluate.py", arguments, tmp_path / "printed"), kept))
    assert_goes_on(run_script, arguments, output, evaluated_many)


@pytest.mark.slow
def test_an_evaluation_that_was_stopped_by_hand_goes_on(trained, evaluated_many, run_script, tmp_path):
    """In an interpreter of its own: how it waits for threads and workers at its end belongs to the test."""
    output, kept = tmp_path / "scores.json", tmp_path / "unfinished_scores" / "rank0.sqlite"
    arguments = ["--model", trained, "--output", output, *MANY_IMAGES]
    command = [str(part) for part in (sys.executable, SCRIPTS / "evaluate.py", *arguments)]
    process = subprocess.Popen(command, start_new_session=True)
    workers = wait_for_two_images(kept, process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: the workers too
    assert process.wait(timeout=30) != 0
    alive = [worker for worker in workers if is_alive(worker)]
    stop(alive)
    assert alive == []
    assert_goes_on(run_script, arguments, output, evaluated_many)


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start_ranks(name, arguments, folder, num_ranks=2):
    """What `torchrun --nproc_per_node 2 scripts/NAME` does, without its seconds of imports."""
    shared = {"WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks, "MASTER_ADDR": "localhost"}
    shared["MASTER_PORT"] = free_port()
    ranks = []
    for rank in range(num_ranks):
        environment = {key: str(value) for key, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        ranks.append(start_script(name, arguments, folder / str(rank), environment))
    return ranks


def run_ranks(name, arguments, folder, num_ranks=2):
    ranks = start_ranks(name, arguments, folder, num_ranks)
    return [result_of(process, folder / str(rank)) for rank, process in enumerate(ranks)]


THREE_IMAGES = [*MANY_IMAGES, "num_evaluation_images=3"]


@pytest.fixture(scope="module")
def evaluated_three(trained, run_script, tmp_path_factory):
    """The report of an evaluation of three images on one rank."""
    path = tmp_path_factory.mktemp("three") / "scores.json"
    result = run_script("evaluate.py", "--model", trained, "--output", path, *THREE_IMAGES)
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


def test_two_ranks_with_uneven_shares_score_as_one(trained, evaluated_three, tmp_path):
    output = tmp_path / "scores.json"
    results = run_ranks("evaluate.py", ["--model", trained, "--output", output, *THREE_IMAGES], tmp_path / "ranks")
    assert [result.code for result in results] == [0, 0], results
    assert_same_scores(output, evaluated_three)
    # one rank speaks for all
    assert "depth/rmse" in results[0].output and results[1].output == ""


def test_a_rank_without_an_image_does_no_harm(trained, evaluated_three, tmp_path):
    output = tmp_path / "scores.json"
    arguments = ["--model", trained, "--output", output, *MANY_IMAGES, "num_evaluation_images=1"]
    results = run_ranks("evaluate.py", arguments, tmp_path / "ranks")
    assert [result.code for result in results] == [0, 0], results
    table = read_table(output.with_suffix(".parquet"))
    assert table == read_table(evaluated_three.with_suffix(".parquet"))[:1]
    assert table[0].pop("id") == "0"
    assert table[0] == pytest.approx(read_report(output)[0])


@pytest.mark.slow
def test_torchrun_scores_as_one(trained, evaluated_three, tmp_path):
    output = tmp_path / "scores.json"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command = [*launch, SCRIPTS / "evaluate.py", "--model", trained, "--output", output, *THREE_IMAGES]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    assert_same_scores(output, evaluated_three)


@pytest.mark.slow
def test_a_killed_evaluation_leaves_no_process_behind(trained, tmp_path, datasets_cache):
    arguments = ["--model", trained, "--output", tmp_path / "scores.json", *MANY_IMAGES]
    process = start_script("evaluate.py", arguments, tmp_path / "printed")
    workers = kill_evaluation(process, tmp_path / "unfinished_scores" / "rank0.sqlite")
    deadline = time.monotonic() + 150
    while (alive := [worker for worker in workers if is_alive(worker)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    stop(alive)
    assert alive == []


# ----------------------------------------------------------------------------------------------------------------------
# evaluate_boundaries.py


def save_picture(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def make_boundary_pair(seed):
    """8-bit levels of a line across noise, and ids of two regions."""
    levels = np.random.default_rng(seed).integers(0, 50, (20, 30), dtype=np.uint8)
    levels[:, 13 + seed] = 200
    ids = np.zeros((20, 30), dtype=np.uint8)
    ids[:, 15:] = 9
    return levels, ids


@pytest.fixture
def boundary_folders(tmp_path):
    """Arguments of the script for three images of predictions and labels."""
    for seed, name in enumerate("abc"):
        for folder, values in zip(("predictions", "labels"), make_boundary_pair(seed), strict=True):
            save_picture(tmp_path / folder / f"{name}.png", values)
    return ["--predictions", tmp_path / "predictions", "--labels", tmp_path / "labels", "--processes", 1]


def test_boundaries_on_disk_are_scored(boundary_folders, run_script, tmp_path):
    output = tmp_path / "new" / "boundaries.json"
    (tmp_path / "ids.txt").write_text("c\na\n")
    for ids, names in (([], "abc"), (["--ids", tmp_path / "ids.txt"], "ac")):
        arguments = [*boundary_folders, "--max-distance", 0.03, "--output", output, *ids]
        result = run_script("evaluate_boundaries.py", *arguments)
        assert result.code == 0, result.errors
        counts = [boundary_counts(*make_boundary_pair("abc".index(name)), 0.03) for name in names]
        report = json.loads(output.read_text())
        assert report["scores"] == boundary_scores(counts)
        assert (report["num_images"], report["max_distance"]) == (len(names), 0.03)
        assert "scripts/evaluate_boundaries.py --predictions" in report["command"]
        assert "commit" in report["environment"]
        assert f"{report['scores']['ods']:.4f}" in result.output and str(output) in result.output


@pytest.mark.parametrize(
    ("damage", "extra", "words"),
    [
        (lambda folder: shutil.rmtree(folder / "labels"), [], ["no folder", "labels"]),
        (lambda folder: (folder / "labels" / "b.png").unlink(), [], ["labels lacks 1 of 3", "'b'"]),
        (lambda folder: (folder / "predictions" / "b.png").write_text("no picture"), [], ["predictions/b.png"]),
        (
            lambda folder: save_picture(folder / "labels" / "b.png", np.zeros((9, 30), np.uint8)),
            [],
            ["b.png", "(9, 30)"],
        ),
        (lambda folder: None, ["--max-distance", "0"], ["max_distance", "0.0"]),
        (lambda folder: None, ["--ids", "pascal_context"], ["predictions lacks 2498 of 2498"]),
        (lambda folder: None, ["--ids", "absent.txt"], ["absent.txt"]),
    ],
    ids=["no folder", "no label", "no picture", "sizes", "distance", "protocol", "list"],
)
def test_boundaries_that_cannot_be_scored_end_in_one_line(
    boundary_folders, run_script, tmp_path, damage, extra, words
):
    damage(tmp_path)
    arguments = [*boundary_folders, "--max-distance", 0.03, "--output", tmp_path / "boundaries.json", *extra]
    message = error_line(run_script("evaluate_boundaries.py", *arguments))
    assert [word for word in words if word not in message] == []
    assert not (tmp_path / "boundaries.json").exists()


# ----------------------------------------------------------------------------------------------------------------------
# predict.py


def read_maps(path, height, width):
    """Raw maps of a photo, checked for what the tasks promise."""
    with np.load(path) as file:
        maps = dict(file)
    assert list(maps) == TASKS
    assert {maps[task].shape[-2:] for task in TASKS} == {(height, width)}
    assert maps["semseg"].dtype == np.int64
    assert (maps["depth"] >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(maps["normal"], axis=0), 1, atol=1e-4)
    for task in ("boundary", "saliency"):
        assert maps[task].min() >= 0 and maps[task].max() <= 1
    return maps


def predict_arguments(model, photos, output, *more):
    return ["--model", model, "--input", photos, "--output", output, *more]


def files_of(folder):
    """`{relative path: (content, time)}`; contents of what holds no time of its own."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_predicting_one_photo(trained, run_script, tmp_path):
    """It was taken with the camera on its side, as its EXIF orientation says."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo, output = save_photo(tmp_path / "photo.jpg", size=(70, 45), exif=exif), tmp_path / "out"
    result = run_script("predict.py", *predict_arguments(trained, photo, output, "--inside"))
    assert result.code == 0, result.errors
    assert "Predicted 1, done before 0, not usable 0." in result.output
    maps = read_maps(output / "raw" / "photo.npz", height=70, width=45)
    for kind in ("panels", "inside"):
        with Image.open(output / kind / "photo.png") as panel:
            assert panel.width > 45 * len(TASKS)
    facts = json.loads((output / "json" / "photo.json").read_text())
    assert (facts["height"], facts["width"], list(facts["tasks"])) == (70, 45, TASKS)
    assert facts["tasks"]["depth"]["maximum"] == maps["depth"].max()
    assert sum(entry["pixels"] for entry in facts["tasks"]["semseg"]["classes"]) == 70 * 45
    for task, told in facts["tasks"].items():
        with Image.open(output / told["file"]) as picture:
            encoded = np.asarray(picture)
        np.testing.assert_array_equal(encoded, np.asarray(TASK_TABLE[task].encode(maps[task])))
    assert set(facts["files"]) == set(files_of(output)) - {"json/photo.json"}


@pytest.fixture
def good_and_bad(tmp_path):
    """A folder of photos, five good and four bad."""
    photos = tmp_path / "photos"
    (photos / "x.jpg").mkdir(parents=True)
    save_photo(photos / "wide.png", size=(90, 31))
    save_photo(photos / "wide.jpg", size=(90, 31))
    save_photo(photos / "x.jpg" / "wide.png", size=(33, 41))
    save_photo(photos / "one.bmp", size=(1, 1))
    Image.fromarray(np.arange(300, dtype=np.uint16).reshape(15, 20) * 200).save(photos / "grey.png")
    (photos / "text.jpg").write_bytes(b"no picture")
    (photos / "zero.jpg").touch()
    (photos / "cut.png").write_bytes((photos / "wide.png").read_bytes()[:500])
    (photos / "film.mp4").write_bytes(b"no film")
    (photos / "notes.txt").write_text("no picture either")
    return photos


BAD = ["cut.png", "film.mp4", "text.jpg", "zero.jpg"]
GOOD = {"wide.png": (31, 90), "wide.jpg": (31, 90), "x.jpg/wide": (41, 33), "one": (1, 1), "grey": (15, 20)}


def assert_good_and_bad(result, photos, output, summary):
    assert result.code == 1
    assert "Traceback" not in result.errors
    assert summary in result.errors
    named = [line.split(": ")[0] for line in result.errors.splitlines() if line.startswith("  Cannot read ")]
    assert named == [f"  Cannot read {photos / name}" for name in BAD]
    for name, (height, width) in GOOD.items():
        read_maps(output / "raw" / f"{name}.npz", height, width)
        assert (output / "json" / f"{name}.json").is_file() and (output / "panels" / f"{name}.png").is_file()
    assert len([*output.rglob("*.json")]) == len(GOOD)
    assert not [*output.rglob("unfinished*")]


def test_predicting_a_folder_with_bad_files(trained, run_script, good_and_bad):
    """The output is in the folder itself: a second call does not take it for photos, and has nothing to do."""
    output = good_and_bad / "out"
    arguments = predict_arguments(trained, good_and_bad, output)
    result = run_script("predict.py", *arguments, "--batch-size", 2)
    assert_good_and_bad(result, good_and_bad, output, "Predicted 5, done before 0, not usable 4.")
    before = files_of(output)
    assert_good_and_bad(
        run_script("predict.py", *arguments), good_and_bad, output, "Predicted 0, done before 5, not usable 4."
    )
    assert files_of(output) == before
    # another photo under an old name, and a result that was deleted
    save_photo(good_and_bad / "one.bmp", size=(2, 1))
    (output / "panels" / "grey.png").unlink()
    result = run_script("predict.py", *arguments)
    assert "Predicted 2, done before 3, not usable 4." in result.errors
    read_maps(output / "raw" / "one.npz", height=1, width=2)
    assert (output / "panels" / "grey.png").is_file()


@pytest.mark.slow
def test_other_settings_predict_again(trained, run_script, tmp_path):
    photo, output = save_photo(tmp_path / "photo.png", size=(90, 70)), tmp_path / "out"
    depths = []
    for more in ([], ["--tile", 64], ["--tta", "flip", "1.25"], ["--dtype", "bfloat16"]):
        result = run_script("predict.py", *predict_arguments(trained, photo, output, *more))
        assert "Predicted 1, done before 0" in result.output, result.errors
        depths.append(read_maps(output / "raw" / "photo.npz", 70, 90)["depth"])
    assert all(not np.array_equal(depths[0], other) for other in depths[1:])
    assert "got 'flop'" in error_line(
        run_script("predict.py", *predict_arguments(trained, photo, output, "--tta", "flop"))
    )


def test_killed_in_the_middle_a_second_call_does_only_the_rest(trained, run_script, tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for index in range(8):
        save_photo(photos / f"{index}.png", size=(300 + index, 200))
    arguments = predict_arguments(trained, photos, output)
    process = start_script("predict.py", arguments, tmp_path / "printed")
    while len([*output.glob("json/?.json")]) < 2:
        assert process.is_alive()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    done = [path.stem for path in output.glob("json/?.json")]
    assert 2 <= len(done) < 8
    before = {name: entry for name, entry in files_of(output).items() if Path(name).stem in done}
    result = run_script("predict.py", *arguments)
    assert result.code == 0, result.errors
    assert f"Predicted {8 - len(done)}, done before {len(done)}, not usable 0." in result.output
    after = files_of(output)
    assert {name: after[name] for name in before} == before
    for index in range(8):
        read_maps(output / "raw" / f"{index}.npz", 200, 300 + index)
    assert len(after) == 8 * (3 + len(TASKS)) and not [name for name in after if "unfinished" in name]


@pytest.mark.slow
def test_two_ranks_predict_as_one(trained, run_script, good_and_bad, tmp_path):
    outputs = [tmp_path / "alone", tmp_path / "together"]
    alone = run_script("predict.py", *predict_arguments(trained, good_and_bad, outputs[0]))
    ranks = run_ranks("predict.py", predict_arguments(trained, good_and_bad, outputs[1]), tmp_path / "ranks")
    assert [result.code for result in ranks] == [1, 1]
    for result, output in zip((alone, ranks[0]), outputs, strict=True):
        assert_good_and_bad(result, good_and_bad, output, "Predicted 5, done before 0, not usable 4.")
    assert "Predicted" not in ranks[1].errors + ranks[1].output
    first, second = ({name: content for name, (content, _) in files_of(output).items()} for output in outputs)
    assert first == second


@pytest.mark.slow
def test_predicting_a_video(trained, run_script, tmp_path):
    av = pytest.importorskip("av")
    path, output = tmp_path / "film.mp4", tmp_path / "out"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(5):
            pixels = np.full((48, 64, 3), 40 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    arguments = predict_arguments(trained, path, output, "--batch-size", 2, "--max-frames", 3)
    result = run_script("predict.py", *arguments)
    assert result.code == 0, result.errors
    with av.open(str(output / "videos" / "film.mp4")) as container:
        assert (container.streams.video[0].average_rate, container.streams.video[0].height) == (10, 48)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 3
    for index, frame in enumerate(frames):
        assert frame.shape == (48, 160, 3)
        assert abs(frame[:, :60].mean() - 40 * index) < 8  # at the left the frame, at the right a grid of 3 x 2 maps
    assert json.loads((output / "json" / "film.json").read_text())["num_frames"] == 3
    assert "Predicted 0, done before 1" in run_script("predict.py", *arguments).output
    assert sorted(files_of(output)) == ["json/film.json", "videos/film.mp4"]


@pytest.mark.parametrize("missing", ["input", "model"])
def test_predicting_without_a_photo_or_a_model(trained, run_script, tmp_path, missing):
    photo = save_photo(tmp_path / "photo.png")
    paths = {"model": trained, "input": photo} | {missing: tmp_path / "absent"}
    result = run_script(
        "predict.py", "--model", paths["model"], "--input", paths["input"], "--output", tmp_path / "out"
    )
    assert "absent" in error_line(result)
    assert not (tmp_path / "out").exists()


def test_predicting_an_empty_folder(trained, run_script, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no image" in error_line(
        run_script("predict.py", *predict_arguments(trained, tmp_path / "empty", tmp_path / "out"))
    )


# ----------------------------------------------------------------------------------------------------------------------
# benchmark.py


def test_cost_of_the_paper_model(run_script):
    result = run_script("benchmark.py", "cost", "--config", SCRIPTS / "configs" / "vit_large_nyud_v2.yaml")
    table = dict(line.split(maxsplit=1) for line in result.output.splitlines() if line.startswith(("encoder", "all")))
    # figures of the bare ViT-L/16 counted elsewhere: 304.1 M parameters with its last norm, 355.5 GMAC
    assert table["encoder"].split() == ["303.7", "355.5"]
    assert float(table["all"].split()[0]) <= 360


# ----------------------------------------------------------------------------------------------------------------------
# All of them

every_script = pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.name)


@every_script
def test_help_is_there(run_script, path):
    result = run_script(path.name, "--help")
    assert (result.code, result.errors) == (0, "")
    assert f"usage: {path.name}" in result.output


def import_script(path):
    """Imports a script as Python does, its folder before all others."""
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="imported")
    sys.exit(sum(name.split(".")[0] == "evaluate" for name in sys.modules))


@every_script
def test_no_script_imports_the_evaluate_library(path, datasets_cache):
    """It would import evaluate.py, which lies beside it."""
    process = CONTEXT.Process(target=import_script, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == 0


def package_files(path):
    """Files of the package that a script imports from, lazily exported names included."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "transformers_sem":
            exports = [getattr(import_module(node.module), alias.name, None) for alias in node.names]
            modules = {node.module, *(getattr(export, "__module__", None) for export in exports)}
            yield from (
                Path(sys.modules[name].__file__) for name in modules if name and name.startswith("transformers_sem")
            )


@every_script
def test_nothing_that_a_script_reaches_imports_the_evaluate_library(path):
    files = {path}.union(*(reachable(file) for file in package_files(path)))
    assert len(files) > 3
    assert [file for file in files if "evaluate" in absolute_imports(file)] == []


@pytest.mark.slow
def test_an_export_predicts_without_torch(trained, run_script, tmp_path):
    Image.fromarray(np.zeros((50, 70, 3), np.uint8)).save(tmp_path / "photo.png")
    exported = run_script("export_onnx.py", "--model", str(trained), "--output", str(tmp_path / "onnx"))
    assert exported.code == 0, exported.errors
    assert exported.output.count("largest difference") == 2
    blocked = "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    command = [sys.executable, "-c", blocked, str(tmp_path / "onnx" / "run_onnx.py"), str(tmp_path / "photo.png")]
    subprocess.run(command, check=True, timeout=120)
    with np.load(tmp_path / "photo.npz") as maps:
        config = SEMForMultiTaskDensePrediction.from_pretrained(trained).config
        assert {task: maps[task].shape[0] for task in maps} == config.task_num_labels
    again = run_script("export_onnx.py", "--model", str(trained), "--output", str(tmp_path / "onnx"))
    assert again.code == 1 and "must be a new folder" in again.errors


@pytest.mark.slow
def test_windows_are_exported_for_one_size(run_script, tmp_path):
    swin = {"model_type": "swin", "embed_dim": 8, "depths": [2, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    model = SEMForMultiTaskDensePrediction(tiny_config(backbone_config={**swin, "out_indices": [1, 2, 3, 4]}))
    model.save_pretrained(tmp_path / "model")
    SEMImageProcessor().save_pretrained(tmp_path / "model")
    arguments = ["export_onnx.py", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "onnx")]
    refused = run_script(*arguments)
    assert refused.code == 1 and "SwinBackbone" in refused.errors and "--size HEIGHT WIDTH" in refused.errors
    assert not (tmp_path / "onnx").exists()
    exported = run_script(*arguments, "--size", "64", "90")
    assert exported.code == 0, exported.errors
    assert "64 x 90: largest difference" in exported.output
    settings = json.loads((tmp_path / "onnx" / "preprocessor_config.json").read_text())
    assert settings["do_resize"] and settings["size"] == {"height": 64, "width": 90}

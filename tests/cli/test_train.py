"""The command `train`, on scenes of 32 x 64 pixels and with a model of a few thousand weights."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.training.checkpoint import verify
from transformers_sem.training.config import TrainingConfig
from transformers_sem.training.history import read_history

from .commands import (
    MAIN_SCORES,
    SETTINGS,
    TASKS,
    error_line,
    read_report,
    result_of,
    run,
    run_ranks,
    start,
    start_ranks,
    stop,
    wait_for,
)


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
        "curves.png",
        "history.jsonl",
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
    assert report["command"].startswith("transformers-sem train --config quickstart")
    training = json.loads((trained / "training.json").read_text())
    assert report["training"] == training
    assert training["settings"] == TrainingConfig.load(trained / "training.yaml").describe()
    assert training["data"] == {"scenes": report["data"]}
    assert training["command"] == report["command"] and "commit" in training["environment"]
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


def test_the_bases_have_unit_length(trained):
    weights = load_file(trained / "model.safetensors")
    bases = [value for name, value in weights.items() if name.endswith("initial_bases")]
    assert len(bases) == 4
    for value in bases:
        torch.testing.assert_close(value.norm(dim=-1), torch.ones(len(value)))


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(trained, tmp_path):
    folder = tmp_path / "killed"
    arguments = ["--config", "quickstart", *SETTINGS, f"output_dir={folder}"]
    process = start("train", arguments, tmp_path / "first")
    wait_for(folder / "checkpoints" / "step_000002", process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (folder / "model.safetensors").exists()
    result = run("train", *arguments)
    assert result.code == 0, result.errors
    assert_same_run(folder, trained)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_000006"]


@pytest.mark.slow
def test_one_model_trains_on_several_datasets_and_resumes_exactly(tmp_path):
    sizes = "num_train: 6, num_validation: 2, height: 32, width: 64"
    entries = [
        f"{{dataset: scenes, dataset_kwargs: {{{sizes}}}}}",
        f"{{dataset: scenes, dataset_kwargs: {{{sizes}}}, tasks: {{semseg: semseg_rooms}}, weight: 2}}",
    ]
    settings = [setting for setting in SETTINGS if not setting.startswith("dataset_kwargs")]
    folder = tmp_path / "run"
    arguments = ["--config", "quickstart", *settings, f"datasets=[{', '.join(entries)}]", "dataset_kwargs={}"]
    arguments += ["tasks=[semseg, depth, semseg_rooms]", "keep_checkpoints=3", f"output_dir={folder}"]
    result = run("train", *arguments)
    assert result.code == 0, result.errors
    assert "labels      semseg 6, depth 12, semseg_rooms 6 of 12 images" in result.output
    paths = [folder / f"evaluation_{name}.json" for name in ("scenes_1", "scenes_2")]
    scores = [json.loads(path.read_text())["scores"] for path in paths]
    assert [{"semseg/miou", "semseg_rooms/miou"} & set(values) for values in scores] == [
        {"semseg/miou"},
        {"semseg_rooms/miou"},
    ]
    assert SEMForMultiTaskDensePrediction.from_pretrained(folder).config.tasks == ["semseg", "depth", "semseg_rooms"]
    assert read_history(folder)[-1]["scores"].keys() >= {"semseg/miou", "semseg_rooms/miou"}

    resumed = tmp_path / "resumed"
    shutil.copytree(folder, resumed, ignore=shutil.ignore_patterns("step_000004", "step_000006", "model*", ".lock"))
    result = run("train", *arguments, f"output_dir={resumed}")
    assert result.code == 0, result.errors
    found = load_file(resumed / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in load_file(folder / "model.safetensors").items())
    assert history_of(resumed) == history_of(folder)

    for path in paths:
        path.unlink()
    result = run("evaluate", "--model", folder)
    assert result.code == 0, result.errors
    assert [json.loads(path.read_text())["scores"] for path in paths] == scores


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
    history = read_history(trained)
    entries = [entry for entry in history if "loss" in entry]
    assert [entry["step"] for entry in entries] == [2, 4, 6]
    assert all(list(entry["losses"]) == TASKS and entry["skipped_steps"] == 0 for entry in entries)
    assert entries[-1]["loss"] < entries[0]["loss"]
    snapshots = [entry for entry in history if "scores" in entry]
    assert [entry["step"] for entry in snapshots] == [3, 6]
    assert all(set(MAIN_SCORES) <= set(entry["scores"]) for entry in snapshots)


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
def uninterrupted(tmp_path_factory):
    """The folder of a run of `INTERRUPTIBLE` settings that nothing interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    result = run("train", "--config", "quickstart", *INTERRUPTIBLE, f"output_dir={folder}")
    assert result.code == 0, result.errors
    return folder


def start_interruptible(folder, printed):
    return start("train", ["--config", "quickstart", *INTERRUPTIBLE, f"output_dir={folder}"], printed)


def kill_at(path, process):
    wait_for(path, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    stop(workers)


def finish_interruptible(folder):
    result = run("train", "--config", "quickstart", *INTERRUPTIBLE, f"output_dir={folder}")
    assert result.code == 0, result.errors
    return result


@pytest.mark.slow
def test_a_run_killed_again_and_again_is_the_same(uninterrupted, tmp_path):
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
    finish_interruptible(folder)
    assert_same_run(folder, uninterrupted)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "name", "reason"),
    [
        (flip_a_bit, "optimizer.bin", "its checksum differs"),
        (lambda path: os.truncate(path, 100), "model.safetensors", "100 bytes instead of"),
        (Path.unlink, "random_states_0.pkl", "is missing"),
    ],
    ids=["bit", "truncated", "deleted"],
)
def test_a_run_recovers_from_a_broken_checkpoint(uninterrupted, tmp_path, damage, name, reason):
    folder = tmp_path / "run"
    kill_at(folder / "checkpoints" / "step_000009", start_interruptible(folder, tmp_path / "first"))
    newest = max((folder / "checkpoints").glob("step_*"))
    damage(newest / name)
    result = finish_interruptible(folder)
    assert f"{newest} is broken: {name}" in result.errors and reason in result.errors
    assert_same_run(folder, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_run_saves_and_exits_after_a_signal(uninterrupted, tmp_path, signum):
    """In a process group of its own, to which the signal goes as Ctrl-C does: workers get it too."""
    folder = tmp_path / "run"
    arguments = ["--config", "quickstart", *INTERRUPTIBLE, "num_workers=1", f"output_dir={folder}"]
    command = [sys.executable, "-m", "transformers_sem", "train", *arguments]
    with (tmp_path / "printed.txt").open("w") as printed:
        process = subprocess.Popen(list(map(str, command)), start_new_session=True, stdout=printed, stderr=printed)
    while not (folder / "checkpoints" / "step_000003").exists():
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signum)
    assert process.wait(timeout=60) == 128 + signum
    message = (tmp_path / "printed.txt").read_text()
    newest = max((folder / "checkpoints").glob("step_*"))
    assert f"Stopped by {signum.name} after step {int(newest.name[5:])}, saved in {newest.parent}" in message
    assert "Traceback" not in message
    assert not (folder / "model.safetensors").exists()
    finish_interruptible(folder)
    assert_same_run(folder, uninterrupted)


@pytest.mark.slow
def test_ranks_stop_together(uninterrupted, tmp_path):
    """Only one of them gets the signal."""
    folder = tmp_path / "run"
    arguments = ["--config", "quickstart", *INTERRUPTIBLE, f"output_dir={folder}"]
    ranks = start_ranks("train", arguments, tmp_path / "ranks")
    wait_for(folder / "checkpoints" / "step_000003", ranks[0])
    os.kill(ranks[1].pid, signal.SIGTERM)
    results = [result_of(rank, tmp_path / "ranks" / str(number)) for number, rank in enumerate(ranks)]
    assert [result.code for result in results] == [143, 143]
    assert "Stopped by SIGTERM" in results[0].output and results[1].output == ""


@pytest.mark.slow
def test_two_ranks_train_as_one(tmp_path):
    """The same images per step, on one rank or in halves: losses, weights and bases agree as far as sums commute."""
    settings = [
        *SETTINGS,
        "batch_size=8",
        "max_steps=20",
        "log_every=1",
        "save_every=20",
        "learning_rate=2.0e-4",
    ]
    settings = ["--config", "quickstart", *settings, "model.backbone_config.drop_path_rate=0.0"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert run("train", *settings, f"output_dir={one}").code == 0
    results = run_ranks("train", [*settings, f"output_dir={two}"], tmp_path / "ranks")
    assert [result.code for result in results] == [0, 0], results
    losses = [[entry["loss"] for entry in read_history(folder) if "loss" in entry] for folder in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    found, expected = (load_file(folder / "model.safetensors") for folder in (two, one))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_run_that_only_meets_nan_ends_with_its_last_checkpoint(tmp_path):
    folder = tmp_path / "run"
    settings = [*SETTINGS, "learning_rate=1.0e+30", "max_skipped_steps=2", "save_every=1", "max_steps=9"]
    message = error_line(run("train", "--config", "quickstart", *settings, f"output_dir={folder}"))
    assert "`max_skipped_steps`" in message and "got 3 at step" in message
    newest = max((folder / "checkpoints").iterdir())
    assert verify(newest) is None
    assert all(value.isfinite().all() for value in load_file(newest / "model.safetensors").values())
    assert not (folder / "model.safetensors").exists()


@pytest.mark.slow
def test_compiled_training_is_the_same_training(tmp_path):
    """Compiling for a CPU takes minutes."""
    settings = [
        "--config",
        "quickstart",
        *SETTINGS,
        "tasks=[depth]",
        "log_every=1",
        "max_steps=3",
        "learning_rate=2.0e-4",
    ]
    histories = []
    for value in ("true", "false"):
        folder = tmp_path / value
        command = [
            sys.executable,
            "-m",
            "transformers_sem",
            "train",
            *settings,
            f"compile={value}",
            f"output_dir={folder}",
        ]
        command.append("model.backbone_config.drop_path_rate=0.0")
        subprocess.run(list(map(str, command)), check=True, timeout=1200)
        histories.append([entry["loss"] for entry in read_history(folder) if "loss" in entry])
    np.testing.assert_allclose(*histories, rtol=1e-4)
    assert SEMForMultiTaskDensePrediction.from_pretrained(tmp_path / "true").config.tasks == ["depth"]


@pytest.mark.slow
def test_a_run_starts_from_a_trained_model(trained, tmp_path):
    """Of other tasks: what both have is kept, and a step of no size shows what it started from."""
    folder = tmp_path / "run"
    overrides = ["tasks=[depth, parsing]", "dataset_kwargs.seed=3", "max_steps=1", "learning_rate=0.0"]
    arguments = [
        "--config",
        "quickstart",
        *SETTINGS,
        *overrides,
        f"output_dir={folder}",
        f"pretrained_model={trained}",
    ]
    result = run("train", *arguments)
    assert result.code == 0, result.errors
    model = SEMForMultiTaskDensePrediction.from_pretrained(folder)
    start = dict(SEMForMultiTaskDensePrediction.from_pretrained(trained).named_parameters())
    assert model.config.tasks == ["depth", "parsing"]
    assert all(torch.equal(parameter, start[name]) for name, parameter in model.named_parameters())


def test_other_settings_do_not_go_on_with_a_run(trained):
    before = (trained / "training.yaml").read_text()
    result = run("train", "--config", "quickstart", *SETTINGS, f"output_dir={trained}", "learning_rate=0.5")
    assert "learning_rate 0.004 -> 0.5" in error_line(result)
    assert (trained / "training.yaml").read_text() == before


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["dataset=nyud"], ["'nyud'", "nyud_v2", "scenes"]),
        (["dataset=nyud_v2", "dataset_kwargs={}"], ["NYUDv2", "data_dir"]),
        (["dataset=nyud_v2", "dataset_kwargs={}", "data_dir=."], ["NYUDv2", "images", "tar or zip archive"]),
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
        (["data_dir=photos"], ["data_dir='photos'", "dataset=folder"]),
        (["dataset_kwargs.num_train=0"], ["`num_train`", "whole number from 1; got 0"]),
        (["dataset_kwargs.seed=abc"], ["`seed`", "got 'abc'"]),
        (["dataset_kwargs.version=5"], ["version"]),
    ],
    ids=str,
)
def test_bad_settings_end_in_one_line(tmp_path, overrides, words):
    arguments = ["--config", "quickstart", *SETTINGS, f"output_dir={tmp_path / 'run'}", *overrides]
    message = error_line(run("train", *arguments))
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("override", ["dataset=nyud_v2", "model.num_bases=many", "tasks=[depth, albedo]"])
def test_a_run_that_did_not_start_claims_no_folder(tmp_path, override):
    """Else the corrected command is told that the folder holds a run of other settings."""
    folder = tmp_path / "run"
    error_line(run("train", "--config", "quickstart", *SETTINGS, f"output_dir={folder}", override))
    assert not (folder / "training.yaml").exists()


DRY_RUN_WORDS = ["* max_steps", "6 steps of 2 images", "1.5 epochs of 8", "Files in", "(images: 2, each 32 x 64) took"]


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, offline):
    before = sorted(offline.rglob("*"))
    result = run("train", "--config", "quickstart", "--dry-run", *SETTINGS, f"output_dir={tmp_path / 'run'}")
    assert result.code == 0, result.errors
    assert [word for word in DRY_RUN_WORDS if word not in result.output] == []
    assert list(tmp_path.iterdir()) == [] and sorted(offline.rglob("*")) == before


@pytest.mark.slow
def test_a_dry_run_writes_nothing_to_any_cache(tmp_path):
    folder = tmp_path / "run"
    for name in ("HF_HOME", "HF_DATASETS_CACHE", "TMPDIR"):
        (tmp_path / name).mkdir()
    environment = {name: str(tmp_path / name) for name in ("HF_HOME", "HF_DATASETS_CACHE", "TMPDIR")}
    arguments = ["--config", "quickstart", "--dry-run", *SETTINGS, f"output_dir={folder}"]
    before = sorted(tmp_path.rglob("*"))
    process = start("train", arguments, tmp_path / "printed", environment)
    result = result_of(process, tmp_path / "printed")
    assert result.code == 0, result.errors
    assert [word for word in DRY_RUN_WORDS if word not in result.output] == []
    written = set(tmp_path.rglob("*")) - set(before)
    assert {path.relative_to(tmp_path).parts[0] for path in written} == {"printed"}


def test_a_dry_run_of_bad_settings_ends_in_one_line(tmp_path):
    arguments = ["--config", "quickstart", *SETTINGS, f"output_dir={tmp_path / 'run'}", "--dry-run", "dataset=nyud_v2"]
    assert "data_dir" in error_line(run("train", *arguments, "dataset_kwargs={}"))


def test_a_missing_configuration_is_named():
    assert "absent.yaml" in error_line(run("train", "--config", "absent.yaml"))

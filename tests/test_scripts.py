"""The scripts from end to end, on scenes of 32 x 64 pixels and with a model of a few thousand weights."""

import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from collections import namedtuple
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor


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
    "boundary/pixel_maxf",
    "parsing/miou",
    "saliency/maxf",
]

# Importing the libraries takes seconds; the server of this context does it once and forks every script from there.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["accelerate", "transformers_sem.training.evaluating"])

Result = namedtuple("Result", ["code", "output", "errors"])


def play_script(name, arguments, folder):
    """Runs in a process of its own what `python scripts/NAME` runs, and notes what it prints."""
    for stream in (sys.stdout, sys.stderr):
        file = os.open(Path(folder) / f"{stream.fileno()}.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(file, stream.fileno())
    sys.argv = [f"scripts/{name}", *arguments]
    runpy.run_path(str(SCRIPTS / name), run_name="__main__")


def start_script(name, arguments, folder):
    folder.mkdir(parents=True)
    process = CONTEXT.Process(target=play_script, args=(name, [str(argument) for argument in arguments], folder))
    process.start()
    return process


@pytest.fixture
def run_script(tmp_path, datasets_cache):
    def run(name, *arguments):
        folder = tmp_path / "printed" / str(time.time_ns())
        process = start_script(name, arguments, folder)
        process.join(timeout=120)
        return Result(process.exitcode, (folder / "1.txt").read_text(), (folder / "2.txt").read_text())

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
        "evaluation.json",
        "predictions.png",
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
    resumed, expected = (load_file(run / "model.safetensors") for run in (folder, trained))
    assert set(resumed) == set(expected)
    assert [name for name in expected if not torch.equal(resumed[name], expected[name])] == []
    assert read_report(folder / "evaluation.json") == read_report(trained / "evaluation.json")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_000006"]


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
        (["dataset=nyud_v2", "dataset_kwargs={}", "data_dir=."], ["NYUDv2", "images", "data_dir"]),
        (["max_step=3"], ["'max_step'", "max_steps"]),
        (["tasks=[depth, albedo]"], ["'albedo'", "saliency"]),
        (["model.num_bases=many"], ["num_bases", "many"]),
        (["model.num_base=8"], ["num_base"]),
        (["model.backbone_config.model_name=swim_tiny"], ["'swim_tiny'"]),
        (["pretrained_backbone=absent.safetensors"], ["absent.safetensors"]),
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


def test_a_missing_configuration_is_named(run_script):
    assert "absent.yaml" in error_line(run_script("train.py", "--config", "absent.yaml"))


# ----------------------------------------------------------------------------------------------------------------------
# evaluate.py


def test_evaluating_again_gives_the_same_numbers(trained, run_script, tmp_path):
    result = run_script("evaluate.py", "--model", trained, "--output", tmp_path / "again.json")
    assert result.code == 0, result.errors
    assert read_report(tmp_path / "again.json") == read_report(trained / "evaluation.json")
    assert [score for score in MAIN_SCORES if f"* {score}" not in result.output] == []


def test_evaluating_some_images(trained, run_script, tmp_path):
    output = tmp_path / "some.json"
    run_script("evaluate.py", "--model", trained, "--output", output, "num_evaluation_images=2")
    scores, _, num_images = read_report(output)
    assert num_images == 2
    assert scores != read_report(trained / "evaluation.json")[0]


def test_evaluating_what_is_not_there(run_script, tmp_path):
    assert "absent" in error_line(run_script("evaluate.py", "--model", tmp_path / "absent"))


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


def test_predicting_one_photo(trained, run_script, tmp_path):
    """It was taken with the camera on its side, as its EXIF orientation says."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = save_photo(tmp_path / "photo.jpg", size=(70, 45), exif=exif)
    result = run_script("predict.py", "--model", trained, "--input", photo, "--output", tmp_path / "out")
    assert result.code == 0, result.errors
    read_maps(tmp_path / "out" / "photo.npz", height=70, width=45)
    with Image.open(tmp_path / "out" / "photo.png") as panel:
        assert panel.width > 45 * len(TASKS)


def test_predicting_a_folder_with_a_broken_file(trained, run_script, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    save_photo(photos / "wide.png", size=(90, 31))
    save_photo(photos / "small.bmp", size=(20, 17))
    (photos / "broken.jpg").write_bytes(b"no picture")
    (photos / "cut.png").write_bytes((photos / "wide.png").read_bytes()[:500])
    (photos / "notes.txt").write_text("no picture either")
    result = run_script("predict.py", "--model", trained, "--input", photos, "--output", tmp_path / "out")
    assert result.code == 1
    assert "Traceback" not in result.errors
    assert str(photos / "broken.jpg") in result.errors and str(photos / "cut.png") in result.errors
    assert "notes.txt" not in result.errors
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["small.npz", "small.png", "wide.npz", "wide.png"]
    read_maps(tmp_path / "out" / "wide.npz", height=31, width=90)
    read_maps(tmp_path / "out" / "small.npz", height=17, width=20)


@pytest.mark.parametrize("missing", ["input", "model"])
def test_predicting_without_a_photo_or_a_model(trained, run_script, tmp_path, missing):
    photo = save_photo(tmp_path / "photo.png")
    paths = {"model": trained, "input": photo} | {missing: tmp_path / "absent"}
    result = run_script(
        "predict.py", "--model", paths["model"], "--input", paths["input"], "--output", tmp_path / "out"
    )
    assert "absent" in error_line(result)
    assert not (tmp_path / "out").exists()


def test_predicting_an_empty_folder_or_two_of_one_name(trained, run_script, tmp_path):
    (tmp_path / "empty").mkdir()
    arguments = ["--model", trained, "--output", tmp_path / "out", "--input"]
    assert "no picture" in error_line(run_script("predict.py", *arguments, tmp_path / "empty"))
    twins = [save_photo(tmp_path / "photo.png"), save_photo(tmp_path / "photo.jpg")]
    assert "['photo']" in error_line(run_script("predict.py", *arguments, *twins))


# ----------------------------------------------------------------------------------------------------------------------
# benchmark.py


def test_cost_of_the_paper_model(run_script):
    result = run_script("benchmark.py", "cost", "--config", SCRIPTS / "configs" / "vit_large_nyud_v2.yaml")
    table = dict(line.split(maxsplit=1) for line in result.output.splitlines() if line.startswith(("encoder", "all")))
    # figures of the bare ViT-L/16 counted elsewhere: 304.1 M parameters with its last norm, 355.5 GMAC
    assert table["encoder"].split() == ["303.7", "355.5"]
    assert float(table["all"].split()[0]) <= 360

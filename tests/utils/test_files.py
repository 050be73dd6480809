import json
import os
import resource
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from transformers_sem import TASKS, SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.evaluation.evaluator import save_image_scores
from transformers_sem.evaluation.map_files import save_maps
from transformers_sem.utils import files as reporting
from transformers_sem.utils.environment import environment, git_commit, save_report, typed_command
from transformers_sem.utils.files import save_trained
from transformers_sem.visualization.panels import Prediction, save_panel

from ..tiny import tiny_config


SIZE = (6, 9)


def random_maps(seed=0):
    """Maps of every task in physical units."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(3, *SIZE))
    maps = {
        "semseg": generator.integers(0, 40, SIZE),
        "depth": (generator.random(SIZE) * 70).astype(np.float32),
        "normal": (vectors / np.linalg.norm(vectors, axis=0)).astype(np.float32),
        "boundary": generator.random(SIZE).astype(np.float32),
        "parsing": generator.integers(0, 7, SIZE),
        "saliency": generator.random(SIZE).astype(np.float32),
    }
    return {task: torch.from_numpy(values) for task, values in maps.items()}


def read_picture(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


# ----------------------------------------------------------------------------------------------------------------------
# No file is ever half there


def write_report(folder, seed):
    save_report(folder / "evaluation.json", scores={f"semseg/score {index}": seed for index in range(500)})


def write_image_scores(folder, seed):
    scores = np.random.default_rng(seed).random(500).tolist()
    save_image_scores(folder / "evaluation.parquet", [{"id": "a", "depth/rmse": score} for score in scores])


def write_maps(folder, seed):
    save_maps(folder, "0001", random_maps(seed))


def write_arrays(folder, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "depth", replace(TASKS["depth"], encode=None))
        save_maps(folder, "0001", {"depth": random_maps(seed)["depth"]})


def write_panel(folder, seed):
    image = torch.randint(256, (3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    save_panel(folder / "predictions.png", [Prediction(image, random_maps(seed))])


every_writer = pytest.mark.parametrize(
    "write", [write_report, write_image_scores, write_maps, write_arrays, write_panel]
)


@contextmanager
def full_disk():
    """No file grows beyond 40 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def stopped_before_renaming():
    def stop(source, target):
        raise OSError("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", stop)
        yield


def finished_files(folder):
    """Their content, by path."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("unfinished")]
    return {path.relative_to(folder): path.read_bytes() for path in paths}


@every_writer
@pytest.mark.parametrize("failure", [full_disk, stopped_before_renaming])
def test_a_failed_write_leaves_what_was_there_and_can_be_repeated(tmp_path, write, failure):
    with failure(), pytest.raises(OSError):
        write(tmp_path, seed=0)
    assert finished_files(tmp_path) == {}
    write(tmp_path, seed=0)
    before = finished_files(tmp_path)
    assert before
    with failure(), pytest.raises(OSError):
        write(tmp_path, seed=1)
    assert finished_files(tmp_path) == before
    write(tmp_path, seed=1)
    assert finished_files(tmp_path).keys() == before.keys()
    assert finished_files(tmp_path) != before
    assert not list(tmp_path.rglob("unfinished*"))


def test_a_model_is_saved_whole_and_over_an_unfinished_one(tmp_path):
    model, image_processor = SEMForMultiTaskDensePrediction(tiny_config()), SEMImageProcessor()
    with stopped_before_renaming(), pytest.raises(OSError, match="stopped"):
        save_trained(model, image_processor, tmp_path)
    assert finished_files(tmp_path / "unfinished_model") != {}
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished_model"]
    save_trained(model, image_processor, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    loaded = SEMForMultiTaskDensePrediction.from_pretrained(tmp_path, local_files_only=True)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


# ----------------------------------------------------------------------------------------------------------------------
# What is in them


def test_a_report_holds_scores_command_and_environment(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/opt/bin/transformers-sem", "evaluate", "--model", "my run"])
    save_report(tmp_path / "evaluation.json", scores={"depth/rmse": 0.1 + 0.2}, num_images=3, seed=None)
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["scores"] == {"depth/rmse": 0.1 + 0.2}
    assert (report["num_images"], report["seed"]) == (3, None)
    assert report["command"] == "transformers-sem evaluate --model 'my run'"
    assert report["environment"] == environment()


def test_the_command_of_a_report_can_be_typed_again():
    expected = {
        "/opt/bin/transformers-sem": "transformers-sem train",
        "/lib/transformers_sem/__main__.py": "transformers-sem train",
        "scripts/prepare_nyud_v2.py": "python scripts/prepare_nyud_v2.py train",
    }
    assert {path: typed_command([path, "train"]) for path in expected} == expected
    module = "/lib/transformers_sem/cli/evaluate_boundaries.py"
    assert typed_command([module, "--ids", "a b"]) == "transformers-sem evaluate-boundaries --ids 'a b'"


def test_the_environment_has_commit_versions_and_hardware():
    found = environment()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert {"commit", "transformers-sem", "transformers", "timm", "datasets", "accelerate", "scipy", "numpy"} <= set(
        found
    )
    assert all(isinstance(value, str) for key, value in found.items() if key != "commit")
    assert found["hardware"].startswith("CPU (") == (not torch.cuda.is_available())


def test_the_commit_of_reports_is_that_of_the_start(monkeypatch):
    before = environment()
    monkeypatch.setattr(reporting, "git_commit", lambda: "of later")
    assert environment() == before


def test_image_scores_are_a_row_each_and_null_where_there_are_none(tmp_path):
    image_scores = [{"id": "b"}, {"id": "a", "depth/rmse": 1 / 3}, {"id": "c", "semseg/miou": 0.5, "depth/rmse": 2.0}]
    save_image_scores(tmp_path / "evaluation.parquet", image_scores)
    assert pq.read_table(tmp_path / "evaluation.parquet").to_pylist() == [
        {"id": "b", "depth/rmse": None, "semseg/miou": None},
        {"id": "a", "depth/rmse": 1 / 3, "semseg/miou": None},
        {"id": "c", "depth/rmse": 2.0, "semseg/miou": 0.5},
    ]


def test_maps_are_pictures_of_their_values(tmp_path):
    maps = {task: values.numpy() for task, values in random_maps().items()}
    save_maps(tmp_path, "0001", random_maps())
    pictures = {task: read_picture(tmp_path / task / "0001.png") for task in maps}
    assert len(list(tmp_path.rglob("*.*"))) == len(TASKS)
    for task in ("semseg", "parsing"):
        assert pictures[task].dtype == np.uint8
        np.testing.assert_array_equal(pictures[task], maps[task])
    assert pictures["depth"].dtype == np.uint16
    np.testing.assert_allclose(pictures["depth"] / 1000, maps["depth"].clip(max=65.535), atol=0.00051)
    np.testing.assert_allclose(pictures["normal"] / 127.5 - 1, maps["normal"].transpose(1, 2, 0), atol=1 / 254)
    for task in ("boundary", "saliency"):
        np.testing.assert_array_equal(pictures[task], np.floor(maps[task] * 255))


def test_a_task_without_pictures_is_an_array(tmp_path):
    write_arrays(tmp_path, seed=0)
    np.testing.assert_array_equal(np.load(tmp_path / "depth" / "0001.npy"), random_maps()["depth"])


def test_a_name_with_a_folder_is_in_that_folder(tmp_path):
    paths = save_maps(tmp_path, "kitchen/0001", {"semseg": random_maps()["semseg"]})
    assert paths == {"semseg": tmp_path / "semseg" / "kitchen" / "0001.png"}
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [*paths.values()]


def test_a_panel_shows_the_first_images_only(tmp_path):
    images = iter(range(100))

    def predictions():
        for seed in images:
            yield Prediction(torch.zeros(3, *SIZE, dtype=torch.uint8), random_maps(seed))

    save_panel(tmp_path / "predictions.png", predictions(), num_images=2)
    assert next(images) == 2
    assert read_picture(tmp_path / "predictions.png").ndim == 3


# ----------------------------------------------------------------------------------------------------------------------
# git_commit


def git(folder, *arguments):
    command = ["git", "-c", "user.name=me", "-c", "user.email=me@here", "-C", folder, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A file of code, in no repository yet."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    path = tmp_path / "src" / "reporting.py"
    path.parent.mkdir()
    shutil.copy(reporting.__file__, path)
    monkeypatch.setattr(reporting, "__file__", str(path))
    return path


def make_repository(folder, *files):
    git(folder, "init", "--quiet")
    git(folder, "add", *files)
    git(folder, "commit", "--quiet", "--message", "first")
    return git(folder, "rev-parse", "HEAD")


def test_the_commit_is_that_of_this_repository(repository):
    if not (repository / ".git").exists():
        pytest.skip("these files are no repository")
    commit = git(repository, "rev-parse", "HEAD")
    assert len(commit) == 40
    assert git_commit() in (commit, f"{commit}-dirty")


def test_a_changed_file_makes_the_commit_dirty(code, tmp_path):
    commit = make_repository(tmp_path, code)
    git(tmp_path, "tag", "v1")
    assert git_commit() == commit
    (tmp_path / "new.txt").touch()
    assert git_commit() == commit
    code.write_text("changed")
    assert git_commit() == f"{commit}-dirty"


def test_outside_a_repository_there_is_no_commit(code):
    assert git_commit() is None


def test_a_repository_without_a_commit_has_none(code, tmp_path):
    git(tmp_path, "init", "--quiet")
    assert git_commit() is None


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


def test_the_commit_of_a_repository_around_an_installed_package_is_not_its_own(code, tmp_path):
    """Such as that of a project whose virtual environment the package is installed in."""
    (tmp_path / "project.txt").touch()
    make_repository(tmp_path, tmp_path / "project.txt")
    assert git_commit() is None

import json
import os
import shutil
import subprocess

import pytest
import torch

from transformers_sem.utils import environment as reporting
from transformers_sem.utils.environment import environment, git_commit, save_report, typed_command


def test_a_report_says_what_and_how(tmp_path, monkeypatch):
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
    index = (tmp_path / ".git" / "index").read_bytes()
    os.utime(code, (1, 1))
    assert git_commit() == commit
    assert (tmp_path / ".git" / "index").read_bytes() == index  # rewritten with the new time by what locks it
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

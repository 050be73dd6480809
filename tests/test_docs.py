"""The examples in the documentation run, and give what they say they give."""

import doctest
import importlib
import pkgutil
import re

import numpy as np
import pytest
from PIL import Image

import transformers_sem
from transformers_sem import TASKS, SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.data.nyud_v2 import find_source
from transformers_sem.data.preparing import prepare

from .data.nyud_v2_forms import write_tiny_folder
from .tiny import tiny_config


MODULES = [
    "transformers_sem",
    *(module.name for module in pkgutil.walk_packages(transformers_sem.__path__, "transformers_sem.")),
]


def test_all_modules_are_found():
    assert {"transformers_sem.tasks", "transformers_sem.data.scenes", "transformers_sem.training.loading"} < set(
        MODULES
    )


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    if name == "transformers_sem.demo.page":
        pytest.importorskip("gradio", reason="the extra `demo` is not installed")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", ["configuration_sem", "modeling_sem", "tasks"])
def test_these_docstrings_have_examples(name):
    assert doctest.testmod(importlib.import_module(f"transformers_sem.{name}")).attempted > 0


@pytest.fixture
def readme_folder(tmp_path, monkeypatch):
    """A folder with what the README's examples find: a trained model, a photo and a prepared data set."""
    tasks = dict(TASKS)
    source = find_source(write_tiny_folder(tmp_path / "NYUDv2", {"train": ["0001"], "val": ["0002"]}))
    prepare(source, tmp_path / "nyud_v2", num_processes=1)
    SEMForMultiTaskDensePrediction(tiny_config()).save_pretrained(tmp_path / "runs" / "quickstart")
    SEMImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "runs" / "quickstart")
    Image.fromarray(np.zeros((48, 80, 3), dtype=np.uint8)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    TASKS.clear()
    TASKS.update(tasks)


def test_readme(repository, readme_folder):
    blocks = re.findall(r"^```python\n(.*?)^```", (repository / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 2
    names = {}
    for block in blocks:
        exec(block, names)
    assert {value.shape[-2:] for value in names["prediction"].values()} == {(48, 80)}
    assert list(names["prediction"]) == tiny_config().tasks
    assert names["config"].tasks == ["semseg", "albedo"]


def test_readme_sessions(repository, readme_folder):
    assert doctest.testfile(str(repository / "README.md"), module_relative=False).failed == 0

"""The examples in the documentation run, and give what they say they give."""

import doctest
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import transformers_sem
from transformers_sem import METRICS, TASKS, SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.data.benchmarks import get_benchmark
from transformers_sem.data.nyud_v2 import find_source
from transformers_sem.data.prepare import prepare

from .data.nyud_v2_forms import write_tiny_folder
from .tiny import tiny_config


MODULES = [
    "transformers_sem",
    *(module.name for module in pkgutil.walk_packages(transformers_sem.__path__, "transformers_sem.")),
]


def test_all_modules_are_found():
    assert {
        "transformers_sem.tasks",
        "transformers_sem.data.scenes.rendering",
        "transformers_sem.training.data_order",
    } < set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    if name == "transformers_sem.demo.page":
        pytest.importorskip("gradio", reason="the extra `demo` is not installed")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", ["configuration_sem", "modeling_sem", "tasks"])
def test_these_docstrings_have_examples(name):
    assert doctest.testmod(importlib.import_module(f"transformers_sem.{name}")).attempted > 0


@pytest.fixture(scope="module")
def model_and_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    source = find_source(write_tiny_folder(folder / "NYUDv2", {"train": ["0001"], "val": ["0002"]}))
    prepare(source, folder / "nyud_v2", num_processes=1)
    SEMForMultiTaskDensePrediction(tiny_config()).save_pretrained(folder / "runs" / "quickstart")
    SEMImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder / "runs" / "quickstart")
    return folder


@pytest.fixture
def user_folder(repository, model_and_data, tmp_path, monkeypatch):
    """A folder with what the examples find: the scripts, a trained model, photos and a prepared dataset."""
    tables = [(table, dict(table)) for table in (TASKS, METRICS)]
    shutil.copytree(model_and_data, tmp_path, dirs_exist_ok=True)
    Image.fromarray(np.zeros((48, 80, 3), dtype=np.uint8)).save(tmp_path / "photo.jpg")
    (tmp_path / "photos").mkdir()
    Image.effect_noise((80, 48), 60).convert("RGB").save(tmp_path / "photos" / "noise.jpg")
    (tmp_path / "scripts").symlink_to(repository / "scripts")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for table, before in tables:  # a page may register tasks and metrics
        table.clear()
        table.update(before)


def code_blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def run_python(path):
    """Runs the Python of a page, top to bottom; returns the names it leaves."""
    names = {}
    for block in code_blocks(path, "python"):
        exec(compile(block, str(path), "exec"), names)
    return names


def test_readme(repository, user_folder):
    names = run_python(repository / "README.md")
    assert {value.shape[-2:] for value in names["prediction"].values()} == {(48, 80)}
    assert list(names["prediction"]) == tiny_config().tasks


def test_readme_sessions(repository, user_folder):
    assert doctest.testfile(str(repository / "README.md"), module_relative=False).failed == 0


def test_use_a_model(repository, user_folder):
    names = run_python(repository / "docs" / "use_a_model.md")
    assert [prediction["depth"].shape for prediction in names["predictions"]] == [(48, 80)] * 2
    assert names["half"].config.tasks == ["depth", "normal"]
    assert names["result"]["images"]["depth"].size == Image.open("normal.png").size == (80, 48)


def test_from_other_models(repository, user_folder):
    names = run_python(repository / "docs" / "from_other_models.md")
    torch.testing.assert_close(names["same_depth"], names["depth"])
    assert names["normals"].shape == (3, 48, 80) and set(names["everything"]) == set(names["prediction"])
    assert names["model"].heads["semseg"].classifier.out_channels == 2 and names["loss"] > 0


def test_train(repository, user_folder):
    names = run_python(repository / "docs" / "train.md")
    assert names["samples"][0]["labels"]["normal"].shape == (3, 96, 128)
    assert names["batch"]["labels"]["depth"].shape == (1, 1, 64, 64)


def test_add_a_task(repository, user_folder, monkeypatch):
    (user_folder / "my_task.py").touch()
    monkeypatch.syspath_prepend(user_folder)
    names = run_python(repository / "docs" / "add_a_task.md")
    assert names["config"].tasks == ["depth", "albedo"] and set(names["outputs"].losses) == {"depth", "albedo"}
    assert names["prediction"]["albedo"].shape == (3, 96, 128)


def test_metrics(repository):
    assert 0 < run_python(repository / "docs" / "metrics.md")["scores"]["ods"] < 1


def test_fine_tune_on_your_folder(repository, user_folder):
    """What the page writes is a dataset of one's own."""
    run_python(repository / "docs" / "fine_tune_on_your_folder.md")
    assert get_benchmark("folder", "rooms").count_rows("rooms") == {"train": 18, "validation": 2}


def test_write_a_backbone(repository, user_folder):
    names = run_python(repository / "docs" / "write_a_backbone.md")
    assert names["logits"]["depth"].shape == (1, 1, 24, 32)
    state = names["model"].state_dict()
    assert all(torch.equal(value, state[name]) for name, value in names["again"].state_dict().items())


@pytest.mark.slow  # torch.export takes its time
def test_export(repository, user_folder):
    names = run_python(repository / "docs" / "export.md")
    pixel_values = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        expected = names["model"](pixel_values).logits
        found = names["program"].module()(pixel_values)
    assert all(torch.allclose(found[task], logits, atol=1e-5) for task, logits in expected.items())


# A training of seconds in place of minutes, or of days
BRIEF = " input_size=[32,64] network_size=null max_steps=2 batch_size=2 num_snapshot_images=1"
TINY = (
    ' pretrained_backbone=false num_workers=0 "model={backbone_config: {model_name: test_convnext, out_indices: [1, 2, 3, 4]},'
    " hidden_size: 16, mlp_ratio: 2.0, num_attention_heads: 2, decoder_hidden_sizes: [16, 16, 8, 8],"
    ' decoder_num_attention_heads: [2, 2, 1, 1], num_bases: 4, num_em_iterations: 2}"'
)


def run_commands(path, change=lambda command: command):
    """Runs the commands of a page, top to bottom, as somebody who follows it types them."""
    for command in "".join(code_blocks(path, "bash")).splitlines():
        command = change(command)
        environment = {**os.environ, "PATH": os.pathsep.join([f"{sys.prefix}/bin", os.environ["PATH"]])}
        result = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{command}\n{result.stderr[-2000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("page", ["export", "use_a_model"])
def test_commands(repository, user_folder, page):
    """The model was not trained on the prepared dataset, so it is named."""
    run_commands(
        repository / "docs" / f"{page}.md",
        lambda command: command.replace("--evaluate", "--evaluate data_dir=nyud_v2"),
    )


@pytest.mark.slow
def test_commands_of_fine_tuning(repository, user_folder):
    run_python(repository / "docs" / "fine_tune_on_your_folder.md")
    run_commands(
        repository / "docs" / "fine_tune_on_your_folder.md",
        lambda command: command + BRIEF if "transformers-sem train" in command else command,
    )
    assert (user_folder / "predictions" / "json" / "0019.json").is_file()


@pytest.mark.slow
def test_commands_of_reproducing(repository, user_folder):
    """All but the ablations, which have tests of their own."""
    run_commands(
        repository / "docs" / "reproduce_the_paper.md",
        lambda command: (
            "true" if "sem ablation" in command else command + BRIEF + TINY if "sem train" in command else command
        ),
    )
    assert (user_folder / "runs" / "vit_large_nyud_v2" / "evaluation.json").is_file()


def test_links_lead_somewhere(repository):
    for path in [repository / "README.md", *sorted((repository / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}, which is not there"

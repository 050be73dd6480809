"""The entry point: its table of commands, their help, the wrappers in scripts/ and the recipes of the package."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

import transformers_sem
from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.cli.arguments import RECIPES_DIR, find_recipe
from transformers_sem.cli.main import COMMANDS, main

from ..conftest import REPOSITORY
from ..tiny import tiny_config
from .commands import SETTINGS, TASKS, error_line, run, save_image


SCRIPTS = REPOSITORY / "scripts"


def test_every_command_has_a_help():
    for command in COMMANDS:
        result = run(command, "--help")
        assert (result.code, result.errors) == (0, ""), command
        assert result.output.startswith(f"usage: transformers-sem {command} "), command
        assert f"transformers-sem {command}" in result.output.split("\n\n", 1)[1], command


def test_the_help_lists_all_commands():
    result = run("--help")
    assert result.code == 0
    assert all(f"\n  {command} " in result.output for command in COMMANDS)
    assert run("--version").output == f"transformers-sem {transformers_sem.__version__}\n"


@pytest.mark.parametrize(("arguments", "words"), [(["tran"], "invalid choice: 'tran'"), ([], "required: COMMAND")])
def test_an_unknown_command_ends_with_the_usage(arguments, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    errors = capsys.readouterr().err
    assert errors.startswith("usage: transformers-sem") and words in errors


@pytest.mark.parametrize("command", ["predict", "evaluate", "export"])
def test_foreign_weights_end_a_command_in_one_line(command, tmp_path):
    model = tmp_path / "model"
    SEMForMultiTaskDensePrediction(tiny_config(task_num_labels={"depth": 1})).save_pretrained(model)
    SEMImageProcessor().save_pretrained(model)
    save_file({"something": torch.ones(3)}, model / "model.safetensors", metadata={"format": "pt"})
    photo, output = save_image(tmp_path / "photo.png", np.zeros((40, 50, 3), np.uint8)), tmp_path / "output"
    arguments = {
        "predict": ["--input", photo, "--output", output],
        "evaluate": ["--output", tmp_path / "output.json", "dataset=scenes"],
        "export": ["--output", output],
    }[command]
    message = error_line(run(command, "--model", model, *arguments))
    assert "do not match its config.json" in message and str(model) in message
    assert not output.with_suffix(".json").exists() and not [*output.rglob("[!.]*")]


@pytest.mark.slow
def test_the_package_runs_as_a_module():
    process = subprocess.run([sys.executable, "-m", "transformers_sem"], capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert "required: COMMAND" in process.stderr


def test_every_command_has_a_wrapper_that_hides_no_library():
    scripts = {path.stem: path.read_text() for path in SCRIPTS.glob("*.py")}
    for module, _ in COMMANDS.values():
        wrappers = [text for text in scripts.values() if f"from transformers_sem.cli.{module} import main\n" in text]
        assert wrappers, module
    for name, text in scripts.items():
        assert len(text.splitlines()) <= 12, name
        compile(text, name, "exec")
    assert not {*scripts, "accelerate"} & (sys.stdlib_module_names | {"datasets", "evaluate", "torch", "transformers"})


def test_recipes_are_found_by_name_and_by_path():
    names = {path.stem for path in RECIPES_DIR.glob("*.yaml")}
    assert {"quickstart", "vit_large_nyud_v2", "ablation_small"} < names
    assert find_recipe("quickstart") == RECIPES_DIR / "quickstart.yaml"
    path = SCRIPTS / "configs" / "quickstart.yaml"
    assert find_recipe(path) == path and path.samefile(RECIPES_DIR / "quickstart.yaml")
    with pytest.raises(FileNotFoundError) as missing:
        find_recipe("quickstrat")
    assert "'quickstrat'" in str(missing.value) and all(name in str(missing.value) for name in names)
    for config in RECIPES_DIR.glob("*.yaml"):
        assert yaml.safe_load(config.read_text())["output_dir"].startswith("runs/"), config


def test_a_missing_configuration_is_named():
    assert "absent.yaml" in error_line(run("train", "--config", "absent.yaml"))


def test_a_missing_extra_is_named_in_one_line(monkeypatch, tmp_path):
    for command, package, extra in (("export", "onnxscript", "onnx"), ("demo", "gradio", "demo")):
        monkeypatch.setitem(sys.modules, package, None)
        message = error_line(run(command, "--model", tmp_path))
        assert package in message and f"pip install 'transformers-sem[{extra}]'" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    "launch",
    [
        ["scripts/train.py"],
        ["-m", "transformers_sem", "train"],
        ["-m", "accelerate.commands.launch", "--cpu", "scripts/train.py"],
        ["-m", "accelerate.commands.launch", "--cpu", "-m", "transformers_sem.cli.train"],
        ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "transformers_sem.cli.train"],
    ],
    ids=" ".join,
)
def test_every_way_to_start_a_training(launch, tmp_path):
    """In processes of their own: sys.path is what is tested."""
    arguments = ["--config", "quickstart", *SETTINGS, "max_steps=1", f"output_dir={tmp_path / 'run'}"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src"), "HF_HUB_OFFLINE": "1"}
    environment["HF_DATASETS_CACHE"] = str(tmp_path / "cache")
    command = [sys.executable, *launch, *arguments]
    result = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    model = transformers_sem.SEMForMultiTaskDensePrediction.from_pretrained(tmp_path / "run")
    assert model.config.tasks == TASKS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluate_model", "predict", "train"])
def test_a_script_in_a_process_of_its_own(name):
    """The folder of the script is the first of sys.path, and no file there hides the library `evaluate`."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    command = [sys.executable, SCRIPTS / f"{name}.py", "--help"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: transformers-sem ")

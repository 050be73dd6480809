"""The command `ablation`: its command line, and tables and figures of tiny models."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from transformers_sem.ablation import studies
from transformers_sem.ablation.studies import build_study
from transformers_sem.ablation.tables import TABLE_3
from transformers_sem.cli import ablation as command
from transformers_sem.cli.arguments import RECIPES_DIR, find_recipe
from transformers_sem.utils.extras import MissingExtraError

from ..conftest import REPOSITORY
from .commands import SETTINGS as TINY_SETTINGS


QUICKSTART = find_recipe("quickstart")
SETTINGS = [*TINY_SETTINGS, "tasks=[semseg, depth]", "model.task_loss_weights={semseg: 3, depth: 5}", "max_steps=2"]


def parse(*arguments):
    return command.parse_arguments([str(argument) for argument in arguments])


def test_settings_may_follow_any_option(tmp_path):
    written = ["--config", QUICKSTART, "a=1", "--output", tmp_path, "b=2", "--seeds", "0", "3", "c=4"]
    arguments = parse("table2", *written, "--models", "sem", "d=5")
    assert sorted(arguments.overrides) == ["a=1", "b=2", "c=4", "d=5"]
    assert arguments.models == ["sem"]
    assert (arguments.config, arguments.seeds) == ([str(QUICKSTART)], ["0", "3"])


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (["table2", "--seeds", "one"], "--seeds are whole numbers from 0; got one"),
        (["table2", "--seeds", "-1"], "seeds"),
        (["fig5", "--config", "a", "--output", "b", "--models", "mtl"], "fig5 compares SEM and the baseline"),
        (["fig6", "--config", "a.yaml", "b.yaml"], "one file for fig6"),
        (["table4"], "table4"),
        (["render"], "render needs --page"),
        (["table2", "--jobs", "0"], "--jobs is 1 or more; got 0"),
        (["table2", "--models", "segformer"], "segformer"),
    ],
    ids=str,
)
def test_a_command_line_that_makes_no_sense_is_explained(tmp_path, capsys, written, words):
    with pytest.raises(SystemExit):
        parse(written[0], "--output", tmp_path, "--config", QUICKSTART, *written[1:])
    assert words in capsys.readouterr().err


def test_every_encoder_of_table_3_has_a_folder(tmp_path):
    configs = [RECIPES_DIR / f"{name}_nyud_v2.yaml" for name in ("swin_tiny", "vit_base")]
    study = build_study("table3", configs, tmp_path, [0], ["data_dir=somewhere"])
    ablations = study.ablations
    assert [ablation.output for ablation in ablations] == [
        tmp_path / "swin_tiny_nyud_v2",
        tmp_path / "vit_base_nyud_v2",
    ]
    assert [run.folder.name for run in ablations[1].plan(TABLE_3.values())] == ["mtl", "sem"]
    for ablation in ablations:
        ablation.claim()
        ablation.claim()  # the same command again


def test_models_that_a_study_lacks_are_named(tmp_path):
    study = build_study("table3", [QUICKSTART], tmp_path, [0], [], models=("baseline",))
    with pytest.raises(ValueError, match=r"models of table3 are \['mtl', 'sem'\]; got \['baseline'\]"):
        study.run()


def test_figure_7_says_at_once_that_scikit_learn_is_missing(monkeypatch, tmp_path):
    study = build_study("fig7", [QUICKSTART], tmp_path / "ablation", [0], [])
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr(studies, "launch_trainings", lambda *_, **__: pytest.fail("a training starts"))
    with pytest.raises(MissingExtraError, match=r"sklearn.* pip install 'transformers-sem\[train\]'"):
        study.run()


def ablate(what, folder, *arguments):
    command = [
        sys.executable,
        "-m",
        "transformers_sem",
        "ablation",
        what,
        "--config",
        "quickstart",
        "--output",
        folder,
        *SETTINGS,
        *arguments,
    ]
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY / "src"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder.parent / "datasets"),
    }
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)


@pytest.mark.slow
def test_table_2_and_the_figures_that_its_models_give(tmp_path):
    pytest.importorskip("sklearn", reason="the extra `train` is not installed")
    folder = tmp_path / "ablation"
    result = ablate("table2", folder, "--seeds", "0")
    assert result.returncode == 0, result.stderr
    report = json.loads((folder / "table2.json").read_text())
    assert (report["trainings"], report["finished"]) == (7, 7)
    assert [row["model"] for row in report["rows"]] == ["stl", "mtl", "baseline", "intra", "inter", "sem"]
    assert all(set(row["scores"]) == {"semseg/miou", "depth/rmse"} for row in report["rows"])
    assert all(row["gain"]["values"].keys() == {"0"} for row in report["rows"][1:])
    assert (folder / "table2.md").read_text(encoding="utf-8").splitlines()[2] in result.stdout

    trained = {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")}
    assert ablate("table2", folder, "--seeds", "0").returncode == 0
    for what in ("fig5", "fig7"):
        result = ablate(what, folder)
        assert result.returncode == 0, result.stderr
        with Image.open(folder / f"{what}.png") as picture:
            assert picture.width > 500
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")} == trained


@pytest.mark.slow
def test_a_training_that_fails_ends_the_ablation(tmp_path):
    result = ablate("table2", tmp_path / "ablation", "model.backbone_config.model_name=swim_tiny")
    assert result.returncode == 1
    assert "swim_tiny" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: training ")
    assert "STL" in (tmp_path / "ablation" / "table2.md").read_text(encoding="utf-8")

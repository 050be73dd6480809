import csv
import json
import shutil
import statistics
from dataclasses import replace

import pytest
import yaml

from transformers_sem import SEMForMultiTaskDensePrediction
from transformers_sem.ablation import results
from transformers_sem.ablation.results import count_cost, load_checked_row
from transformers_sem.ablation.tables import (
    TABLE_2,
    Ablation,
    describe_model,
    describe_runs,
    save_table,
    summarize,
    to_markdown,
)
from transformers_sem.cli.arguments import find_recipe
from transformers_sem.training.config import TrainingConfig, claim_output_dir

from ..conftest import REPOSITORY
from ..tiny import tiny_config


SETTINGS = {
    "dataset": "scenes",
    "tasks": ["semseg", "depth"],
    "input_size": [32, 64],
    "model": {"task_loss_weights": {"semseg": 2, "depth": 3}, "num_bases": 4},
}
STL, MTL, SEM = {"semseg": 0.5, "depth": 0.8}, {"semseg": 0.45, "depth": 0.84}, {"semseg": 0.6, "depth": 0.6}
# by hand: semseg (0.45 - 0.5) / 0.5 = -10 %, depth (0.84 - 0.8) / 0.8 = 5 % worse; 20 % and 25 % better
GAINS = {"mtl": -7.5, "sem": 22.5}


@pytest.fixture(scope="module", autouse=True)
def costs_counted_once():
    """Counts the cost of equal configurations once: it takes a second each time."""
    counted = {}

    def count_once(folder):
        config = (folder / "config.json").read_text()
        if config not in counted:
            counted[config] = count_cost(folder)
        return counted[config]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "count_cost", count_once)
        yield


@pytest.fixture
def ablation(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    made = Ablation(
        config_path=path,
        overrides=("max_steps=7",),
        output=tmp_path / "out",
        results=tmp_path / "results",
        seeds=(0, 1),
    )
    made.claim()
    return made


def config_of(ablation, run):
    return TrainingConfig.load(ablation.config_path, run.overrides)


def finish(ablation, run, scores, num_images=5, hardware="CPU"):
    """Leaves what a finished training leaves, as far as tables read it, and its row."""
    config = config_of(ablation, run)
    claim_output_dir(config)
    widths = {task: {"semseg": 12, "depth": 1}[task] for task in config.tasks}
    switches = {key: value for key, value in config.model.items() if key.startswith("use_")}
    tiny_config(task_num_labels=widths, **switches).save_pretrained(run.folder)
    names = {"semseg": "semseg/miou", "depth": "depth/rmse"}
    found = {names[task]: scores[task] for task in config.tasks} | {f"{config.tasks[0]}/other": 0.1}
    report = {
        "scores": found,
        "constant_scores": found,
        "num_images": num_images,
        "environment": {"commit": "abc", "hardware": hardware},
        "training": {"settings": config.describe(), "command": f"train output_dir={run.folder}"},
        "command": f"train output_dir={run.folder}",
    }
    (run.folder / "evaluation.json").write_text(json.dumps(report))
    (run.folder / "history.jsonl").write_text(json.dumps({"step": 7, "loss": 1.5, "losses": {}}) + "\n")
    run.finish()


def finish_all(ablation, model, scores):
    for seed, factor in zip(ablation.seeds, (1.0, 0.9), strict=False):
        for run in ablation.runs_of(model, seed):
            finish(ablation, run, {task: value * factor for task, value in scores.items()})


# ----------------------------------------------------------------------------------------------------------------------
# Which trainings


def test_a_plan_goes_seed_by_seed_and_has_a_single_task_model_for_each_task(ablation):
    plan = ablation.plan(TABLE_2.values())
    names = ["stl_semseg", "stl_depth", "mtl", "baseline", "intra", "inter", "sem"]
    assert [run.folder for run in plan] == [
        ablation.output / f"seed{seed}" / name for seed in (0, 1) for name in names
    ]


def test_trainings_differ_in_model_task_and_seed_only(ablation):
    expected = {
        "stl_semseg": {"use_decoder": False},
        "stl_depth": {"use_decoder": False},
        "mtl": {"use_decoder": False},
        "baseline": {"use_intra_task": False, "inter_task_stages": 0},
        "intra": {"inter_task_stages": 0},
        "inter": {"use_intra_task": False},
        "sem": {},
    }
    for run in ablation.plan(TABLE_2.values()):
        config = config_of(ablation, run)
        assert config.model == SETTINGS["model"] | expected[run.folder.name]
        assert config.tasks == ([run.task] if run.task else ["semseg", "depth"])
        assert (config.seed, config.output_dir) == (run.seed, str(run.folder))
        assert (config.max_steps, config.input_size) == (7, [32, 64])


def test_models_shared_by_tables_are_trained_once(ablation):
    assert [run.model for run in ablation.plan(["sem", "mtl", "sem"])] == ["sem", "mtl"] * 2


def test_a_row_outlives_the_folder_of_its_training(ablation):
    run = ablation.run("sem", 0)
    assert not run.is_finished
    finish(ablation, run, SEM)
    shutil.rmtree(ablation.output)
    assert run.is_finished and not run.is_trained
    row = run.load_row()
    assert row["history"] == [{"step": 7, "loss": 1.5, "losses": {}}]
    described = describe_model(ablation, "SEM", "sem")
    assert described["scores"]["semseg/miou"]["values"] == {0: SEM["semseg"]}
    assert described["parameters_millions"] == row["parameters_millions"] > 0
    assert [path.name for path in ablation.results.rglob("*.*")] == ["sem.json"]
    assert str(ablation.output) not in run.row_path.read_text()


@pytest.mark.parametrize("changed", ["max_steps=8", "model.num_bases=8", "input_size=[64, 64]"])
def test_a_row_of_other_settings_is_refused(ablation, changed):
    run = ablation.run("sem", 0)
    finish(ablation, run, SEM)
    field = changed.split("=")[0].split(".")[0]
    with pytest.raises(ValueError, match=rf"{run.row_path}.*{field}"):
        load_checked_row(run.row_path, TrainingConfig.load(run.config_path, [*run.overrides, changed]))


@pytest.mark.parametrize("changed", ["num_workers=7", "data_dir=elsewhere", "keep_in_memory=true"])
def test_settings_that_change_no_weights_may_differ(ablation, changed):
    run = ablation.run("sem", 0)
    finish(ablation, run, SEM)
    assert load_checked_row(run.row_path, TrainingConfig.load(run.config_path, [*run.overrides, changed]))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"scores": {}}'])
def test_a_file_that_is_no_row_is_named(ablation, text):
    run = ablation.run("sem", 0)
    run.row_path.parent.mkdir(parents=True)
    run.row_path.write_text(text)
    with pytest.raises(ValueError, match=rf"{run.row_path} is not.*Remove it"):
        run.load_row()


def test_rows_of_several_machines_are_told_apart(ablation):
    finish(ablation, ablation.run("sem", 0), SEM)
    assert describe_runs([ablation], ["sem"])["origins"] == []
    finish(ablation, ablation.run("sem", 1), SEM, hardware="GPU")
    assert describe_runs([ablation], ["sem"])["origins"] == ["abc on CPU: seed0/sem", "abc on GPU: seed1/sem"]


@pytest.mark.parametrize("changed", ["max_steps=8", "model.num_bases=8", "num_evaluation_images=3"])
def test_other_settings_do_not_resume_an_ablation(ablation, changed):
    other = replace(ablation, overrides=("max_steps=7", changed), seeds=(0,))
    with pytest.raises(ValueError, match=changed.split("=")[0].split(".")[0]):
        other.claim()


def test_more_seeds_resume_an_ablation(ablation):
    replace(ablation, seeds=(0, 1, 2)).claim()


@pytest.mark.parametrize(
    ("seeds", "override", "words"),
    [((0, 0), "max_steps=7", "distinct"), ((0,), "seed=3", "--seeds"), ((0,), "output_dir=x", "--output")],
)
def test_contradictions_are_refused(ablation, seeds, override, words):
    with pytest.raises(ValueError, match=words):
        replace(ablation, overrides=(override,), seeds=seeds)


# ----------------------------------------------------------------------------------------------------------------------
# The table


def test_summary_over_seeds():
    assert summarize({0: 1.0, 1: 4.0}) == {"mean": 2.5, "std": pytest.approx(2.1213203), "values": {0: 1.0, 1: 4.0}}
    assert summarize({3: 1.0}) == {"mean": 1.0, "std": None, "values": {3: 1.0}}
    assert summarize({}) is None


def test_gains_by_hand(ablation):
    finish_all(ablation, "stl", STL)
    finish_all(ablation, "mtl", MTL)
    single, multi, missing = (describe_model(ablation, model, model) for model in ("stl", "mtl", "sem"))
    # the second seed scales both sides alike
    assert multi["gain"]["values"] == {0: pytest.approx(GAINS["mtl"]), 1: pytest.approx(GAINS["mtl"])}
    assert multi["gain"]["std"] == pytest.approx(0)
    assert single["gain"] is None and missing["gain"] is None and missing["scores"] == {}
    assert multi["scores"]["depth/rmse"]["values"] == {0: 0.84, 1: pytest.approx(0.756)}
    assert set(multi["scores"]) == {"semseg/miou", "depth/rmse"}


def test_a_gain_is_over_the_single_task_models_of_its_own_seed(ablation):
    for run, scores in zip(ablation.runs_of("stl", 0) + ablation.runs_of("stl", 1), [STL, STL, MTL, MTL], strict=True):
        finish(ablation, run, scores)
    finish(ablation, ablation.run("sem", 0), SEM)
    finish(ablation, ablation.run("sem", 1), MTL)
    gain = describe_model(ablation, "SEM", "sem")["gain"]
    assert gain["values"] == {0: pytest.approx(GAINS["sem"]), 1: pytest.approx(0)}
    assert gain["mean"] == pytest.approx(GAINS["sem"] / 2)


def test_a_single_task_model_that_scores_nothing_gives_no_gain(ablation):
    finish_all(ablation, "stl", STL | {"semseg": 0.0})
    finish_all(ablation, "sem", SEM)
    assert describe_model(ablation, "SEM", "sem")["gain"] is None


def test_half_of_the_single_task_models_give_no_gain(ablation):
    finish(ablation, ablation.runs_of("stl", 0)[0], STL)
    finish(ablation, ablation.run("sem", 0), SEM)
    assert describe_model(ablation, "SEM", "sem")["gain"] is None
    assert describe_model(ablation, "STL", "stl")["parameters_millions"] is None


def test_costs_are_those_of_the_model_and_of_all_single_task_models_together(ablation):
    finish_all(ablation, "stl", STL)
    finish_all(ablation, "mtl", MTL)
    single, multi = (describe_model(ablation, model, model) for model in ("stl", "mtl"))
    widths = [{"semseg": 12}, {"depth": 1}, {"semseg": 12, "depth": 1}]
    counts = [
        SEMForMultiTaskDensePrediction(tiny_config(task_num_labels=width, use_decoder=False)).num_parameters() / 1e6
        for width in widths
    ]
    assert single["parameters_millions"] == pytest.approx(counts[0] + counts[1])
    assert multi["parameters_millions"] == pytest.approx(counts[2])
    assert multi["multiply_accumulates_billions"] < single["multiply_accumulates_billions"]


def test_markdown_csv_and_json_agree(ablation):
    finish_all(ablation, "stl", STL)
    finish_all(ablation, "mtl", MTL)
    finish(ablation, ablation.run("sem", 0), SEM)
    names = {"STL": "stl", "MTL": "mtl", "SEM": "sem", "+ intra": "intra"}
    rows = [describe_model(ablation, name, model) for name, model in names.items()]
    save_table(ablation.output / "table", "A title", rows, describe_runs([ablation], names.values()))

    report = json.loads((ablation.output / "table.json").read_text())
    lines = [
        line.strip("|").split("|")
        for line in (ablation.output / "table.md").read_text(encoding="utf-8").splitlines()
        if "|" in line
    ]
    header, _, *markdown = [[cell.strip() for cell in line] for line in lines]
    assert header == ["", "semseg/miou ↑", "depth/rmse ↓", "Δm, % ↑", "M parameters", "GMAC"]
    with open(ablation.output / "table.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in report["rows"]] == [row["name"] for row in table] == [row[0] for row in markdown]
    for row, cells, line in zip(report["rows"], table, markdown, strict=True):
        summaries = {**row["scores"], "gain": row["gain"]}
        for key, shown, digits in zip(("semseg/miou", "depth/rmse", "gain"), line[1:], (4, 4, 2), strict=False):
            summary = summaries.get(key) or {"mean": None, "std": None}
            values = [summary[name] for name in ("mean", "std")]
            assert [cells[f"{key} {name}"] for name in ("mean", "std")] == [
                "" if v is None else str(v) for v in values
            ]
            assert shown == (" ± ".join(f"{value:.{digits}f}" for value in values if value is not None) or "–")
    assert report["seeds"] == [0, 1] and report["finished"] == 7 and report["trainings"] == 10
    assert report["rows"][1]["scores"]["semseg/miou"]["std"] == pytest.approx(statistics.stdev([0.45, 0.405]))
    assert {"command", "commits", "hardware", "environment", "evaluated_images"} <= set(report)


def test_an_empty_table_is_a_table(ablation):
    rows = [describe_model(ablation, "SEM", "sem")]
    text = to_markdown("Nothing yet", rows, describe_runs([ablation], ["sem"]))
    assert "| SEM |" in text.splitlines()


def test_scores_on_different_images_are_not_compared(ablation):
    finish(ablation, ablation.run("sem", 0), SEM, num_images=5)
    finish(ablation, ablation.run("mtl", 0), MTL, num_images=6)
    with pytest.raises(ValueError, match=r"\[5, 6\].*evaluation.json"):
        describe_runs([ablation], ["sem", "mtl"])


def test_the_published_command_takes_the_published_rows():
    rows = REPOSITORY / "results" / "nyud_v2_quarter"
    ablation = Ablation(
        config_path=find_recipe("efficientnet_lite0_nyud_v2"),
        overrides=("data_dir=nyud_v2_quarter",),
        output=rows,
        results=rows,
        seeds=(0, 1, 2),
    )
    finished = [run for run in ablation.plan(TABLE_2.values()) if run.is_finished]
    assert len(finished) == len([*rows.glob("seed*/*.json")]) > 16
    for run in finished:
        run.load_row()

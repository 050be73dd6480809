"""Cards hold the facts of config.json and evaluation.json, and no others."""

import json
import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from transformers_sem import TASKS, register_task
from transformers_sem.evaluation.metrics import METRICS
from transformers_sem.hub.card import TEMPLATE, card_of_folder, make_card, read_evaluation

from ..tiny import tiny_config


TASKS_OF_CARD = ("semseg", "depth", "normal", "boundary")
ENVIRONMENT = {
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "transformers-sem": "0.1.0",
    "torch": "2.9.0",
    "hardware": "CPU (x86_64, 2 threads)",
}
EVALUATION = {
    "scores": {f"{task}/{METRICS[task].main}": 0.5 + index / 16 for index, task in enumerate(TASKS_OF_CARD)},
    "constant_scores": {f"{task}/{METRICS[task].main}": 0.25 + index / 16 for index, task in enumerate(TASKS_OF_CARD)},
    "dataset": "scenes",
    "data": {"title": "drawn rooms", "terms": "Nobody's.", "license": "apache-2.0", "limits": "It knows no photos."},
    "num_images": 7,
    "num_scored_images": dict.fromkeys(TASKS_OF_CARD, 7),
    "num_parameters": 5_200_000,
    "training": {
        "settings": {
            "max_steps": 800,
            "batch_size": 8,
            "learning_rate": 0.002,
            "seed": 3,
            "input_size": [96, 128],
            "network_size": None,
            "pretrained_backbone": False,
            "pretrained_model": None,
        },
        "command": "transformers-sem train --config quickstart",
        "environment": ENVIRONMENT,
    },
    "command": "transformers-sem evaluate --model runs/quickstart",
    "environment": ENVIRONMENT,
}


def table(text, title):
    """The cells of the table whose header begins with a title."""
    lines = text[text.index(f"| {title} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.fixture
def folder(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    return tmp_path


@pytest.fixture
def card(folder):
    return card_of_folder(folder, "tiny", "me/tiny")


def test_a_repository_with_code_is_loaded_by_transformers():
    config = tiny_config()
    config.auto_map = {"AutoModel": "modeling_sem.SEMModel"}
    assert make_card(config, "tiny", model_id="me/tiny").data.library_name == "transformers"


def test_the_hub_reads_the_metadata(card):
    data = ModelCard(str(card)).data  # as the Hub's client parses it
    assert (data.library_name, data.pipeline_tag) == ("transformers-sem", "image-segmentation")
    assert (data.license, data.datasets, data.model_name) == ("apache-2.0", ["scenes"], "tiny")
    assert data.metrics == ["miou", "rmse", "mean_error", "odsf"]
    assert {"depth-estimation", "image-segmentation", "semseg"} < set(data.tags)
    metadata = yaml.safe_load(str(card).split("---\n")[1])
    _, results = model_index_to_eval_results(metadata["model-index"])
    assert {f"{result.dataset_config}/{result.metric_type}": result.metric_value for result in results} == EVALUATION[
        "scores"
    ]
    assert len(metadata["model-index"][0]["results"]) == len(TASKS_OF_CARD)  # a group for each task


def test_the_table_has_the_scores(card):
    rows = table(card.text, "task | score")
    assert [row[0] for row in rows] == [TASKS[task].title for task in TASKS_OF_CARD]
    assert [float(row[2]) for row in rows] == pytest.approx([*EVALUATION["scores"].values()], abs=6e-4)
    assert [float(row[3]) for row in rows] == pytest.approx([*EVALUATION["constant_scores"].values()], abs=6e-4)
    assert [row[1][-1] for row in rows] == ["↑", "↓", "↓", "↑"]


def test_a_card_names_commands_commit_and_hardware(card):
    for fact in (
        ENVIRONMENT["commit"],
        ENVIRONMENT["hardware"],
        EVALUATION["command"],
        EVALUATION["training"]["command"],
        "seed: 3",
        "7 validation images of drawn rooms",
        "Nobody's.",
        "It knows no photos.",
        "5.2 M parameters",
    ):
        assert fact in card.text
    assert not re.search(r"[{}]{2}|None|Undefined", card.text.split("```bibtex")[0])


def test_four_lines_of_use(card):
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    lines = [line for line in code.splitlines() if line]
    assert len(lines) == 4
    compile(code, "card", "exec")
    assert 'pipeline("multi-task-dense-prediction", model="me/tiny")' in code


def test_a_picture_is_shown_where_there_is_one(folder):
    assert "![" not in str(card_of_folder(folder, "tiny", "me/tiny"))
    (folder / "predictions.png").write_bytes(b"a picture")
    assert "](predictions.png)" in str(card_of_folder(folder, "tiny", "me/tiny"))


def test_without_an_evaluation_there_are_no_scores(folder):
    (folder / "evaluation.json").unlink()
    card = card_of_folder(folder, "tiny", "me/tiny")
    assert card.data.eval_results is None and card.data.license is None
    assert "No scores of these weights are recorded" in card.text and "is not recorded" in card.text


def test_a_run_on_several_datasets_has_a_table_for_each(folder):
    first, second = (json.loads(json.dumps(EVALUATION)) for _ in range(2))
    second["data"] |= {"title": "streets", "terms": "A city's.", "license": "other", "limits": "It knows no rooms."}
    for key in ("scores", "constant_scores", "num_scored_images"):
        second[key] = {name: value / 2 for name, value in second[key].items() if "depth" in name}
    (folder / "evaluation.json").unlink()
    for name, evaluation in (("scenes_1", first), ("scenes_2", second)):  # one loader reads both
        (folder / f"evaluation_{name}.json").write_text(json.dumps(evaluation))
    (folder / "predictions_scenes_2.png").write_bytes(b"a picture")
    card = card_of_folder(folder, "tiny", "me/tiny")
    rooms, streets = card.text.split("### streets")
    assert "### drawn rooms" in rooms and len(table(rooms, "task | score")) == len(TASKS_OF_CARD)
    ((title, _, score, constant, _),) = table(streets, "task | score")
    assert (title, float(score), float(constant)) == (TASKS["depth"].title, 0.281, 0.156)
    for fact in (
        "](predictions_scenes_2.png)",
        "images of streets",
        "data: drawn rooms + streets",
        "rooms: Nobody's.",
    ):
        assert fact in card.text
    assert "Data of streets: A city's." in card.text and "It knows no photos. It knows no rooms." in card.text
    data = ModelCard(str(card)).data
    assert (data.datasets, data.license) == (["scenes_1", "scenes_2"], "other")
    assert len(data.eval_results) == len(first["scores"]) + 1
    assert {result.metric_value for result in data.eval_results if result.dataset_name == "streets"} == {0.28125}


@pytest.mark.parametrize(
    ("data_license", "settings", "license", "text"),
    [
        ("apache-2.0", {}, "apache-2.0", "Code and weights: Apache-2.0."),
        ("other", {}, "other", "Code: Apache-2.0."),
        (
            "apache-2.0",
            {"pretrained_backbone": True},
            "apache-2.0",
            "weights `test_convnext`, whose license (apache-2.0) applies too",
        ),
        (
            "apache-2.0",
            {"pretrained_backbone": "mine.safetensors"},
            "other",
            "weights `test_convnext`, whose license applies too",
        ),
        ("apache-2.0", {"pretrained_model": "you/base"}, "other", "derive from those of `you/base`"),
        ("apache-2.0", None, "other", "Code: Apache-2.0."),  # nobody knows
    ],
)
def test_weights_are_free_only_if_data_and_start_are(data_license, settings, license, text):
    evaluation = json.loads(json.dumps(EVALUATION))
    evaluation["data"]["license"] = data_license
    if settings is None:
        evaluation["training"] = None
    else:
        evaluation["training"]["settings"] |= settings
    card = make_card(tiny_config(), "tiny", model_id="me/tiny", reports=[(evaluation, None)])
    assert card.data.license == license
    assert text in " ".join(card.text.split())


def test_scores_on_other_data_change_neither_training_data_nor_license(folder):
    evaluation = json.loads(json.dumps(EVALUATION))
    photos = {"title": "photos", "terms": "A museum's.", "license": "other", "limits": "It knows no rooms."}
    evaluation["training"]["data"] = {"scenes": evaluation["data"]}
    evaluation |= {"dataset": "folder", "data": photos}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    card = card_of_folder(folder, "tiny", "me/tiny")
    assert "7 validation images of photos" in card.text and "data: drawn rooms\n" in card.text
    assert "It knows no photos." in card.text and "Data: Nobody's." in card.text
    assert "It knows no rooms." not in card.text and "A museum's." not in card.text
    data = ModelCard(str(card)).data
    assert (data.datasets, data.license) == (["scenes"], "apache-2.0")
    assert {result.dataset_name for result in data.eval_results} == {"photos"}


def test_a_user_task_is_described(monkeypatch):
    monkeypatch.setattr("transformers_sem.tasks.TASKS", dict(TASKS))
    register_task(replace(TASKS["depth"], name="height", title="height", hub_task="other"))
    card = make_card(tiny_config(task_num_labels={"height": 1}), "tiny", model_id="me/tiny")
    assert table(card.text, "task | map") == [["height", "`height`", "metres >= 0"]]
    assert "other" not in card.data.tags


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[]", "lacks a report"), ('{"scores": {}}', r"lacks \['constant_scores', 'dataset'")],
)
def test_a_broken_evaluation_is_refused(tmp_path, text, message):
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(ValueError, match=message + ".*transformers-sem evaluate"):
        read_evaluation(tmp_path / "evaluation.json")


def test_there_is_one_template(repository):
    assert (repository / "model_cards" / "template.md").samefile(TEMPLATE)

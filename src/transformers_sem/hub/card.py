"""Model cards: what a model does, how well, and how it came about, from `config.json` and `evaluation.json` alone.

Nothing is typed by hand: whatever a card says of a model, one of the two files says. `model_card.md.jinja` is the text.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from transformers_sem.evaluation.metrics import METRICS

from ..configuration_sem import SEMConfig
from ..pipeline_sem import PIPELINE_TAG
from ..tasks import get_task


TEMPLATE = Path(__file__).with_name("model_card.md.jinja")  # code that comes with a checkpoint has none
PAPER_URL = (
    "https://openaccess.thecvf.com/content/CVPR2024/html/"
    "Huang_Going_Beyond_Multi-Task_Dense_Prediction_with_Synergy_Embedding_Models_CVPR_2024_paper.html"
)
PICTURE_NAME = "predictions.png"
EVALUATION_NAME = "evaluation.json"
EVALUATION_KEYS = (
    *("scores", "constant_scores", "dataset", "data", "num_images", "num_scored_images", "num_parameters"),
    *("command", "environment"),
)


def card_of_folder(folder: Path, name: str, model_id: str) -> ModelCard:
    """The card of a model that lies in a folder: `config.json`, and where they are there `evaluation.json` and a picture.

    Args:
        folder (`Path`): Where the files are.
        name (`str`): What to call the model.
        model_id (`str`): Where people load it from, a repository of the Hub or a folder.

    Raises:
        OSError: If there is no `config.json`.
        ValueError: If one of the files is not what it should be.
    """
    config = SEMConfig.from_pretrained(folder, local_files_only=True)
    path, picture = folder / EVALUATION_NAME, folder / PICTURE_NAME
    return make_card(
        config,
        name,
        model_id=model_id,
        evaluation=read_evaluation(path) if path.is_file() else None,
        picture=picture.name if picture.is_file() else None,
    )


def read_evaluation(path: Path) -> dict[str, Any]:
    """Reads what `scripts/evaluate.py` wrote.

    Raises:
        ValueError: If something else is in the file, or it lacks what a card says.
    """
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. Write it anew with scripts/evaluate.py.") from error
    missing = [key for key in EVALUATION_KEYS if key not in evaluation] if isinstance(evaluation, dict) else "a report"
    if missing:
        raise ValueError(f"{path} lacks {missing}, which a card needs. Write it anew with scripts/evaluate.py.")
    return evaluation


def make_card(
    config: SEMConfig,
    name: str,
    *,
    model_id: str | None = None,
    evaluation: dict[str, Any] | None = None,
    picture: str | None = None,
    data: dict[str, str] | None = None,
    training: dict[str, Any] | None = None,
    note: str = "",
) -> ModelCard:
    """Renders the card of a model, or of a configuration that nobody has trained.

    Args:
        config ([`SEMConfig`]): Of the model.
        name (`str`): What to call it.
        model_id (`str`, *optional*): Where people load it from; `None` where there are no weights.
        evaluation (`dict`, *optional*): As `scripts/evaluate.py` writes it, with data and training.
        picture (`str`, *optional*): Name of a picture of predictions beside the card.
        data (`dict`, *optional*): Title, terms, license and limits of the data, for a recipe.
        training (`dict`, *optional*): Settings and command of the training, for a recipe.
        note (`str`): A paragraph on the model.

    Returns:
        `huggingface_hub.ModelCard`: with metadata that the Hub understands.
    """
    if evaluation:
        data, training = evaluation["data"], evaluation.get("training")
    card_data = make_card_data(config, name, evaluation, data, training)
    return ModelCard.from_template(
        card_data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        name=name,
        model_id=model_id,
        tasks=[describe_task(config, task) for task in config.tasks],
        encoder=encoder_name(config),
        has_code=bool(getattr(config, "auto_map", None)),
        evaluation=evaluation,
        main_rows=main_rows(evaluation) if evaluation else [],
        all_rows=all_rows(evaluation) if evaluation else [],
        circumstances=circumstances,
        data=data,
        training=training,
        license=card_data.license,
        picture=picture,
        note=note,
        paper_url=PAPER_URL,
        pipeline_tag=PIPELINE_TAG,
    )


def make_card_data(
    config: SEMConfig,
    name: str,
    evaluation: dict[str, Any] | None,
    data: dict[str, str] | None,
    training: dict[str, Any] | None,
) -> ModelCardData:
    """The metadata of a card, for the Hub to search and to show."""
    hub_tasks = [get_task(task).hub_task for task in config.tasks if get_task(task).hub_task != "other"]
    license_name = "terms-of-the-data-and-of-the-encoder"
    settings = training["settings"] if training else {}
    starts_at_random = training and not settings["pretrained_model"] and not settings["pretrained_backbone"]
    is_free = starts_at_random and data and data["license"] == "apache-2.0"
    license_facts = {"license": "apache-2.0"} if is_free else {"license": "other", "license_name": license_name}
    return ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        tags=["sem", "multi-task-learning", "dense-prediction", *config.tasks, *hub_tasks],
        datasets=[evaluation["dataset"]] if evaluation else None,
        metrics=list(dict.fromkeys(row["metric"] for row in main_rows(evaluation))) if evaluation else None,
        eval_results=eval_results(evaluation) if evaluation else None,
        **(license_facts if data else {}),
    )


def eval_results(evaluation: dict[str, Any]) -> list[EvalResult]:
    """All scores, a group for each task, as the Hub shows them."""
    results = []
    for key, value in evaluation["scores"].items():
        task, score = key.split("/")
        spec, metric = get_task(task), METRICS[task]
        results.append(
            EvalResult(
                task_type=spec.hub_task,
                task_name=spec.title,
                dataset_type=evaluation["dataset"],
                dataset_name=evaluation["data"]["title"],
                dataset_config=task,  # results of one type of task on one data set would become one group
                dataset_split="validation",
                metric_type=score,
                metric_name=metric.title if score == metric.main else score,
                metric_value=value,
            )
        )
    return results


def main_rows(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the short table: each task by its main score."""
    rows = []
    for task, num_images in evaluation["num_scored_images"].items():
        metric = METRICS[task]
        rows.append(
            {
                "title": get_task(task).title,
                "metric": metric.main,
                "score": metric.title,
                "lower_is_better": metric.lower_is_better,
                "num_images": num_images,
                **values_of(evaluation, f"{task}/{metric.main}"),
            }
        )
    return rows


def all_rows(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the long table."""
    return [{"key": key, **values_of(evaluation, key)} for key in evaluation["scores"]]


def values_of(evaluation: dict[str, Any], key: str) -> dict[str, str]:
    """A score of the model and of the best constant predictor, for people."""
    values = {"model": evaluation["scores"][key], "constant": evaluation["constant_scores"][key]}
    return {owner: f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}" for owner, value in values.items()}


def describe_task(config: SEMConfig, task: str) -> dict[str, str]:
    """Name and title of a task, and what its map holds, with the classes that the checkpoint names."""
    spec = get_task(task)
    names = config.task_id2label.get(task, {})
    classes = f": {', '.join(names[index] for index in sorted(names))}" if names else ""
    return {"name": task, "title": spec.title, "holds": spec.kind.values + classes}


def encoder_name(config: SEMConfig) -> str:
    """Timm's name of the encoder, or the kind of transformers' backbone."""
    return getattr(config.backbone_config, "model_name", config.backbone_config.model_type)


def circumstances(environment: dict[str, str | None]) -> str:
    """Commit, version and hardware, in words."""
    commit = f"at commit `{environment['commit']}`" if environment["commit"] else "at an unrecorded commit"
    return f"transformers-sem {environment['transformers-sem']} {commit}, torch {environment['torch']}, on {environment['hardware']}"


__all__ = ["card_of_folder", "make_card"]

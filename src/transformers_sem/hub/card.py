"""Model cards, rendered from `config.json` and `evaluation.json` alone; `model_card.md.jinja` is their text.

A run on several datasets has a report for each, such as `evaluation_nyud_v2.json`, and its card a table for each.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image

from ..configuration_sem import SEMConfig, SEMTimmBackboneConfig
from ..evaluation.config import REPORT_NAME
from ..evaluation.metrics import find_metric
from ..pipeline_sem import PIPELINE_TAG
from ..tasks import get_task
from ..utils.files import atomic_write
from ..utils.loading import load_config
from ..visualization.panels import save_image


TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
PAPER_URL = (
    "https://openaccess.thecvf.com/content/CVPR2024/html/"
    "Huang_Going_Beyond_Multi-Task_Dense_Prediction_with_Synergy_Embedding_Models_CVPR_2024_paper.html"
)
CARD_NAME = "README.md"
SEVERAL_EVALUATIONS = "evaluation_*.json"
EVALUATION_KEYS = (
    *("scores", "constant_scores", "dataset", "data", "num_images", "num_scored_images", "num_parameters"),
    *("training", "command", "environment"),
)


# ----------------------------------------------------------------------------------------------------------------------
# Folders of cards


def render_cards(cards_dir: Path) -> dict[Path, str]:
    """Renders the card of every checkpoint in a folder, and writes none.

    Args:
        cards_dir (`Path`): Has for each checkpoint a folder with `config.json`, `evaluation.json` and optionally
            `predictions.png`, or these two for each of several datasets.

    Returns:
        `dict[Path, str]`: the text of each card by its path.
    """
    folders = sorted(folder for folder in cards_dir.glob("*") if find_reports(folder))
    return {
        folder / CARD_NAME: f"{card_of_folder(folder, folder.name, model_id=f'runs/{folder.name}')}\n"
        for folder in folders
    }


def add_checkpoint(run_dir: Path, cards_dir: Path) -> None:
    """Copies the files that a card needs from a finished run to `cards_dir`, to a folder with the name of the run.

    Raises:
        OSError: If the run is not finished.
        ValueError: If its evaluation is incomplete.
    """
    reports = find_reports(run_dir) or [run_dir / REPORT_NAME]
    for path in (run_dir / "config.json", *reports):
        if not path.is_file():
            raise FileNotFoundError(f"A card needs a finished run; {run_dir} has no {path.name}. Train it to the end.")
    for path in reports:
        read_evaluation(path)
    folder = cards_dir / run_dir.resolve().name
    folder.mkdir(parents=True, exist_ok=True)
    for path in (run_dir / "config.json", *reports):
        with atomic_write(folder / path.name) as unfinished:
            shutil.copyfile(path, unfinished)
    for path in map(predictions_path, reports):
        if path.is_file():
            with Image.open(path) as image:
                save_image(folder / path.name, image.convert("RGB").quantize())  # a fifth of the bytes, for git
    current = {path.name for path in (*reports, *map(predictions_path, reports)) if path.is_file()}
    for path in [*folder.glob("evaluation*.json"), *folder.glob("predictions*.png")]:
        if path.name not in current:  # of an earlier run of this name
            path.unlink()


def find_reports(folder: Path) -> list[Path]:
    """Returns the report of a model in a folder, or those of several datasets; none if it was not evaluated."""
    single = folder / REPORT_NAME
    return [single] if single.is_file() else sorted(folder.glob(SEVERAL_EVALUATIONS))


def predictions_path(report: Path) -> Path:
    """Returns the path of the predictions that are drawn beside a report."""
    return report.with_name(report.name.replace("evaluation", "predictions", 1)).with_suffix(".png")


# ----------------------------------------------------------------------------------------------------------------------
# One card


def card_of_folder(folder: Path, name: str, model_id: str) -> ModelCard:
    """Renders the card of a model in a folder with `config.json` and optionally reports and predictions.

    Args:
        folder (`Path`): Folder of the files.
        name (`str`): Name of the model.
        model_id (`str`): Where it is loaded from, a repository of the Hub or a folder.

    Raises:
        OSError: If there is no `config.json`.
        ValueError: If one of the files is not what it should be.
    """
    config = load_config(SEMConfig, folder, local_files_only=True)
    reports = find_reports(folder)
    images = [image.name if image.is_file() else None for image in map(predictions_path, reports)]
    evaluations = map(read_evaluation, reports)
    reports = list(zip(evaluations, images, strict=True))
    try:
        return make_card(config, name, model_id=model_id, reports=reports)
    except Exception as error:  # values that are no scores fail in many ways, some in the template
        raise ValueError(
            f"A report of {folder} is not one of `transformers-sem evaluate`: {type(error).__name__} {error}. Write it again."
        ) from error


def read_evaluation(path: Path) -> dict[str, Any]:
    """Reads the report that `transformers-sem evaluate` wrote.

    Raises:
        ValueError: If the file is not such a report, or lacks what a card needs.
    """
    remedy = "Write it again with `transformers-sem evaluate`"
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. {remedy}.") from error
    missing = [key for key in EVALUATION_KEYS if key not in evaluation] if isinstance(evaluation, dict) else "a report"
    if missing:
        raise ValueError(f"{path} lacks {missing}, which a card needs. {remedy}.")
    if path.name != REPORT_NAME:  # the names of files differ also where one loader read several datasets
        evaluation["dataset"] = path.stem.removeprefix("evaluation_")
    return evaluation


def make_card(
    config: SEMConfig,
    name: str,
    *,
    model_id: str,
    reports: Sequence[tuple[dict[str, Any], str | None]] = (),
) -> ModelCard:
    """Renders the card of a model.

    Args:
        config ([`SEMConfig`]): Configuration of the model.
        name (`str`): Name of the model.
        model_id (`str`): Where it is loaded from.
        reports (`Sequence[tuple[dict, str | None]]`): For each dataset, the report of `transformers-sem evaluate`, with data
            and training, and the name of an image of predictions beside the card.

    Returns:
        `huggingface_hub.ModelCard`: with the metadata that the Hub reads.
    """
    evaluations = [evaluation for evaluation, _ in reports]
    card_data = make_card_data(config, name, evaluations)
    training = evaluations[0]["training"] if evaluations else None
    return ModelCard.from_template(
        card_data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        name=name,
        model_id=model_id,
        tasks=[describe_task(config, task) for task in config.tasks],
        encoder=encoder_name(config),
        has_code=has_code(config),
        reports=reports,
        training_data=training_data(evaluations),
        main_rows=main_rows,
        all_rows=all_rows,
        describe_environment=describe_environment,
        training=training,
        license=card_data.license,
        start_license=start_license(config, training) if evaluations else None,
        paper_url=PAPER_URL,
        pipeline_tag=PIPELINE_TAG,
    )


def has_code(config: SEMConfig) -> bool:
    """Returns whether the repository of a model holds its code."""
    return bool(getattr(config, "auto_map", None))


def make_card_data(config: SEMConfig, name: str, evaluations: Sequence[dict[str, Any]]) -> ModelCardData:
    """Returns the metadata of a card."""
    hub_tasks = [get_task(task).hub_task for task in config.tasks if get_task(task).hub_task != "other"]
    facts = {}
    if evaluations:
        rows = [row for evaluation in evaluations for row in main_rows(evaluation)]
        facts = {
            "datasets": [*training_data(evaluations)],
            "metrics": list(dict.fromkeys(row["metric"] for row in rows)),
            "eval_results": [result for evaluation in evaluations for result in eval_results(evaluation)],
            **license_fields(config, evaluations),
        }
    return ModelCardData(
        model_name=name,
        # The Hub shows how to load a model with transformers, which takes the code in the repository or this package
        library_name="transformers" if has_code(config) else "transformers-sem",
        pipeline_tag=(hub_tasks or [PIPELINE_TAG])[0],  # the Hub lists only tasks that it knows
        tags=["sem", "multi-task-learning", "dense-prediction", *config.tasks, *hub_tasks],
        **facts,
    )


def training_data(evaluations: Sequence[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Returns what the training noted of its datasets, `{name: description}`, and nothing where it is not recorded.

    The training of an older version noted nothing; its data are those of the reports.
    """
    training = evaluations[0]["training"] if evaluations else None
    if training is None:
        return {}
    return training.get("data") or {evaluation["dataset"]: evaluation["data"] for evaluation in evaluations}


def license_fields(config: SEMConfig, evaluations: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Returns the license of the weights: Apache-2.0 if those of the data and of the weights that training started from are."""
    licenses = [data["license"] for data in training_data(evaluations).values()]
    licenses.append(start_license(config, evaluations[0]["training"]))
    if all(name == "apache-2.0" for name in licenses):
        return {"license": "apache-2.0"}
    return {"license": "other", "license_name": "terms-of-the-data-and-of-the-encoder"}


def start_license(config: SEMConfig, training: dict[str, Any] | None) -> str | None:
    """Returns the license of the weights that training started from, ours if they were random; `None` if it is unknown."""
    settings = training["settings"] if training else {"pretrained_model": "unknown"}
    if settings["pretrained_model"]:
        return None
    if not settings["pretrained_backbone"]:
        return "apache-2.0"
    encoder = config.backbone_config
    from_timm = encoder.model_type == SEMTimmBackboneConfig.model_type and settings["pretrained_backbone"] is True
    return getattr(timm.get_pretrained_cfg(encoder.model_name), "license", None) if from_timm else None


def eval_results(evaluation: dict[str, Any]) -> list[EvalResult]:
    """Returns all scores in the form of the Hub, one group for each task."""
    results = []
    for key, value in evaluation["scores"].items():
        task, score = key.split("/")
        spec, metric = get_task(task), find_metric(task)
        results.append(
            EvalResult(
                task_type=spec.hub_task,
                task_name=spec.title,
                dataset_type=evaluation["dataset"],
                dataset_name=evaluation["data"]["title"],
                dataset_config=task,  # else results of one task type on one dataset would become one group
                dataset_split="validation",
                metric_type=score,
                metric_name=metric.title if score == metric.main else score,
                metric_value=value,
            )
        )
    return results


def main_rows(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of the short table: the main score of each task."""
    rows = []
    for task, num_images in evaluation["num_scored_images"].items():
        metric = find_metric(task)
        rows.append(
            {
                "title": get_task(task).title,
                "metric": metric.main,
                "score": metric.title,
                "lower_is_better": metric.lower_is_better,
                "num_images": num_images,
                **format_scores(evaluation, f"{task}/{metric.main}"),
            }
        )
    return rows


def all_rows(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of the table of all scores."""
    return [{"key": key, **format_scores(evaluation, key)} for key in evaluation["scores"]]


def format_scores(evaluation: dict[str, Any], key: str) -> dict[str, str]:
    """Returns a score of the model and of the best constant predictor as text."""
    values = {"model": evaluation["scores"][key], "constant": evaluation["constant_scores"][key]}
    return {owner: f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}" for owner, value in values.items()}


def describe_task(config: SEMConfig, task: str) -> dict[str, str]:
    """Returns the name and title of a task, and what its map holds, with the class names of the checkpoint."""
    spec = get_task(task)
    names = config.task_id2label.get(task, {})
    classes = f": {', '.join(names[index] for index in sorted(names))}" if names else ""
    return {"name": task, "title": spec.title, "holds": spec.kind.values + classes}


def encoder_name(config: SEMConfig) -> str:
    """Returns timm's name of the encoder, or the model type of a transformers backbone."""
    return getattr(config.backbone_config, "model_name", config.backbone_config.model_type)


def describe_environment(environment: dict[str, str | None]) -> str:
    """Returns version, commit and hardware of a report in words."""
    commit = f"at commit `{environment['commit']}`" if environment["commit"] else "at an unrecorded commit"
    return f"transformers-sem {environment['transformers-sem']} {commit}, torch {environment['torch']}, on {environment['hardware']}"

"""The studies of the paper: Table 2, Table 3, and Figures 5, 6 and 7, each with the trainings that it needs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch

from ..evaluation.evaluator import predict_rows
from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..task_kinds import CLASS_IDS
from ..tasks import get_task
from ..utils.extras import require
from ..utils.loading import load_image_processor, load_model
from ..visualization.panels import comparison_panel, save_image
from .figures import collect_features, plot_features, plot_settings, save_figure
from .launch import launch_trainings
from .tables import (
    FIGURE_6,
    TABLE_2,
    TABLE_3,
    Ablation,
    Run,
    describe_model,
    describe_runs,
    save_table,
)


COMPARED_MODELS = {"SEM": "sem", "baseline": "baseline"}  # of Figures 5 and 7
NUM_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class Study:
    """One study, to be run.

    Args:
        name (`str`): Key of `STUDIES`.
        output (`Path`): Folder of all trainings, tables and figures.
        ablations (`tuple[Ablation, ...]`): One for each configuration; only Table 3 takes several.
        models (`tuple[str, ...]`, *optional*): Keys of `MODELS` to train and show; `None` is all of the study.
        num_jobs (`int`): Trainings that run at a time.
        accelerate_config (`Path`, *optional*): Configuration of `accelerate launch`.
        write_line (`Callable[[str], None]`): Gets the messages for the terminal.
    """

    name: str
    output: Path
    ablations: tuple[Ablation, ...]
    models: tuple[str, ...] | None = None
    num_jobs: int = 1
    accelerate_config: Path | None = None
    write_line: Callable[[str], None] = partial(print, flush=True)

    @property
    def ablation(self) -> Ablation:
        """The only ablation."""
        (ablation,) = self.ablations
        return ablation

    def run(self) -> None:
        """Trains what is missing, and writes the table or the figure."""
        for ablation in self.ablations:
            ablation.claim()
        STUDIES[self.name](self)

    def train(
        self,
        runs: list[Run],
        report: Callable[[], None] = lambda: None,
        is_done: Callable[[Run], bool] = lambda run: run.is_finished,
    ) -> None:
        """Trains the runs that are not done, and calls `report` before the first and after each."""
        missing = [run for run in runs if not is_done(run)]
        self.write_line(
            f"{len(runs)} trainings, {len(runs) - len(missing)} of them finished; output: {self.output}/, results: "
            f"{self.ablations[0].results}/"
        )

        def finish(run: Run) -> None:
            run.finish()
            report()

        report()
        for run in missing:
            if run.is_trained:  # an earlier command ended before its row was written
                finish(run)
        launch_trainings(
            [run for run in missing if not run.is_trained],
            self.num_jobs,
            self.accelerate_config,
            on_start=lambda run: self.write_line(f"training {run}/"),
            on_end=finish,
        )

    def shows(self, model: str) -> bool:
        """Returns whether a model was chosen."""
        return self.models is None or model in self.models


def build_study(
    name: str,
    config_paths: list[Path],
    output: Path,
    seeds: list[int],
    overrides: list[str],
    results: Path | None = None,
    **options: Any,
) -> Study:
    """Builds a study from the arguments of a command line. The configurations of Table 3 have a folder each, named after them.

    Args:
        name (`str`): Key of `STUDIES`.
        config_paths (`list[Path]`): YAML files of settings.
        output (`Path`): Folder of the trainings.
        seeds (`list[int]`): Seeds of the trainings.
        overrides (`list[str]`): `key=value` settings of all trainings.
        results (`Path`, *optional*): Folder of the rows; `None` is the folder `results` of `output`.
        options: Further fields of [`Study`].
    """
    results = results or output / "results"
    names = [path.stem for path in config_paths] if name == "table3" else [""]
    ablations = tuple(
        Ablation(
            config_path=path,
            overrides=tuple(overrides),
            output=output / folder,
            results=results / folder,
            seeds=tuple(seeds),
        )
        for path, folder in zip(config_paths, names, strict=True)
    )
    return Study(name=name, output=output, ablations=ablations, **options)


def write_table(
    study: Study,
    rows: list[tuple[str, Ablation, str]],
    title: str,
    draw: Callable[[list[dict]], None] = lambda rows: None,
) -> None:
    """Trains the models of a table and writes the table after each training.

    Args:
        study (`Study`): The study.
        rows (`list[tuple[str, Ablation, str]]`): Name, ablation and key of `MODELS` of each row.
        title (`str`): Title of the table.
        draw (`Callable`): Draws a figure from the described rows.
    """
    shown = [row for row in rows if study.shows(row[-1])]
    if not shown:
        models = list(dict.fromkeys(model for *_, model in rows))
        raise ValueError(f"The models of {study.name} are {models}; got {list(study.models)}. Choose some of them.")
    rows = shown
    ablations = list(dict.fromkeys(ablation for _, ablation, _ in rows))
    models = list(dict.fromkeys(model for *_, model in rows))
    runs = [run for ablation in ablations for run in ablation.plan(models)]
    runs.sort(key=lambda run: ablations[0].seeds.index(run.seed))
    stem = study.output / study.name

    def write() -> None:
        described = [describe_model(ablation, name, model) for name, ablation, model in rows]
        save_table(stem, title, described, describe_runs(ablations, models))
        draw(described)

    study.train(runs, write)
    study.write_line(stem.with_suffix(".md").read_text(encoding="utf-8"))
    study.write_line(f"Written: {stem}.md, .csv and .json.")


def table2(study: Study) -> None:
    """Compares STL, MTL, the baseline, the baseline with either module, and SEM."""
    rows = [(name, study.ablation, model) for name, model in TABLE_2.items()]
    write_table(study, rows, "Table 2: the modules of SEM")


def table3(study: Study) -> None:
    """Compares MTL and SEM with each encoder."""
    rows = [
        (f"{ablation.config_path.stem}, {name}", ablation, model)
        for ablation in study.ablations
        for name, model in TABLE_3.items()
    ]
    write_table(study, rows, "Table 3: encoders")


def fig6(study: Study) -> None:
    """Draws scores against the number of encoder stages (ES), decoder stages (DS) and EM iterations (R)."""
    require("matplotlib", extra="train")  # before the trainings
    settings = [(setting, value, model) for setting, models in FIGURE_6.items() for value, model in models.items()]
    rows = [(f"{setting.split(',')[0]} = {value}", study.ablation, model) for setting, value, model in settings]
    path = study.output / "fig6.png"

    def draw(described: list[dict]) -> None:
        panels = {setting: {} for setting in FIGURE_6}
        shown = [setting for setting in settings if study.shows(setting[-1])]
        for (setting, value, _), row in zip(shown, described, strict=True):
            panels[setting][value] = row
        save_figure(plot_settings(panels), path)

    write_table(study, rows, "Figure 6: settings of the modules", draw)
    study.write_line(f"Written: {path}.")


def load_compared(study: Study) -> dict[str, tuple[SEMForMultiTaskDensePrediction, SEMImageProcessor]]:
    """Loads SEM and the baseline of the first seed, after training them if they are missing."""
    ablation = study.ablation
    runs = {name: ablation.run(model, ablation.seeds[0]) for name, model in COMPARED_MODELS.items()}
    study.train(list(runs.values()), is_done=lambda run: run.is_trained)  # a row has no weights
    device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    return {
        name: (
            load_model(SEMForMultiTaskDensePrediction, run.folder, local_files_only=True).to(device),
            load_image_processor(SEMImageProcessor, run.folder, local_files_only=True),
        )
        for name, run in runs.items()
    }


def load_validation(ablation: Ablation) -> datasets.Dataset:
    """Loads the validation rows."""
    config = ablation.config
    return config.get_benchmark().load(config.data_dir, **config.dataset_kwargs)["validation"]


def fig5(study: Study) -> None:
    """Draws predictions of SEM and the baseline for some validation images, next to the labels."""
    compared, rows = load_compared(study), load_validation(study.ablation)
    indices = range(0, len(rows), max(1, len(rows) // NUM_IMAGES))[:NUM_IMAGES]
    predictions = {
        name: list(predict_rows(*both, rows.select(indices), batch_size=1)) for name, both in compared.items()
    }
    path = study.output / "fig5.png"
    save_image(path, comparison_panel(predictions))
    study.write_line(f"Written: {path}.")


def fig7(study: Study) -> None:
    """Draws features of SEM and the baseline for the first task of class ids, by t-SNE."""
    for name in ("matplotlib", "sklearn"):
        require(name, extra="train")  # before the trainings
    tasks = study.ablation.tasks
    task = next((task for task in tasks if get_task(task).kind is CLASS_IDS), None)
    if task is None:
        raise ValueError(f"Features are colored by class; none of the tasks {tasks} has class ids. Add one that has.")
    compared, rows = load_compared(study), load_validation(study.ablation)
    features = {name: collect_features(*both, rows, task) for name, both in compared.items()}
    path = study.output / "fig7.png"
    save_figure(plot_features(features, compared["SEM"][0].config.task_id2label.get(task, {})), path)
    study.write_line(f"Written: {path}.")


STUDIES = {function.__name__: function for function in (table2, table3, fig5, fig6, fig7)}

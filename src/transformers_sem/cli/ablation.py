"""Train and compare the models of the paper's ablations.

    transformers-sem ablation table2 --config FILE --output FOLDER --seeds 0 1 [key=value ...]
    transformers-sem ablation table3 --config FILE FILE ... --output FOLDER [--seeds ...] [key=value ...]
    transformers-sem ablation fig5 | fig6 | fig7 --config FILE --output FOLDER [--seeds ...] [key=value ...]

`table2` trains single-task models (STL), MTL, the baseline, it with either module, and SEM.
`table3` trains MTL and SEM with every configuration, one for each encoder.
`fig6` trains SEM's modules with 1 to 4 encoder stages (ES), 0 to 4 decoder stages (DS), and 1 to 7 EM iterations (R).
`fig5` draws what SEM and the baseline see in some images of the validation set, beside the ground truth.
`fig7` draws the features of SEM and of the baseline by t-SNE (`pip install 'transformers-sem[train]'`).

All models of one call have the same configuration, seeds and budget. Tables are written as .md, .csv and .json, again after
each training; figures as .png.

Every training is the command `train` under `accelerate launch`, in a folder of --output. Any of these commands, again or for
the first time, skips what is finished there and resumes what was interrupted; more seeds may be added.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import datasets
import torch

from ..ablation.figures import collect_features, plot_features, plot_settings, save_figure
from ..ablation.processes import run_to_the_end
from ..ablation.tables import (
    FIGURE_6,
    TABLE_2,
    TABLE_3,
    Ablation,
    Run,
    describe_model,
    describe_runs,
    save_table,
    train_missing,
)
from ..data.benchmarks import get_benchmark
from ..evaluation.evaluator import predict_rows
from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..task_kinds import CLASS_IDS
from ..tasks import get_task
from ..utils.errors import plain_errors
from ..visualization.panels import comparison_panel, save_image
from .arguments import command_parser, find_recipe


COMPARED = {"SEM": "sem", "baseline": "baseline"}  # in the figures 5 and 7
NUM_IMAGES = 4


def launch(arguments: argparse.Namespace, run: Run) -> None:
    """Trains and evaluates one model, in processes of its own."""
    print(f"training {run}/", flush=True)
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    if arguments.accelerate_config:
        launcher += ["--config_file", str(arguments.accelerate_config)]
    code = run_to_the_end(
        [*launcher, "-m", "transformers_sem.cli.train", "--config", str(run.config_path), *run.overrides]
    )
    if code or not run.is_finished:
        sys.exit(f"error: training {run} ended with status {code}; it says above why. The same command goes on there.")


def train(arguments: argparse.Namespace, runs: list[Run], report: Callable[[], None]) -> None:
    """Trains what is missing, and reports after each."""
    num_finished = sum(run.is_finished for run in runs)
    print(
        f"{len(runs)} trainings, {num_finished} of them finished; everything goes to {arguments.output}/", flush=True
    )
    train_missing(runs, lambda run: launch(arguments, run), report)


def train_table(
    arguments: argparse.Namespace,
    rows: list[tuple[str, Ablation, str]],
    title: str,
    draw: Callable[[list[dict]], None] = lambda rows: None,
) -> None:
    """Trains the models of a table, rows of `(name, ablation, key of MODELS)`, and writes it after each."""
    ablations = list(dict.fromkeys(ablation for _, ablation, _ in rows))
    models = list(dict.fromkeys(model for *_, model in rows))
    runs = [run for ablation in ablations for run in ablation.plan(models)]
    runs.sort(key=lambda run: ablations[0].seeds.index(run.seed))
    stem = arguments.output / arguments.what

    def write() -> None:
        described = [describe_model(ablation, name, model) for name, ablation, model in rows]
        save_table(stem, title, described, describe_runs(ablations, models))
        draw(described)

    train(arguments, runs, write)
    print(stem.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"Written: {stem}.md, .csv and .json.")


def table2(arguments: argparse.Namespace, ablation: Ablation) -> None:
    """The modules: STL, MTL, baseline, + intra, + inter, SEM."""
    rows = [(name, ablation, model) for name, model in TABLE_2.items()]
    train_table(arguments, rows, "Table 2: what the modules of SEM bring")


def table3(arguments: argparse.Namespace, *ablations: Ablation) -> None:
    """The encoders: MTL and SEM with each."""
    rows = [
        (f"{ablation.config_path.stem}, {name}", ablation, model)
        for ablation in ablations
        for name, model in TABLE_3.items()
    ]
    train_table(arguments, rows, "Table 3: encoders")


def fig6(arguments: argparse.Namespace, ablation: Ablation) -> None:
    """The settings of the modules: ES, DS, R."""
    places = [(setting, value, model) for setting, models in FIGURE_6.items() for value, model in models.items()]
    rows = [(f"{setting.split(',')[0]} = {value}", ablation, model) for setting, value, model in places]
    path = arguments.output / "fig6.png"

    def draw(described: list[dict]) -> None:
        panels = {setting: {} for setting in FIGURE_6}
        for (setting, value, _), row in zip(places, described, strict=True):
            panels[setting][value] = row
        save_figure(plot_settings(panels), path)

    train_table(arguments, rows, "Figure 6: settings of the modules", draw)
    print(f"Written: {path}.")


def load_compared(arguments: argparse.Namespace, ablation: Ablation) -> dict[str, tuple]:
    """Model and image processor of SEM and the baseline, of the first seed, trained where they are not yet."""
    runs = {name: ablation.run(model, ablation.seeds[0]) for name, model in COMPARED.items()}
    train(arguments, list(runs.values()), lambda: None)
    device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    return {
        name: (
            SEMForMultiTaskDensePrediction.from_pretrained(run.folder, local_files_only=True).to(device).eval(),
            SEMImageProcessor.from_pretrained(run.folder),
        )
        for name, run in runs.items()
    }


def load_validation(ablation: Ablation) -> datasets.Dataset:
    """The rows that the models are evaluated on."""
    config = ablation.config
    benchmark = get_benchmark(config.dataset, config.data_dir)
    return benchmark.load(config.data_dir, **config.dataset_kwargs)["validation"]


def fig5(arguments: argparse.Namespace, ablation: Ablation) -> None:
    """Predictions side by side."""
    compared, rows = load_compared(arguments, ablation), load_validation(ablation)
    spread = range(0, len(rows), max(1, len(rows) // NUM_IMAGES))[:NUM_IMAGES]
    predictions = {
        name: list(predict_rows(*both, rows.select(spread), batch_size=1)) for name, both in compared.items()
    }
    path = arguments.output / "fig5.png"
    save_image(path, comparison_panel(predictions))
    print(f"Written: {path}.")


def fig7(arguments: argparse.Namespace, ablation: Ablation) -> None:
    """Deep features of the first task that has classes."""
    if find_spec("sklearn") is None:  # said now, and not after the trainings
        raise ValueError("fig7 needs scikit-learn, which is not installed: pip install 'transformers-sem[train]'.")
    task = next((task for task in ablation.tasks if get_task(task).kind is CLASS_IDS), None)
    if task is None:
        raise ValueError(f"Features are coloured by class, and none of the tasks {ablation.tasks} has classes.")
    compared, rows = load_compared(arguments, ablation), load_validation(ablation)
    features = {name: collect_features(*both, rows, task) for name, both in compared.items()}
    path = arguments.output / "fig7.png"
    save_figure(plot_features(features, compared["SEM"][0].config.task_id2label.get(task, {})), path)
    print(f"Written: {path}.")


COMMANDS = {function.__name__: function for function in (table2, table3, fig5, fig6, fig7)}


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    parser = command_parser("ablation", __doc__)
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--config", nargs="+", required=True, metavar="FILE", help="settings of all trainings")
    parser.add_argument("--output", type=Path, required=True, help="folder of all trainings, tables and figures")
    parser.add_argument("--seeds", nargs="+", default=["0"], help="train each model with each (default: 0)")
    parser.add_argument("--accelerate-config", metavar="FILE", help="for `accelerate launch`: devices, engine")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, for example max_steps=100")
    return parser


def parse_arguments(command_line: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line and separates files, seeds and settings."""
    parser = build_parser()
    arguments = parser.parse_intermixed_args(command_line)
    # argparse gives all that follows an option to it
    arguments.overrides += [text for text in (*arguments.config, *arguments.seeds) if "=" in text]
    arguments.config = [text for text in arguments.config if "=" not in text]
    arguments.seeds = [text for text in arguments.seeds if "=" not in text]
    if not arguments.seeds or not all(text.isdecimal() for text in arguments.seeds):
        parser.error(f"--seeds are whole numbers from 0; got {' '.join(arguments.seeds)}")
    if arguments.what != "table3" and len(arguments.config) != 1:
        parser.error(f"--config is one file for {arguments.what}, and several for table3; got {len(arguments.config)}")
    return arguments


def build_ablations(arguments: argparse.Namespace) -> list[Ablation]:
    """One for each configuration; several have a folder each, named after the file."""
    folders = [arguments.output]
    if arguments.what == "table3":
        folders = [arguments.output / path.stem for path in arguments.config]
    ablations = [
        Ablation(
            config_path=path,
            overrides=tuple(arguments.overrides),
            output=folder,
            seeds=tuple(map(int, arguments.seeds)),
        )
        for path, folder in zip(arguments.config, folders, strict=True)
    ]
    for ablation in ablations:
        ablation.claim()
    return ablations


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan, train what is missing, write."""
    parsed = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the training is told to save
    with plain_errors():
        try:
            parsed.config = [find_recipe(name) for name in parsed.config]
            COMMANDS[parsed.what](parsed, *build_ablations(parsed))
        except KeyboardInterrupt:
            sys.exit("Interrupted. The same command again goes on where it was.")


if __name__ == "__main__":
    main()

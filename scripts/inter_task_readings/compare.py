"""Train readings of the inter-task module: what the paper leaves open, and what could be chosen otherwise.

    python scripts/inter_task_readings/compare.py --results FOLDER --config FILE --output FOLDER [--readings NAME ...] [key=value ...]
    python scripts/inter_task_readings/compare.py --results FOLDER

Each reading is the baseline with one inter-task module per decoder stage (the row "+ inter" of Table 2), with one thing changed. The
first command trains the readings one after another and leaves a row of each, `RESULTS/seed0/READING.json`; a reading that has a row
is skipped, and an interrupted one resumes. Both print how each row compares with the baseline of the same seed.
"""

import argparse
import json
import signal
import sys
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from measures import MEASURES, measure_modules, measure_noise
from readings import READINGS

from transformers_sem import SEMConfig
from transformers_sem.ablation.render import format_difference, format_table, is_bias, name_column, shown_keys
from transformers_sem.ablation.results import check_shared_settings, load_checked_row, load_row, save_row
from transformers_sem.ablation.tables import MODELS, NOTHING, describe_origins
from transformers_sem.cli.arguments import find_recipe
from transformers_sem.evaluation.sums import multi_task_gain
from transformers_sem.training.config import TrainingConfig
from transformers_sem.training.run import run_training
from transformers_sem.utils.errors import plain_errors


def train_readings(arguments: argparse.Namespace) -> None:
    """Trains readings one after another, each in a process of its own, because it changes the code."""
    for name in arguments.readings:
        row_path = arguments.results / f"seed{arguments.seed}" / f"{name}.json"
        folder = arguments.output / f"seed{arguments.seed}" / name
        values = {f"model.{key}": value for key, value in {**MODELS["inter"], **READINGS[name].settings}.items()}
        values |= {"seed": arguments.seed, "output_dir": str(folder)}
        overrides = [*arguments.overrides, *(f"{key}={json.dumps(value)}" for key, value in values.items())]
        config = TrainingConfig.load(find_recipe(arguments.config), overrides)
        if row_path.is_file():
            load_checked_row(row_path, config)  # its settings are the same
            continue
        process = get_context("spawn").Process(target=train_reading, args=(name, config, row_path))
        process.start()
        try:
            process.join()
        except KeyboardInterrupt:
            process.terminate()  # it saves first
            process.join()
        if process.exitcode:
            sys.exit(f"The training in {folder} ended with status {process.exitcode}. The same command resumes it.")


def train_reading(name: str, config: TrainingConfig, row_path: Path) -> None:
    """Trains and evaluates one reading, and writes its row, with measures of its modules."""
    READINGS[name].change_code()
    run_training(config)
    save_row(Path(config.output_dir), row_path, inter_task=measure_modules(config))


def read_readings(results: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Reads all rows, `{"inter": {"seed0": row}}`, in the order of `READINGS`.

    Raises:
        ValueError: If a file is no row of a reading, or rows have different settings, apart from those of the readings.
    """
    rows = {path: load_row(path) for path in sorted(results.glob("seed*/*.json"))}
    strangers = [str(path) for path, row in rows.items() if path.stem not in READINGS or "inter_task" not in row]
    if strangers:
        raise ValueError(f"Rows of readings are written by this script; {', '.join(strangers)} are not. Move them.")
    fields = {path: {*MODELS["inter"], *READINGS[path.stem].settings} for path in rows}
    check_shared_settings(rows, fields)
    by_name = {name: {path.parent.name: row for path, row in rows.items() if path.stem == name} for name in READINGS}
    return {name: found for name, found in by_name.items() if found}


def format_readings(results: Path) -> str:
    """Formats Markdown tables: all readings with the first seed, those with several seeds, and measures with the first seed."""
    rows = read_readings(results)
    baselines = rows.pop("baseline", {})
    first = min(baselines, default=None)
    single = {name: found[first] for name, found in rows.items() if first in found}
    if not single:
        raise ValueError(
            f"A table needs the baseline and a reading of one seed, {results}/seed0/*.json; there are none."
        )
    pairs = {
        name: [(base, found[seed]) for seed, base in baselines.items() if seed in found]
        for name, found in rows.items()
    }
    origins = describe_origins(
        {
            f"{seed}/{name}": row
            for name, found in {"baseline": baselines, **rows}.items()
            for seed, row in found.items()
        }
    )
    parts = [
        format_changes(first, baselines[first], single),
        format_seeds({name: found for name, found in pairs.items() if len(found) > 1}),
        format_measures(first, single),
        *(f"Trained at {origin}." for origin in origins),
    ]
    return "\n\n".join(part for part in parts if part)


def format_changes(seed: str, baseline: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str:
    """Formats the scores of the baseline, and what each reading changes with one seed; the score of a bias is no difference."""
    keys = shown_keys({"baseline": baseline})
    lines = [
        [READINGS["baseline"].words, *(f"{baseline['scores'][key]:.4f}" for key in keys), NOTHING, NOTHING],
    ]
    for name, row in rows.items():
        changes = [
            f"{row['scores'][key]:.4f}" if is_bias(key) else f"{row['scores'][key] - baseline['scores'][key]:+.4f}"
            for key in keys
        ]
        gain, loss = multi_task_gain(row["scores"], baseline["scores"]), change_of_loss(baseline, row)
        lines.append([READINGS[name].words, *changes, f"{gain:+.2f}", f"{loss:+.2f}"])
    header = [
        f"inter-task module, {seed.replace('seed', 'seed ')}",
        *map(name_column, keys),
        "Δm, % ↑",
        "training loss, % ↓",
    ]
    return format_table(header, lines)


def format_seeds(pairs: dict[str, list[tuple[dict, dict]]]) -> str:
    """Formats mean and standard error of the changes of readings with several seeds; nothing without any."""
    lines = []
    for name, found in pairs.items():
        keys = [key for key in shown_keys({"baseline": found[0][0]}) if not is_bias(key)]
        changes = [[row["scores"][key] - base["scores"][key] for base, row in found] for key in keys]
        gains = [multi_task_gain(row["scores"], base["scores"]) for base, row in found]
        losses = [change_of_loss(base, row) for base, row in found]
        summaries = [format_difference(gains, digits=2), format_difference(losses, digits=2)]
        each = ", ".join(f"{gain:+.2f}" for gain in gains)
        lines.append([READINGS[name].words, str(len(found)), *map(format_difference, changes), *summaries, each])
    if not lines:
        return ""
    scores = [*map(name_column, keys), "Δm, % ↑", "training loss, % ↓", "Δm of each seed"]
    return format_table(["inter-task module", "seeds", *scores], lines)


def format_measures(seed: str, rows: dict[str, dict[str, Any]]) -> str:
    """Formats the measures of the modules with one seed, from the deepest stage to the shallowest, above those of noise."""
    measured = {READINGS[name].words: (row["inter_task"], READINGS[name].unmeasured) for name, row in rows.items()}
    settings = next(iter(rows.values()))["training"]["settings"]
    noise = measure_noise(SEMConfig(**settings["model"]), settings["input_size"])
    measured["Gaussian noise"] = noise, {*MEASURES} - {*noise}
    lines = [
        [words, *(NOTHING if name in unmeasured else format_stages(stages[name]) for name in MEASURES)]
        for words, (stages, unmeasured) in measured.items()
    ]
    return format_table([f"inter-task module, {seed.replace('seed', 'seed ')}", *MEASURES.values()], lines)


def format_stages(values: list[float]) -> str:
    """Formats a measure of all stages."""
    return " / ".join(f"{value:.2f}" for value in values)


def change_of_loss(baseline: dict[str, Any], row: dict[str, Any]) -> float:
    """Returns the change of the mean training loss in the last tenth of a training, in percent."""
    first, second = (
        fmean(losses[-len(losses) // 10 :])
        for losses in (
            [entry["loss"] for entry in found["history"] if entry.get("loss") is not None] for found in (baseline, row)
        )
    )
    return 100 * second / first - 100


def parse_arguments() -> argparse.Namespace:
    """Parses the command line and separates readings and settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--config", help="settings of all trainings: a YAML file or the name of a recipe")
    parser.add_argument("--output", type=Path, help="folder of the trainings")
    parser.add_argument("--readings", nargs="+", default=[*READINGS], help=f"default: all, {', '.join(READINGS)}")
    parser.add_argument("--seed", type=int, default=0, help="of all trainings (default: 0)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, for example max_steps=100")
    arguments = parser.parse_intermixed_args()
    # argparse assigns everything after an option to it
    arguments.overrides += [text for text in arguments.readings if "=" in text]
    arguments.readings = [text for text in arguments.readings if "=" not in text]
    unknown = [name for name in arguments.readings if name not in READINGS]
    if unknown:
        parser.error(f"--readings are of {', '.join(READINGS)}; got {' '.join(unknown)}")
    if (arguments.config is None) != (arguments.output is None):
        parser.error("a training needs --config FILE and --output FOLDER")
    return arguments


def main() -> None:
    """Parses the command line, trains what is missing, and prints the tables."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: the training saves
    with plain_errors():
        if arguments.config is not None:
            train_readings(arguments)
        print(format_readings(arguments.results))


if __name__ == "__main__":
    main()

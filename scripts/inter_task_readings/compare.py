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

from measures import MEASURES, measure_modules
from readings import READINGS

from transformers_sem.ablation.render import BIAS, format_table, name_column, shared_settings, shown_keys
from transformers_sem.ablation.results import load_row, read_row, save_row
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
            read_row(row_path, config)  # its settings are the same
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


def read_readings(results: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Reads all rows, `{("seed0", "inter"): row}`.

    Raises:
        ValueError: If they have different settings, apart from those of the readings.
    """
    rows = {(path.parent.name, path.stem): load_row(path) for path in sorted(results.glob("seed*/*.json"))}
    shared = [
        {key: value for key, value in shared_settings(row).items() if not key.startswith("model.")}
        for row in rows.values()
    ]
    if any(settings != shared[0] for settings in shared):
        raise ValueError(
            f"Rows of one folder share their settings; those of {results} do not. Move those of another run."
        )
    return rows


def format_readings(results: Path) -> str:
    """Formats two Markdown tables, means over the seeds: differences to the baseline of the same seed, and measures.

    Δm is given for each seed.
    """
    rows = read_readings(results)
    baselines = {seed: row for (seed, name), row in rows.items() if name == "baseline"}
    pairs = {
        reading.words: [(base, rows[seed, name]) for seed, base in baselines.items() if (seed, name) in rows]
        for name, reading in READINGS.items()
        if name != "baseline"
    }
    pairs = {words: found for words, found in pairs.items() if found}
    if not pairs:
        raise ValueError(
            f"A table needs the baseline and a reading of one seed, {results}/seed0/*.json; there are none."
        )
    origins = "\n\n".join(
        f"Trained at {origin}." for origin in describe_origins({"/".join(key): row for key, row in rows.items()})
    )
    return f"{format_differences([*baselines.values()], pairs)}\n\n{format_measures(pairs)}\n\n{origins}"


def format_differences(baselines: list[dict], pairs: dict[str, list[tuple[dict, dict]]]) -> str:
    """Formats the scores of the baseline, and what each reading changes against it; the score of a bias is not a difference."""
    keys = shown_keys(dict(enumerate(baselines)))
    means = [f"{fmean(row['scores'][key] for row in baselines):.4f}" for key in keys]
    lines = [[READINGS["baseline"].words, str(len(baselines)), *means, NOTHING, NOTHING]]
    for words, found in pairs.items():
        changes = [
            f"{fmean(row['scores'][key] for _, row in found):.4f}"
            if key.endswith(f"/{BIAS}")
            else f"{fmean(row['scores'][key] - base['scores'][key] for base, row in found):+.4f}"
            for key in keys
        ]
        gains = ", ".join(f"{multi_task_gain(row['scores'], base['scores']):+.2f}" for base, row in found)
        loss = fmean(100 * last_loss(row) / last_loss(base) - 100 for base, row in found)
        lines.append([words, str(len(found)), *changes, gains, f"{loss:+.2f}"])
    header = ["inter-task module", "seeds", *map(name_column, keys), "Δm, % ↑", "training loss, % ↓"]
    return format_table(header, lines)


def format_measures(pairs: dict[str, list[tuple[dict, dict]]]) -> str:
    """Formats the measures of the modules, from the deepest stage to the shallowest."""
    lines = []
    for words, found in pairs.items():
        stages = {name: zip(*(row["inter_task"][name] for _, row in found), strict=True) for name in MEASURES}
        lines.append([words, *(" / ".join(f"{fmean(values):.2f}" for values in stages[name]) for name in MEASURES)])
    return format_table(["inter-task module", *MEASURES.values()], lines)


def last_loss(row: dict[str, Any]) -> float:
    """Returns the mean training loss of the last tenth of a training."""
    losses = [entry["loss"] for entry in row["history"] if "loss" in entry]
    return fmean(losses[-len(losses) // 10 :])


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

"""Train and compare the models of the paper's ablations.

    python scripts/ablation.py table2 --config FILE --output FOLDER --seeds 0 1 [key=value ...]

`table2` trains single-task models (STL), MTL, the baseline, it with either module, and SEM, with one configuration, the same
seeds and budget, and writes table2.md, .csv and .json, again after each training.

Every training is scripts/train.py under `accelerate launch`. The same command again skips what is finished and resumes what
was interrupted; more seeds may be added.
"""

import argparse
import signal
import sys
from pathlib import Path

from transformers_sem.training.ablation import (
    TABLE_2,
    Ablation,
    Run,
    describe_model,
    describe_runs,
    run_to_the_end,
    save_table,
    train_missing,
)
from transformers_sem.training.configuration import plain_errors


TRAIN = Path(__file__).with_name("train.py")


def launch(arguments: argparse.Namespace, ablation: Ablation, run: Run) -> None:
    """Trains and evaluates one model, in processes of its own."""
    print(f"{run}: {run.folder}/", flush=True)
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    if arguments.accelerate_config:
        launcher += ["--config_file", str(arguments.accelerate_config)]
    code = run_to_the_end([*launcher, str(TRAIN), "--config", str(ablation.config_path), *run.overrides])
    if code or not run.is_finished:
        sys.exit(
            f"error: the training of {run} ended with status {code}; it says above why. The same command again goes on "
            "there."
        )


def train_table(arguments: argparse.Namespace, ablation: Ablation, models: dict[str, str], title: str) -> None:
    """Trains the models of a table, `{name: key of MODELS}`, and writes it after each."""
    runs, stem = ablation.plan(models.values()), ablation.output / arguments.what

    def write() -> None:
        rows = [describe_model(ablation, name, model) for name, model in models.items()]
        save_table(stem, title, rows, describe_runs([ablation], models.values()))

    num_finished = sum(run.is_finished for run in runs)
    print(f"{len(runs)} trainings, {num_finished} of them finished; everything goes to {ablation.output}/", flush=True)
    train_missing(runs, lambda run: launch(arguments, ablation, run), write)
    print(stem.with_suffix(".md").read_text())
    print(f"Written: {stem}.md, .csv and .json.")


def table2(arguments: argparse.Namespace, ablation: Ablation) -> None:
    """The modules: STL, MTL, baseline, + intra, + inter, SEM."""
    train_table(arguments, ablation, TABLE_2, "Table 2: what the modules of SEM bring")


COMMANDS = {function.__name__: function for function in (table2,)}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--config", type=Path, required=True, help="settings of all trainings")
    parser.add_argument("--output", type=Path, required=True, help="folder of all trainings, tables and figures")
    parser.add_argument("--seeds", nargs="+", default=["0"], help="train each model with each (default: 0)")
    parser.add_argument("--accelerate-config", type=Path, help="for `accelerate launch`: devices, precision, engine")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, for example max_steps=100")
    arguments = parser.parse_intermixed_args()
    # argparse gives all that follows --seeds to it
    arguments.overrides += [text for text in arguments.seeds if "=" in text]
    arguments.seeds = [text for text in arguments.seeds if "=" not in text]
    if not arguments.seeds or not all(text.isdecimal() for text in arguments.seeds):
        parser.error(f"--seeds are whole numbers from 0; got {' '.join(arguments.seeds)}")
    return arguments


def main() -> None:
    """Plan, train what is missing, write."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the training is told to save
    with plain_errors():
        ablation = Ablation(
            config_path=arguments.config,
            overrides=tuple(arguments.overrides),
            output=arguments.output,
            seeds=tuple(map(int, arguments.seeds)),
        )
        ablation.claim()
        try:
            COMMANDS[arguments.what](arguments, ablation)
        except KeyboardInterrupt:
            sys.exit("Interrupted. The same command again goes on where it was.")


if __name__ == "__main__":
    main()

"""Train and compare the models of the paper's ablations.

    transformers-sem ablation table2 --config FILE --output FOLDER --seeds 0 1 [key=value ...]
    transformers-sem ablation table3 --config FILE FILE ... --output FOLDER [--seeds ...] [key=value ...]
    transformers-sem ablation fig5 | fig6 | fig7 --config FILE --output FOLDER [--seeds ...] [key=value ...]
    transformers-sem ablation render --page docs/results.md

`table2` trains single-task models (STL), MTL, the baseline, the baseline with either module, and SEM.
`table3` trains MTL and SEM with every configuration, one for each encoder.
`fig6` trains SEM's modules with 1 to 4 encoder stages (ES), 0 to 4 decoder stages (DS), and 1 to 7 EM iterations (R).
`fig5` draws predictions of SEM and of the baseline for some validation images, next to the labels.
`render` writes the tables and curves of rows into a page, where it has markers `<!-- FOLDER -->` and `<!-- end of FOLDER -->`.
`fig7` draws the features of SEM and of the baseline by t-SNE (`pip install 'transformers-sem[train]'`).

All models of one call have the same configuration, seeds and number of steps. Tables are written as .md, .csv and .json, and
updated after each training; figures are written as .png.

Every training is the command `train`, on one GPU or, with --accelerate-config, as `accelerate launch` starts it. It has a folder in
--output, and leaves a row in --results: a JSON file with scores, settings, history, commit and hardware, without weights or images.
A command skips trainings that have a row, whichever command or machine wrote it, and resumes interrupted ones. More seeds can be
added.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ..ablation.render import render_page
from ..ablation.studies import STUDIES, build_study
from ..ablation.tables import MODELS
from ..utils.errors import plain_errors
from .arguments import command_parser, find_recipe


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    parser = command_parser("ablation", __doc__)
    parser.add_argument("what", choices=[*STUDIES, "render"])
    parser.add_argument("--config", nargs="+", default=[], metavar="FILE", help="settings of all trainings")
    parser.add_argument("--output", type=Path, help="folder of all trainings, tables and figures")
    parser.add_argument("--seeds", nargs="+", default=["0"], help="train each model with each (default: 0)")
    parser.add_argument("--results", type=Path, help="folder of the rows (default: OUTPUT/results)")
    parser.add_argument(
        "--page", type=Path, help="Markdown page for render; folders in its markers are relative to here"
    )
    parser.add_argument("--models", nargs="+", default=[], help="train and show only these models of the study")
    parser.add_argument("--jobs", type=int, default=1, help="trainings to run at a time (default: 1)")
    parser.add_argument(
        "--accelerate-config", type=Path, metavar="FILE", help="for `accelerate launch`: devices, engine"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, for example max_steps=100")
    return parser


def parse_arguments(command_line: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line and separates files, seeds and settings."""
    parser = build_parser()
    arguments = parser.parse_intermixed_args(command_line)
    # argparse assigns everything after an option to it
    arguments.overrides += [text for text in (*arguments.config, *arguments.seeds, *arguments.models) if "=" in text]
    arguments.config = [text for text in arguments.config if "=" not in text]
    arguments.seeds = [text for text in arguments.seeds if "=" not in text]
    arguments.models = [text for text in arguments.models if "=" not in text]
    unknown = [name for name in arguments.models if name not in MODELS]
    if unknown:
        parser.error(f"--models are of {', '.join(MODELS)}; got {' '.join(unknown)}")
    if not arguments.seeds or not all(text.isdecimal() for text in arguments.seeds):
        parser.error(f"--seeds are whole numbers from 0; got {' '.join(arguments.seeds)}")
    if arguments.jobs < 1:
        parser.error(f"--jobs is 1 or more; got {arguments.jobs}")
    if arguments.models and arguments.what in ("fig5", "fig7"):
        parser.error(f"--models is for tables; {arguments.what} compares SEM and the baseline")
    if arguments.what == "render":
        if arguments.page is None:
            parser.error("render needs --page FILE.md")
        return arguments
    if arguments.output is None:
        parser.error(f"{arguments.what} needs --output FOLDER")
    if not arguments.config:
        parser.error(f"{arguments.what} needs --config FILE")
    if arguments.what != "table3" and len(arguments.config) != 1:
        parser.error(f"--config is one file for {arguments.what}, and several for table3; got {len(arguments.config)}")
    return arguments


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, trains what is missing, and writes tables and figures; or renders a page."""
    parsed = parse_arguments(arguments)
    with plain_errors():
        if parsed.what == "render":
            for path in render_page(parsed.page, Path()):
                print(f"Written: {path}")
            return
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: the training saves
        try:
            study = build_study(
                parsed.what,
                [find_recipe(name) for name in parsed.config],
                parsed.output,
                [int(seed) for seed in parsed.seeds],
                parsed.overrides,
                parsed.results,
                models=tuple(parsed.models) or None,
                num_jobs=parsed.jobs,
                accelerate_config=parsed.accelerate_config,
            )
            study.run()
        except KeyboardInterrupt:
            sys.exit("Interrupted. The same command resumes where this one stopped.")


if __name__ == "__main__":
    main()

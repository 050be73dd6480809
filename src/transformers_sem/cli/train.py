"""Train a model, evaluate it, save it, and draw its curves and predictions.

    transformers-sem train --config quickstart [key=value ...] [--dry-run]
    accelerate launch -m transformers_sem.cli.train --config vit_large_nyud_v2 data_dir=FOLDER

--config is a YAML file, or the name of a recipe that comes with the package. The same command resumes a run that was interrupted;
Ctrl-C and SIGTERM save first. Everything is written to `output_dir`: model and image processor (for `from_pretrained`),
`training.json` and `.yaml`, `evaluation.json` and `.parquet`, `predictions.png`, `curves.png`, `history.jsonl`, `logs/` for
TensorBoard, `checkpoints/`. With --dry-run nothing is written: the command prints what the run would do, and measures one step.
"""

import argparse
from collections.abc import Sequence

from ..training.config import TrainingConfig
from ..training.run import dry_run, run_training
from ..utils.environment import starting_commit
from ..utils.errors import plain_errors
from .arguments import command_parser, find_recipe


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    parser = command_parser("train", __doc__)
    parser.add_argument("--config", required=True, help="settings of the run: a YAML file or the name of a recipe")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what the run would do, measure one step, write nothing"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, for example max_steps=100")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and trains."""
    parsed = build_parser().parse_intermixed_args(arguments)  # intermixed: --dry-run may follow the settings
    starting_commit()  # before files change
    with plain_errors():
        config = TrainingConfig.load(find_recipe(parsed.config), parsed.overrides)
    if parsed.dry_run:
        dry_run(config)
    else:
        run_training(config)


if __name__ == "__main__":
    main()

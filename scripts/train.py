"""Train SEM, evaluate it, save it, and draw its predictions.

    accelerate launch scripts/train.py --config scripts/configs/quickstart.yaml [key=value ...] [--dry-run]

The same command resumes a run that was interrupted; Ctrl-C and SIGTERM save first. Everything goes to `output_dir`: model and
image processor (for `from_pretrained`), `training.json` and `.yaml`, `evaluation.json` and `.parquet`, `predictions.png`,
`curves.png`, `history.jsonl`, `logs/` for TensorBoard, `checkpoints/`. With `--dry-run` nothing is written: the command prints
what the run would do, and measures one step.
"""

import argparse

from transformers_sem.training.config import TrainingConfig
from transformers_sem.training.run import dry_run, run_training
from transformers_sem.utils.environment import starting_commit
from transformers_sem.utils.errors import plain_errors


def main() -> None:
    """Parse and train."""
    starting_commit()  # before files change
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of the settings that differ from the defaults")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, measure one step, write nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, for example max_steps=100")
    arguments = parser.parse_intermixed_args()  # intermixed: `--dry-run` may follow the settings
    with plain_errors():
        config = TrainingConfig.load(arguments.config, arguments.overrides)
    if arguments.dry_run:
        dry_run(config)
    else:
        run_training(config)


if __name__ == "__main__":
    main()

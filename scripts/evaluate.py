"""Evaluate a saved model, by the settings of its training run.

    python scripts/evaluate.py --model runs/quickstart [key=value ...]

Prints the scores beside those of the best constant predictor and writes them to evaluation.json. Settings such as
data_dir=FOLDER or num_evaluation_images=100 replace those of the run.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.data import get_benchmark
from transformers_sem.training.configuration import SETTINGS_NAME, TrainingConfig, plain_errors
from transformers_sem.training.evaluating import evaluate_and_report


def main() -> None:
    """Load, evaluate, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder that scripts/train.py wrote")
    parser.add_argument(
        "--output", type=Path, help="where to write the scores (default: evaluation.json in the model)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the run")
    arguments = parser.parse_args()
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())  # or ranks on CPUs would not find each other
    with plain_errors():
        config = TrainingConfig.load(arguments.model / SETTINGS_NAME, arguments.overrides)
        model = SEMForMultiTaskDensePrediction.from_pretrained(arguments.model, local_files_only=True)
        image_processor = SEMImageProcessor.from_pretrained(arguments.model, local_files_only=True)
        with accelerator.main_process_first():
            rows = get_benchmark(config.dataset).load(config.data_dir, **config.dataset_kwargs)
    path = arguments.output or arguments.model / "evaluation.json"
    accelerator.print(evaluate_and_report(config, accelerator, model, image_processor, rows, path))
    accelerator.print(f"Written: {path}.")
    accelerator.end_training()


if __name__ == "__main__":
    main()

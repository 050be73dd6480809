"""Evaluate a saved model, by the settings of its training run.

    python scripts/evaluate.py --model runs/quickstart [key=value ...]

Prints the scores beside those of the best constant predictor, and writes them to evaluation.json, those of each image to
evaluation.parquet. Settings such as data_dir=FOLDER or num_evaluation_images=100 replace those of the run; a model without
a run, from the Hub for example, has them all: dataset=nyud_v2 data_dir=FOLDER. The same command again continues an
evaluation that was interrupted.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.data.benchmarks import get_benchmark
from transformers_sem.evaluation.evaluator import EvaluationConfig, evaluate_and_report
from transformers_sem.utils.arguments import json_path, positive_integer
from transformers_sem.utils.environment import starting_commit
from transformers_sem.utils.errors import plain_errors


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder that scripts/train.py wrote, or any saved model")
    parser.add_argument("--output", type=json_path, help="JSON file to write (default: evaluation.json in the model)")
    parser.add_argument(
        "--save-predictions", type=Path, metavar="FOLDER", help="write the maps too, as pictures for other programs"
    )
    parser.add_argument(
        "--processes",
        type=positive_integer,
        help="processes of each rank for the boundary measure (default: all cores but one)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the run")
    arguments = parser.parse_args()
    if arguments.output is None:
        if not Path(arguments.model).is_dir():
            parser.error("--model is no folder to write to; say where with --output FILE.json")
        arguments.output = Path(arguments.model) / "evaluation.json"
    return arguments


def main() -> None:
    """Load, evaluate, report."""
    arguments = parse_arguments()
    starting_commit()  # before files change
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())  # or ranks on CPUs would not find each other
    with plain_errors():
        config = EvaluationConfig.load(arguments.model, arguments.overrides)
        model = SEMForMultiTaskDensePrediction.from_pretrained(arguments.model)
        image_processor = SEMImageProcessor.from_pretrained(arguments.model)
        with accelerator.main_process_first():
            rows = get_benchmark(config.dataset, config.data_dir).load(config.data_dir, **config.dataset_kwargs)
        report = evaluate_and_report(
            config,
            accelerator,
            model,
            image_processor,
            rows,
            arguments.output,
            num_processes=arguments.processes,
            predictions_dir=arguments.save_predictions,
        )
    accelerator.print(report)
    written = [arguments.output, arguments.output.with_suffix(".parquet"), arguments.save_predictions]
    accelerator.print(f"Written: {', '.join(str(path) for path in written if path)}.")
    accelerator.end_training()


if __name__ == "__main__":
    main()

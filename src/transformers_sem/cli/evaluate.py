"""Compute the scores of a trained model with the settings of its training run.

    transformers-sem evaluate --model runs/quickstart [key=value ...]

Prints the scores beside those of the best constant predictor and writes them to evaluation.json. The scores of each image go
to evaluation.parquet. Tasks of the model that the dataset has no labels of are named and not scored. Settings such as
data_dir=FOLDER or num_evaluation_images=100 replace those of the run. A model without a training run, for example from the Hub,
takes all of its settings from the command: dataset=nyud_v2 data_dir=FOLDER. A run on several datasets is evaluated on each of
them, or on the one that dataset=NAME chooses; their reports, and that of another dataset than the run's, are named after it, for
example evaluation_nyud_v2.json. The same command resumes an evaluation that was interrupted.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..evaluation.config import REPORT_NAME, EvaluationConfig, is_only_training_data
from ..evaluation.evaluator import evaluate_and_report
from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..utils.environment import starting_commit
from ..utils.errors import plain_errors
from ..utils.loading import load_image_processor, load_model
from ..utils.processes import start_accelerator
from .arguments import command_parser, json_path, positive_integer


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    parser = command_parser("evaluate", __doc__)
    parser.add_argument("--model", required=True, help="folder of a training run, or any saved model")
    parser.add_argument("--output", type=json_path, help="JSON file to write (default: evaluation.json in the model)")
    parser.add_argument(
        "--save-predictions", type=Path, metavar="FOLDER", help="also write the maps as images for other programs"
    )
    parser.add_argument(
        "--processes",
        type=positive_integer,
        help="processes of each rank for the boundary measure (default: half of the cores)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the run")
    return parser


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = build_parser()
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.output is None and not Path(parsed.model).is_dir():
        parser.error("--model is not a folder to write to; name a file with --output FILE.json")
    return parsed


def choose_outputs(parsed: argparse.Namespace, configs: dict[str, EvaluationConfig]) -> list[Path]:
    """Returns the report to write for each dataset; beside a model, that of the data that it was trained on stays."""
    if parsed.output is not None and len(configs) == 1:
        return [parsed.output]
    output = parsed.output or Path(parsed.model) / REPORT_NAME
    if len(configs) == 1 and is_only_training_data(parsed.model, *next(iter(configs.items()))):
        return [output]
    return [output.with_stem(f"{output.stem}_{name}") for name in configs]


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads the model and the rows, evaluates, and writes the report."""
    parsed = parse_arguments(arguments)
    starting_commit()  # before files change
    accelerator = start_accelerator()
    with plain_errors():
        configs = EvaluationConfig.load_all(parsed.model, parsed.overrides)
        model = load_model(SEMForMultiTaskDensePrediction, parsed.model)
        image_processor = load_image_processor(SEMImageProcessor, parsed.model)
        outputs = choose_outputs(parsed, configs)
        for (name, config), output in zip(configs.items(), outputs, strict=True):
            predictions_dir = parsed.save_predictions
            if predictions_dir and len(configs) > 1:
                predictions_dir = predictions_dir / name
            with accelerator.main_process_first():
                rows = config.get_benchmark().load(config.data_dir, **config.dataset_kwargs)
            report = evaluate_and_report(
                config,
                accelerator,
                model,
                image_processor,
                rows,
                output,
                num_processes=parsed.processes,
                predictions_dir=predictions_dir,
            )
            accelerator.print(f"\n{name}\n{report}" if len(configs) > 1 else report)
            written = [output, output.with_suffix(".parquet"), predictions_dir]
            accelerator.print(f"Written: {', '.join(str(path) for path in written if path)}.")
    accelerator.end_training()


if __name__ == "__main__":
    main()

"""Predict every task for images and videos of any size.

    transformers-sem predict --model runs/quickstart --input photo.jpg folder "shots/**/*.png" film.mp4 --output predictions
    accelerate launch -m transformers_sem.cli.predict --model runs/quickstart --input folder --batch-size 8 --dtype bfloat16

Writes for each image NAME: panels/NAME.png, the maps in color; maps/TASK/NAME.png, the values (depth in millimetres, 16 bits;
class ids with a palette; normals as RGB; probabilities in 8 bits); raw/NAME.npz, the maps in metres, unit vectors, ids and
probabilities; json/NAME.json, the area of each class, the range of the depth and so on. For a video or a camera (--input 0,
until Ctrl-C) it writes videos/NAME.mp4, the frames beside their maps.

Folders are searched recursively, without the results of earlier runs in --output. Files that cannot be read are listed at the
end, and the exit code is then 1. The same command predicts only what is missing or has changed.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import torch

from ..evaluation.evaluator import hash_model
from ..image_processing_sem import SEMImageProcessor
from ..inference.inputs import find_inputs
from ..inference.outputs import OutputFolder
from ..inference.predictor import Predictor, parse_augmentations
from ..inference.runner import PredictionRunner
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..utils.errors import plain_errors
from ..utils.files import locked
from ..utils.loading import load_image_processor, load_model
from ..utils.processes import start_accelerator
from .arguments import command_parser, positive_integer


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    parser = command_parser("predict", __doc__)
    parser.add_argument("--model", required=True, help="folder or Hub name of a trained model")
    parser.add_argument(
        "--input", required=True, nargs="+", help="images, videos, folders of them, patterns, numbers of cameras"
    )
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder to write to")
    parser.add_argument("--batch-size", type=positive_integer, default=1, help="images per forward pass and rank")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="precision")
    parser.add_argument(
        "--tile",
        type=positive_integer,
        metavar="SIZE",
        help="cut images into overlapping tiles; SIZE is the longer edge",
    )
    parser.add_argument(
        "--tta",
        nargs="+",
        default=[],
        metavar="VIEW",
        help="average over the mirrored image (flip) and over other scales (0.75 1.25 ...)",
    )
    parser.add_argument("--inside", action="store_true", help="also draw the inside of the model")
    parser.add_argument("--max-frames", type=positive_integer, help="stop videos and cameras after this many frames")
    return parser


def build_run(arguments: argparse.Namespace) -> PredictionRunner:
    """Loads the model and returns the run that the command line describes."""
    accelerator = start_accelerator()
    if accelerator.mixed_precision != "no":
        raise ValueError(
            f"Give --dtype to this command, not --mixed_precision {accelerator.mixed_precision} to the launcher."
        )
    model = load_model(SEMForMultiTaskDensePrediction, arguments.model, dtype=getattr(torch, arguments.dtype))
    image_processor = load_image_processor(SEMImageProcessor, arguments.model)
    flip, scales = parse_augmentations(arguments.tta)
    settings = {
        "dtype": arguments.dtype,
        "tile": arguments.tile,
        "flip": flip,
        "scales": scales,
        "inside": arguments.inside,
        "max_frames": arguments.max_frames,
        "version": version("transformers-sem"),
    }
    digest = hash_model(model, image_processor)
    digest.update(repr(settings).encode())
    return PredictionRunner(
        Predictor(
            model=model.to(accelerator.device),
            image_processor=image_processor,
            batch_size=arguments.batch_size,
            tile=arguments.tile,
            flip=flip,
            scales=scales,
            folder=arguments.output,
        ),
        OutputFolder(
            arguments.output, {"model": arguments.model, **settings}, digest.hexdigest(), model.config.task_id2label
        ),
        accelerator,
        arguments.inside,
        arguments.max_frames,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Finds the inputs, predicts them, and lists those that cannot be read."""
    parsed = build_parser().parse_args(arguments)
    with plain_errors():
        if parsed.output.is_file():
            raise ValueError(f"--output is a folder for the results; got the file {parsed.output}. Name another.")
        items = find_inputs(parsed.input, parsed.output)
        run = build_run(parsed)
        is_main = run.accelerator.is_main_process
        with locked(parsed.output / ".lock", "One run writes to a folder at a time") if is_main else nullcontext():
            run.accelerator.wait_for_everyone()  # the folder exists
            summary = run.run(items)
    run.accelerator.print(f"Results are in {parsed.output}/.")
    run.accelerator.print(summary, file=sys.stderr if summary.failures else sys.stdout)
    run.accelerator.end_training()
    if summary.failures:
        sys.exit(1)


if __name__ == "__main__":
    main()

"""Predict every task for photos and videos of any size.

    python scripts/predict.py --model runs/quickstart --input photo.jpg folder "shots/**/*.png" film.mp4 --output predictions
    accelerate launch scripts/predict.py --model runs/quickstart --input folder --batch-size 8 --dtype bfloat16

Writes for each photo NAME: panels/NAME.png, in colour; maps/TASK/NAME.png, the values (depth in millimetres, 16 bits; class
ids with a palette; normals as RGB; probabilities in 8 bits); raw/NAME.npz, the maps in metres, unit vectors, ids and
probabilities; json/NAME.json, the classes with their areas, the range of depth and so on. For a video or a camera (--input 0,
until Ctrl-C) videos/NAME.mp4, the frames beside their maps.

Folders are searched with the folders in them. What cannot be read is named at the end, and the exit code is then 1. The same
command again does only what is missing, or has changed.
"""

import argparse
import sys
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.evaluation.evaluator import hash_model
from transformers_sem.inference.inputs import find_inputs
from transformers_sem.inference.outputs import OutputFolder
from transformers_sem.inference.predictor import Predictor, parse_augmentations
from transformers_sem.inference.runner import PredictionRunner
from transformers_sem.utils.arguments import positive_integer
from transformers_sem.utils.errors import plain_errors


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of a trained model")
    parser.add_argument(
        "--input", required=True, nargs="+", help="photos, videos, folders of them, patterns, numbers of cameras"
    )
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder to write to")
    parser.add_argument("--batch-size", type=positive_integer, default=1, help="images that a rank sees at once")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="precision")
    parser.add_argument(
        "--tile", type=positive_integer, metavar="SIZE", help="cut photos into overlapping tiles, SIZE the longer edge"
    )
    parser.add_argument(
        "--tta",
        nargs="+",
        default=[],
        metavar="LOOK",
        help="also look at the mirror image (flip) and at other scales (0.75 1.25 ...), and average",
    )
    parser.add_argument("--inside", action="store_true", help="also draw what goes on inside the model")
    parser.add_argument("--max-frames", type=positive_integer, help="stop videos and cameras after so many frames")
    return parser.parse_args()


def build_run(arguments: argparse.Namespace) -> PredictionRunner:
    """Load the model and say how it is used."""
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # or ranks on CPUs would not find each other
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=30))],  # one rank may have a long video
    )
    if accelerator.mixed_precision != "no":
        raise ValueError(
            f"Give --dtype to this script, not --mixed_precision {accelerator.mixed_precision} to the launcher."
        )
    model = SEMForMultiTaskDensePrediction.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype))
    image_processor = SEMImageProcessor.from_pretrained(arguments.model)
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
            model=model.to(accelerator.device).eval(),
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


def main() -> None:
    """Find, predict, write, and say what could not be read."""
    arguments = parse_arguments()
    with plain_errors():
        items = find_inputs(arguments.input, arguments.output)
        run = build_run(arguments)
        arguments.output.mkdir(parents=True, exist_ok=True)
        summary = run.run(items)
    run.accelerator.print(f"Results are in {arguments.output}/.")
    run.accelerator.print(summary, file=sys.stderr if summary.failures else sys.stdout)
    run.accelerator.end_training()
    sys.exit(1 if summary.failures else 0)


if __name__ == "__main__":
    main()

"""Export a trained model to ONNX, for any image size, with an example that needs no torch.

    transformers-sem export --model runs/quickstart --output onnx
    transformers-sem export --model runs/swin_tiny_nyud_v2 --output onnx --size 448 576

Writes model.onnx, preprocessor_config.json, config.json and the example run_onnx.py. ONNX Runtime first predicts images of two
sizes, and the folder appears only if its predictions agree with those of the model. With --size the graph takes images of that
size only. Some encoders need this because their layout depends on the image size: the windows of Swin, the positions of timm's
DINOv3.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..utils.arguments import positive_integer
from ..utils.errors import plain_errors
from ..utils.extras import require
from ..utils.loading import load_image_processor, load_model
from .arguments import command_parser


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    parser = command_parser("export", __doc__)
    parser.add_argument("--model", required=True, help="folder or Hub name of a trained model")
    parser.add_argument("--output", type=Path, default=Path("onnx"), help="new folder to write to")
    parser.add_argument("--size", type=positive_integer, nargs=2, metavar=("HEIGHT", "WIDTH"), help="only this size")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads the model, exports it, compares the graph with it, and moves the folder into place."""
    parsed = build_parser().parse_args(arguments)
    with plain_errors():
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require(package, "onnx")
        from ..export.onnx import EXAMPLE, export_folder

        if parsed.output.exists():
            raise ValueError(
                f"--output must be a new folder; {str(parsed.output)!r} exists. Remove it or name another."
            )
        model = load_model(SEMForMultiTaskDensePrediction, parsed.model)
        image_processor = load_image_processor(SEMImageProcessor, parsed.model)
        parsed.output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=parsed.output.parent, prefix=".unfinished_") as unfinished:
            folder = Path(unfinished, "onnx")
            folder.mkdir()
            differences = export_folder(model, image_processor, folder, parsed.size and tuple(parsed.size))
            os.replace(folder, parsed.output)
    for (height, width), difference in differences.items():
        print(f"{height} x {width}: largest difference to the model {difference:.2g}")
    print(f"Written: {parsed.output}/. Try: python {parsed.output}/{EXAMPLE.name} photo.jpg")


if __name__ == "__main__":
    main()

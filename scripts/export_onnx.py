"""Export a trained model to ONNX, for any image size, with an example that needs no torch.

    python scripts/export_onnx.py --model runs/quickstart --output onnx
    python scripts/export_onnx.py --model runs/swin_tiny_nyud_v2 --output onnx --size 448 576

Writes model.onnx, preprocessor_config.json, config.json and run_onnx.py, the example. Before anything is there under its
name, ONNX Runtime predicts images, of two sizes, and has to agree with the model. With --size the graph takes images of that
size alone, which is all that some encoders can do: Swin's windows, or the positions of timm's DINOv3, are laid out by size.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.onnx import OnnxExporterError

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.utils.arguments import positive_integer
from transformers_sem.utils.errors import plain_errors


TOLERANCE = 1e-3
FIXED_SIZE = "--size HEIGHT WIDTH fixes what an encoder lays out by the size"
EXAMPLE = Path(__file__).parent / "examples" / "run_onnx.py"


class Logits(nn.Module):
    """A model that gives its logits as a tuple, in the order of its tasks."""

    def __init__(self, model: SEMForMultiTaskDensePrediction):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """`(B, 3, H, W)` -> `(B, C_t, H / 4, W / 4)` of each task."""
        return tuple(self.model(pixel_values).logits.values())


def check_encoder(model: SEMForMultiTaskDensePrediction) -> None:
    """Refuses at once what torch.export would ponder for hours.

    Raises:
        ValueError: If the encoder lays out windows.
    """
    windowed = [type(part).__name__ for part in model.sem.backbone.modules() if "Swin" in type(part).__name__]
    if windowed:
        raise ValueError(
            f"A graph for any image size cannot have windows that are laid out by the size; this encoder is {windowed[0]}. "
            "Give --size HEIGHT WIDTH for a graph of that size, or take an encoder such as ConvNeXt or ViT."
        )


def export(model: SEMForMultiTaskDensePrediction, path: Path, size: tuple[int, int] | None) -> None:
    """Writes the graph, with free batch size and, without `size`, free height and width.

    Raises:
        ValueError: If the encoder cannot be exported so.
    """
    if size is None:
        check_encoder(model)
    # written out: of fused attention, torch.export cannot prove that a batch of any size has the strides it needs
    model.set_attn_implementation("eager")
    divisor = model.sem.size_divisor
    images = torch.zeros(2, model.config.backbone_config.num_channels, *(size or (2 * divisor, 3 * divisor)))
    free = dict.fromkeys((0,) if size else (0, 2, 3), torch.export.Dim.DYNAMIC)
    try:
        torch.onnx.export(
            Logits(model).eval(),
            (images,),
            path,
            input_names=["pixel_values"],
            output_names=model.config.tasks,
            dynamic_shapes=(free,),
            dynamo=True,
            verbose=False,
        )
    except OnnxExporterError as error:
        raise ValueError(
            "The encoder must be one that torch.export can follow, for any image size such as ConvNeXt, ViT or DINOv2; try "
            f"--size HEIGHT WIDTH. Of this one it says: {str(error.__cause__ or error).splitlines()[0]}"
        ) from error


@torch.no_grad()
def largest_difference(model: SEMForMultiTaskDensePrediction, path: Path, size: tuple[int, int]) -> float:
    """How far ONNX Runtime is from the model on an image of noise.

    Raises:
        ValueError: If it cannot run the graph on an image of that size.
    """
    images = torch.randn(1, model.config.backbone_config.num_channels, *size)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    try:
        exported = session.run(model.config.tasks, {"pixel_values": images.numpy()})
    except Exception as error:  # the classes of its errors are not public
        raise ValueError(
            f"ONNX Runtime cannot run the graph on {size[0]} x {size[1]} pixels; nothing was written. {FIXED_SIZE}: {error}"
        ) from error
    logits = [values.numpy() for values in model(images).logits.values()]
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(logits, exported, strict=True))


def export_folder(
    model: SEMForMultiTaskDensePrediction,
    image_processor: SEMImageProcessor,
    folder: Path,
    size: tuple[int, int] | None = None,
) -> None:
    """Writes everything to a folder, and checks it.

    Raises:
        ValueError: If ONNX Runtime does not agree with the model.
    """
    export(model, folder / "model.onnx", size)
    if size is not None:  # the example then brings every photo to that size
        image_processor.do_resize, image_processor.do_pad = True, False
        image_processor.size = {"height": size[0], "width": size[1]}
    image_processor.save_pretrained(folder)
    model.config.save_pretrained(folder)
    shutil.copy(EXAMPLE, folder)
    height, width = image_processor.size["height"], image_processor.size["width"]
    for checked in [size] if size else [(height, width), (height // 2 + 1, width // 2 + 3)]:
        difference = largest_difference(model, folder / "model.onnx", checked)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"ONNX Runtime must agree with the model to {TOLERANCE:g}; on {checked[0]} x {checked[1]} pixels it is "
                f"{difference:.2g} away. Nothing was written. {FIXED_SIZE}."
            )
        print(f"{checked[0]} x {checked[1]}: largest difference to the model {difference:.2g}")


def main() -> None:
    """Load, export, check, move into place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of a trained model")
    parser.add_argument(
        "--output", type=Path, default=Path("onnx"), help="folder to write, which must not be there yet"
    )
    parser.add_argument("--size", type=positive_integer, nargs=2, metavar=("HEIGHT", "WIDTH"), help="this size alone")
    arguments = parser.parse_args()
    with plain_errors():
        if arguments.output.exists():
            raise ValueError(
                f"--output must be a new folder; {str(arguments.output)!r} is there. Remove it or name another."
            )
        model = SEMForMultiTaskDensePrediction.from_pretrained(arguments.model).eval()
        image_processor = SEMImageProcessor.from_pretrained(arguments.model)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=arguments.output.parent, prefix=".unfinished_") as unfinished:
            folder = Path(unfinished, "onnx")
            folder.mkdir()
            export_folder(model, image_processor, folder, arguments.size and tuple(arguments.size))
            os.replace(folder, arguments.output)
    print(f"Written: {arguments.output}/. Try: python {arguments.output}/{EXAMPLE.name} photo.jpg")


if __name__ == "__main__":
    main()

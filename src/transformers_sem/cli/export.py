"""Export a trained model to ONNX, for any image size, with an example that needs no torch, or as a page for the browser.

    transformers-sem export --model runs/quickstart --output onnx
    transformers-sem export --model runs/swin_tiny_nyud_v2 --output onnx --size 448 576
    transformers-sem export --model runs/quickstart --precisions fp16 int8 --calibration photos --evaluate
    transformers-sem export --model runs/quickstart --web page

Writes model.onnx, preprocessor_config.json, config.json and the example run_onnx.py. ONNX Runtime first predicts images of two
sizes, and the folder appears only if its predictions agree with those of the model. With --size the graph takes images of that
size only: smaller ones are padded and larger ones shrunk, as the image processor of the model does, or all are stretched. Some
encoders need this because their layout depends on the image size: the windows of Swin, the positions of timm's DINOv3.

--precisions adds smaller graphs. int8 is dynamic, or static with the images of --calibration, which encoders of convolutions
need. export.json says how large each graph is, how far its logits are from the model's and, with --evaluate, its scores.

--web writes a static page instead: it predicts images and the frames of a camera in the browser. The folder is a whole static
Hub Space, and transformers.js loads its graphs. The page takes transformers.js from a CDN, or with --runtime from a copy of the
one in a node_modules folder.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ..demo.web_page import check_runtime, write_page
from ..evaluation.config import EvaluationConfig
from ..image_processing_sem import MAX_EDGE, SEMImageProcessor, is_edge
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..utils.environment import save_report, starting_commit
from ..utils.errors import plain_errors
from ..utils.extras import require
from ..utils.loading import load_image_processor, load_model
from .arguments import command_parser, positive_integer


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    parser = command_parser("export", __doc__)
    parser.add_argument("--model", required=True, help="folder or Hub name of a trained model")
    outputs = parser.add_mutually_exclusive_group()
    outputs.add_argument("--output", type=Path, default=Path("onnx"), help="new folder to write to")
    outputs.add_argument("--web", type=Path, metavar="FOLDER", help="write a page for the browser to this new folder")
    parser.add_argument(
        "--runtime", type=Path, metavar="NODE_MODULES", help="of --web: copy transformers.js from here"
    )
    parser.add_argument("--size", type=positive_integer, nargs=2, metavar=("HEIGHT", "WIDTH"), help="only this size")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=("fp32", "fp16", "int8"),
        help="of the graphs; fp32 is always written (default: fp32, and all that are possible with --web)",
    )
    parser.add_argument("--calibration", type=Path, metavar="FOLDER", help="images for a static int8 graph")
    parser.add_argument(
        "--evaluate", nargs="*", metavar="key=value", help="score every graph, with settings as for `evaluate`"
    )
    return parser


def check_arguments(parsed: argparse.Namespace) -> Path:
    """Returns the folder to write to.

    Raises:
        ValueError: If it exists, or options do not go together.
    """
    folder = parsed.web or parsed.output
    if folder.exists():
        option = "--web" if parsed.web else "--output"
        raise ValueError(f"{option} must be a new folder; {str(folder)!r} exists. Remove it or name another.")
    if parsed.calibration is not None and not parsed.calibration.is_dir():
        raise ValueError(f"--calibration must be a folder of images; got {str(parsed.calibration)!r}.")
    if parsed.calibration is not None and parsed.web is None and "int8" not in (parsed.precisions or ()):
        raise ValueError("--calibration is for int8; got no int8. Add it to --precisions, or leave the folder out.")
    if parsed.size and not all(map(is_edge, parsed.size)):
        raise ValueError(f"--size is a height and a width of 1 to {MAX_EDGE} pixels; got {parsed.size}.")
    if parsed.runtime is not None:
        if parsed.web is None:
            raise ValueError("--runtime is for the page of --web; got no --web. Name its folder with --web FOLDER.")
        check_runtime(parsed.runtime)
    return folder


def write(parsed: argparse.Namespace, folder: Path) -> dict[str, dict]:
    """Writes everything to an empty folder and returns the description of its graphs."""
    from ..export.folder import export_folder, possible_precisions
    from ..export.graph import Graph, graph_scores, load_scored_rows

    config = None if parsed.evaluate is None else EvaluationConfig.load(parsed.model, parsed.evaluate)
    model = load_model(SEMForMultiTaskDensePrediction, parsed.model)
    image_processor = load_image_processor(SEMImageProcessor, parsed.model)
    scored = None if config is None else load_scored_rows(model, config)
    precisions = parsed.precisions or (possible_precisions(model, parsed.calibration) if parsed.web else [])
    graphs = export_folder(
        model,
        image_processor,
        folder,
        parsed.size and tuple(parsed.size),
        precisions=precisions,
        calibration=parsed.calibration,
        is_web=parsed.web is not None,
    )
    if scored is not None:
        for facts in graphs.values():
            facts["scores"] = graph_scores(Graph(folder / facts["file"], model.config), image_processor, *scored)
    if parsed.web is not None:
        name = Path(parsed.model).name if Path(parsed.model).is_dir() else parsed.model
        write_page(folder, model, name, [*graphs], size=parsed.size, node_modules=parsed.runtime)
    save_report(folder / "export.json", model=parsed.model, size=parsed.size, graphs=graphs)
    return graphs


def format_graphs(graphs: dict[str, dict]) -> str:
    """Returns a line about each graph, and a table of their scores."""
    lines = []
    for facts in graphs.values():
        lines.append(f"{facts['file']}: {facts['megabytes']} MB")
        lines += [
            f"  {size}: largest difference to the model {value:.2g}"
            for size, value in facts["largest_difference"].items()
        ]
    scores = {name: facts["scores"] for name, facts in graphs.items() if "scores" in facts}
    if scores:
        lines.append(f"{'':28}" + "".join(f"{name:>10}" for name in scores))
        for key in scores["fp32"]:
            lines.append(f"{key:28}" + "".join(f"{values[key]:>10.4f}" for values in scores.values()))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads the model, exports it, compares the graphs with it, and moves the folder into place."""
    parsed = build_parser().parse_args(arguments)
    starting_commit()  # before files change
    with plain_errors():
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require(package, "onnx")
        folder = check_arguments(parsed)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=".unfinished_") as unfinished:
            complete = Path(unfinished, "export")
            complete.mkdir()
            graphs = write(parsed, complete)
            os.replace(complete, folder)
    print(format_graphs(graphs))
    if parsed.web is not None:
        print(f"Written: {folder}/. See it with: python -m http.server --directory {folder}")
    else:
        print(f"Written: {folder}/. Try: python {folder}/run_onnx.py photo.jpg")


if __name__ == "__main__":
    main()

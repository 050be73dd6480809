"""Serve the demo page: upload an image in the browser, see all maps.

    transformers-sem demo
    transformers-sem demo --model USER/NAME --port 8000
    transformers-sem demo --host 0.0.0.0 --allow-host demo.example.org
    transformers-sem demo --space my_space

Without --model it shows the quickstart model. The page answers only this machine unless --host says otherwise, and only under
the name of --host, as localhost, as 127.0.0.1, and under the names of --allow-host; with 0.0.0.0 under any IP address. With --space
nothing is served: the command writes a folder that is a complete Hub Space, ready for upload.
"""

import argparse
import os
import shutil
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .. import demo
from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..utils.errors import plain_errors
from ..utils.files import save_trained
from ..utils.loading import load_image_processor, load_model
from .arguments import command_parser, port_number, positive_integer


QUICKSTART = Path("runs/quickstart")
PACKAGE = Path(__file__).parents[1]
SPACE = Path(demo.__file__).with_name("space")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    parser = command_parser("demo", __doc__)
    parser.add_argument("--model", help=f"folder or Hub name of a trained model (default: {QUICKSTART})")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for every machine")
    parser.add_argument("--port", type=port_number, help="default: the first free one from 7860")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="answer to this name too; can be repeated"
    )
    parser.add_argument("--max-upload-mb", type=positive_integer, default=20, help="larger files are refused")
    parser.add_argument("--space", type=Path, help="write a Hub Space to this new folder instead")
    return parser


def write_space(model: str, folder: Path) -> None:
    """Writes the page, the package and a model as one folder, which appears once it is complete.

    Raises:
        FileExistsError: If the folder exists.
    """
    if folder.exists():
        raise FileExistsError(
            f"A Space is written to a new folder; {str(folder)!r} exists. Name another, or remove it."
        )
    weights = load_model(SEMForMultiTaskDensePrediction, model)
    image_processor = load_image_processor(SEMImageProcessor, model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unfinished_") as temporary:
        space = Path(temporary) / "space"
        shutil.copytree(SPACE, space)
        shutil.copytree(PACKAGE, space / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        models = space / "models" / Path(model).resolve().name  # a name for "." too
        models.mkdir(parents=True)
        save_trained(weights, image_processor, models)
        os.replace(space, folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Checks that there is a model, and serves the page or writes the Space."""
    parsed = build_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: close, and leave no temporary file
    with plain_errors():
        if parsed.model is None and not any(QUICKSTART.glob("*.safetensors")):
            raise FileNotFoundError(
                f"There is no trained model in {str(QUICKSTART)!r}. Train one in minutes with "
                "`transformers-sem train --config quickstart`, or name another with --model."
            )
        model = parsed.model or str(QUICKSTART)
        if parsed.space is not None:
            write_space(model, parsed.space)
            print(f"Written: {parsed.space}, a complete Space. Try it with `python {parsed.space / 'app.py'}`.")
            return
        from ..demo import page  # imports gradio, or names its extra

        page.launch(
            model,
            host=parsed.host,
            port=parsed.port,
            max_upload_mb=parsed.max_upload_mb,
            allow_hosts=parsed.allow_host,
        )


if __name__ == "__main__":
    main()

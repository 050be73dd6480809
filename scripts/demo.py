"""A page in the browser: drop a photo, see all maps.

    python scripts/demo.py
    python scripts/demo.py --model USER/NAME --port 8000
    python scripts/demo.py --space my_space

It shows the quickstart model where no other is named, and answers this machine alone unless --host says otherwise. With --space
it serves nothing and writes a folder that is a whole Hub Space: upload it as it is.
"""

import argparse
import os
import shutil
import signal
from pathlib import Path
from types import ModuleType

import transformers_sem
from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.utils.arguments import positive_integer
from transformers_sem.utils.errors import plain_errors
from transformers_sem.utils.files import save_trained


QUICKSTART = Path("runs/quickstart")
SPACE = Path(__file__).parent / "space"


def write_space(model: str, folder: Path) -> None:
    """Writes page, package and model as one folder, beside and renamed.

    Raises:
        FileExistsError: If the folder is there already.
    """
    if folder.exists():
        raise FileExistsError(
            f"A Space is written to a new folder; {str(folder)!r} exists. Name another, or remove it."
        )
    weights = SEMForMultiTaskDensePrediction.from_pretrained(model)
    unfinished = folder.with_name(f"unfinished_{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(SPACE, unfinished)
    without_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(transformers_sem.__file__).parent, unfinished / "transformers_sem", ignore=without_caches)
    models = unfinished / "models" / Path(model).name
    models.mkdir(parents=True)
    save_trained(weights, SEMImageProcessor.from_pretrained(model), models)
    os.replace(unfinished, folder)


def main() -> None:
    """Check, serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help=f"folder or Hub name of a trained model (default: {QUICKSTART})")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for everybody")
    parser.add_argument("--port", type=positive_integer, help="default: the first free one from 7860")
    parser.add_argument("--max-upload-mb", type=positive_integer, default=20, help="larger files are refused")
    parser.add_argument("--space", type=Path, help="write a Hub Space to this new folder instead")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: close, and leave no temporary file
    with plain_errors():
        if arguments.model is None and not (QUICKSTART / "config.json").exists():
            raise FileNotFoundError(
                f"There is no trained model in {str(QUICKSTART)!r}. Train it with `make train` (minutes), or name another "
                "with --model."
            )
        model = arguments.model or str(QUICKSTART)
        if arguments.space is not None:
            write_space(model, arguments.space)
            print(f"Written: {arguments.space}, a whole Space. Try it with `python {arguments.space / 'app.py'}`.")
            return
        page = import_page()
        page.launch(model, host=arguments.host, port=arguments.port, max_upload_mb=arguments.max_upload_mb)


def import_page() -> ModuleType:
    """The module of the page.

    Raises:
        ValueError: If Gradio is not installed.
    """
    try:
        from transformers_sem.demo import page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("The page needs Gradio: pip install 'transformers-sem[demo]'.") from error
    return page


if __name__ == "__main__":
    main()

"""A page in the browser: drop a photo, see all maps.

    python scripts/demo.py
    python scripts/demo.py --model USER/NAME --port 8000

It shows the quickstart model where no other is named, and answers this machine alone unless --host says otherwise.
"""

import argparse
from pathlib import Path

from transformers_sem.training.configuration import plain_errors, positive_integer


QUICKSTART = Path("runs/quickstart")


def main() -> None:
    """Check, serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help=f"folder or Hub name of a trained model (default: {QUICKSTART})")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for everybody")
    parser.add_argument("--port", type=positive_integer, help="default: the first free one from 7860")
    parser.add_argument("--max-upload-mb", type=positive_integer, default=20, help="larger files are refused")
    arguments = parser.parse_args()
    with plain_errors():
        if arguments.model is None and not (QUICKSTART / "config.json").exists():
            raise FileNotFoundError(
                f"There is no trained model in {str(QUICKSTART)!r}. Train it with `make train` (minutes), or name another "
                "with --model."
            )
        launch(
            arguments.model or QUICKSTART,
            host=arguments.host,
            port=arguments.port,
            max_upload_mb=arguments.max_upload_mb,
        )


def launch(*arguments, **options) -> None:
    """Imports the page, and serves it.

    Raises:
        ValueError: If Gradio is not installed.
    """
    try:
        from transformers_sem.demo import page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("The page needs Gradio: pip install 'transformers-sem[demo]'.") from error
    page.launch(*arguments, **options)


if __name__ == "__main__":
    main()

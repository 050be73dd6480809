"""Render the model cards of a folder.

    transformers-sem cards [--folder model_cards] [--add runs/quickstart]

Every card is rendered from the config.json and evaluation.json beside it; of a run on several datasets, from the report of each.
--add first copies these files of a finished run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..hub.card import add_checkpoint, render_cards
from ..utils.errors import plain_errors
from ..utils.files import write_text
from .arguments import command_parser


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    parser = command_parser("cards", __doc__)
    parser.add_argument("--folder", type=Path, default=Path("model_cards"), help="default: %(default)s")
    parser.add_argument("--add", type=Path, metavar="RUN", help="folder of a finished training run")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Copies the files of the added run, and renders all cards."""
    parsed = build_parser().parse_args(arguments)
    with plain_errors():
        if parsed.add:
            add_checkpoint(parsed.add, parsed.folder)
        cards = render_cards(parsed.folder)
        if not cards:
            raise FileNotFoundError(
                f"There is no checkpoint in {str(parsed.folder)!r}: no folder of it has an evaluation.json. Add a finished "
                "run with --add."
            )
        for path, text in cards.items():
            write_text(path, text)
            print(path)


if __name__ == "__main__":
    main()

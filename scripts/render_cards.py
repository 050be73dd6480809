"""Render the model cards, and the recipes of configurations that nobody has trained.

    python scripts/render_cards.py [--add runs/quickstart]

Every card in model_cards/ is made of the config.json and evaluation.json beside it. --add takes those of a finished run
first.
"""

import argparse
from pathlib import Path

from transformers_sem.hub.cards import add_checkpoint, render_cards, write_pages
from transformers_sem.utils.errors import plain_errors


REPOSITORY = Path(__file__).resolve().parents[1]
CARDS = REPOSITORY / "model_cards"


def main() -> None:
    """Copy, render, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=Path, metavar="RUN", help="folder that scripts/train.py wrote")
    arguments = parser.parse_args()
    with plain_errors():
        if arguments.add:
            add_checkpoint(arguments.add, CARDS)
        pages = render_cards(CARDS, REPOSITORY / "scripts" / "configs")
        write_pages(pages, CARDS)
    for path in pages:
        print(path.relative_to(REPOSITORY))


if __name__ == "__main__":
    main()

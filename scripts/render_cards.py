"""The command `transformers-sem cards`, for `python scripts/render_cards.py`."""

from transformers_sem.cli.cards import main


if __name__ == "__main__":
    main()

"""The command `transformers-sem push`, for `python scripts/push_to_hub.py`."""

from transformers_sem.cli.push import main


if __name__ == "__main__":
    main()

"""The command `transformers-sem demo`, for `python scripts/demo.py`."""

from transformers_sem.cli.demo import main


if __name__ == "__main__":
    main()

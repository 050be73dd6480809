"""The command `transformers-sem ablation`, for `python scripts/ablation.py`."""

from transformers_sem.cli.ablation import main


if __name__ == "__main__":
    main()

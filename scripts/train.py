"""The command `transformers-sem train`, for `python scripts/train.py` and `accelerate launch scripts/train.py`."""

from transformers_sem.cli.train import main


if __name__ == "__main__":
    main()

"""The command `transformers-sem predict`, for `python scripts/predict.py`."""

from transformers_sem.cli.predict import main


if __name__ == "__main__":
    main()

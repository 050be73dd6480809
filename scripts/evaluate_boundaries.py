"""The command `transformers-sem evaluate-boundaries`, for `python scripts/evaluate_boundaries.py`."""

from transformers_sem.cli.evaluate_boundaries import main


if __name__ == "__main__":
    main()

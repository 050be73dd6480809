"""The command `transformers-sem benchmark`, for `python scripts/benchmark.py`."""

from transformers_sem.cli.benchmark import main


if __name__ == "__main__":
    main()

"""`python -m transformers_sem.cli.benchmark`."""

from . import main


if __name__ == "__main__":
    main()

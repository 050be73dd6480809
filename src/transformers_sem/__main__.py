"""`python -m transformers_sem COMMAND`, the same as `transformers-sem COMMAND`."""

from .cli.main import main


if __name__ == "__main__":
    main()

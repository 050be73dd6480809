"""The command `transformers-sem evaluate`; a file named evaluate.py here would hide the library `evaluate`."""

from transformers_sem.cli.evaluate import main


if __name__ == "__main__":
    main()

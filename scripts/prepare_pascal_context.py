"""The command `transformers-sem prepare pascal_context`, for `python scripts/prepare_pascal_context.py`."""

import sys

from transformers_sem.cli.prepare import main


if __name__ == "__main__":
    main(["pascal_context", *sys.argv[1:]])

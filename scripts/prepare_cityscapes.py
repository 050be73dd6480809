"""The command `transformers-sem prepare cityscapes`, for `python scripts/prepare_cityscapes.py`."""

import sys

from transformers_sem.cli.prepare import main


if __name__ == "__main__":
    main(["cityscapes", *sys.argv[1:]])

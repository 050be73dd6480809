"""The command `transformers-sem prepare nyud_v2`, for `python scripts/prepare_nyud_v2.py`."""

import sys

from transformers_sem.cli.prepare import main


if __name__ == "__main__":
    main(["nyud_v2", *sys.argv[1:]])

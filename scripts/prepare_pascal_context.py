"""Turn PASCAL-Context, as it lies on your disk, into Parquet shards that load fast, with a data set card.

    python scripts/prepare_pascal_context.py SOURCE --verify
    python scripts/prepare_pascal_context.py SOURCE --output FOLDER --preview preview.png

SOURCE is the folder PASCALContext or PASCAL_MT, or a tar archive of it. What is missing and can be computed is, and is marked as derived.
--verify reads every file and says what is wrong with which. A run that was interrupted goes on with the same command.
"""

from transformers_sem.data.pascal_context import find_source
from transformers_sem.data.prepare import build_parser, run
from transformers_sem.utils.errors import plain_errors


def main() -> None:
    """Recognise, check, write."""
    arguments = build_parser(__doc__).parse_args()
    with plain_errors():
        for line in run(find_source, arguments):
            print(line, flush=True)


if __name__ == "__main__":
    main()

"""."""

import argparse
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import StrictDataclassError


def check_keys(kind: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Names what is given but not known.

    Raises:
        ValueError: If there is any.
    """
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"Unknown {kind} {unknown}; known are {list(known)}.")


def positive_integer(text: str) -> int:
    """For `argparse`: 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number from 1 is needed; got {text!r}")
    return int(text)


def json_path(text: str) -> Path:
    """For `argparse`: a file that ends in .json; other files of the same name go beside it."""
    path = Path(text)
    if path.suffix != ".json" or path.is_dir():
        raise argparse.ArgumentTypeError(f"a file that ends in .json is needed; got {text!r}")
    return path


@contextmanager
def plain_errors() -> Iterator[None]:
    """Around the parts of a script: what a person can mend is one line that says how, not a traceback."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError, StrictDataclassError) as error:
        sys.exit("error: " + " ".join(str(error).split()))
    except DatasetGenerationError as error:
        sys.exit("error: " + " ".join(str(error.__cause__ or error).split()))
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. The same command goes on where this one was.\n")
        sys.exit(128 + signal.SIGINT)

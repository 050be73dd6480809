"""Errors of users as one plain line: which rule, which value, which remedy."""

import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import StrictDataclassError

from .extras import MissingExtraError


def check_keys(kind: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Checks that all names are known.

    Args:
        kind (`str`): What the names are, for the error message.
        given (`Iterable[str]`): The names to check.
        known (`Sequence[str]`): The known names.

    Raises:
        ValueError: If a name is unknown.
    """
    unknown = sorted(set(given) - set(known), key=str)  # YAML has keys that are no text
    if unknown:
        raise ValueError(f"Unknown {kind} {unknown}; known are {list(known)}.")


@contextmanager
def plain_errors() -> Iterator[None]:
    """Ends the program with one line, not a traceback, where an error is the user's to correct."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError, MissingExtraError, StrictDataclassError) as error:
        sys.exit(f"error: {describe_error(error)}")
    except DatasetGenerationError as error:
        sys.exit(f"error: {describe_error(error.__cause__ or error)}")
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. The same command goes on from what is finished.\n")
        sys.exit(128 + signal.SIGINT)


def describe_error(error: BaseException) -> str:
    """Returns the message of an error on one line.

    huggingface_hub wraps what a field or a validator of a dataclass raised; the wrapped messages are the readable ones.
    """
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        return describe_error(error.__cause__)
    message = " ".join(str(error).split())
    if isinstance(error, TypeError) and isinstance(error.__cause__, TypeError):  # an item of a list or a dictionary
        return f"{message}: {describe_error(error.__cause__)}"
    return message

"""Types of command-line arguments for `argparse`."""

import argparse
from pathlib import Path


def positive_integer(text: str) -> int:
    """Parses a whole number from 1.

    Raises:
        argparse.ArgumentTypeError: If the text is anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number from 1 is needed; got {text!r}")
    return int(text)


def port_number(text: str) -> int:
    """Parses the number of a port.

    Raises:
        argparse.ArgumentTypeError: If the text is anything else.
    """
    port = positive_integer(text)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"a port from 1 to 65535 is needed; got {text!r}")
    return port


def json_path(text: str) -> Path:
    """Parses the path of a file that ends in .json; other files of the same name go beside it.

    Raises:
        argparse.ArgumentTypeError: If the path has another ending or is a folder.
    """
    path = Path(text)
    if path.suffix != ".json" or path.is_dir():
        raise argparse.ArgumentTypeError(f"a file that ends in .json is needed; got {text!r}")
    return path

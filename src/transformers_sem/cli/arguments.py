"""Layout of the commands' parsers, types of their arguments, and recipes by name."""

import argparse
from pathlib import Path


RECIPES_DIR = Path(__file__).parents[1] / "configs"


def command_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of a command, whose description is printed as it is written."""
    return argparse.ArgumentParser(
        prog=f"transformers-sem {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def find_recipe(name: str | Path) -> Path:
    """Returns the YAML file of a configuration.

    Args:
        name (`str` or `Path`): Path of a file, or the name of a recipe that comes with the package, such as "quickstart".

    Raises:
        FileNotFoundError: If there is no such file and no such recipe.
    """
    recipe = RECIPES_DIR / f"{name}.yaml"
    for path in (Path(name), recipe):
        if path.is_file():
            return path
    recipes = ", ".join(sorted(path.stem for path in RECIPES_DIR.glob("*.yaml")))
    raise FileNotFoundError(
        f"A configuration is a YAML file or the name of a recipe; got {str(name)!r}. The recipes are {recipes}."
    )


def positive_integer(text: str) -> int:
    """Parses a whole number from 1, of 32 bits.

    Raises:
        argparse.ArgumentTypeError: If the text is anything else.
    """
    if not text.isdecimal() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"a number from 1 to {2**31 - 1} is needed; got {text!r}")
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

"""Layout of the commands' parsers, and recipes by name."""

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

"""Optional dependencies of the package, its extras."""

from importlib import import_module
from types import ModuleType


class MissingExtraError(ImportError):
    """A package of an extra is not installed."""


def require(name: str, extra: str) -> ModuleType:
    """Imports a package that an extra brings.

    Args:
        name (`str`): Name to import, for example `"matplotlib"`.
        extra (`str`): The extra of `transformers-sem` that installs it.

    Returns:
        `ModuleType`: The module.

    Raises:
        MissingExtraError: If it is not installed. The message is one line that names the command to install it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"The package {error.name!r} is not installed; it comes with the extra {extra!r}. "
            f"Run pip install 'transformers-sem[{extra}]'."
        ) from error

"""Settings as nested dictionaries: YAML files and `key=value` overrides."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml


class SettingsLoader(yaml.SafeLoader):
    """YAML 1.1 loader that reads `1e-5` as a number, as YAML 1.2 does; PyYAML's own reads it as text."""


SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, source: str) -> Any:
    """Parses a YAML document.

    Args:
        text (`str`): The document.
        source (`str`): Where it comes from, for the error message.

    Raises:
        ValueError: If the text is not YAML.
    """
    try:
        return yaml.load(text, SettingsLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"{source!r} is not YAML: {error}") from error


def read_settings(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file of settings. An empty file has none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a YAML mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of settings {str(path)!r}. Check the path.")
    values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"A file of settings holds `key: value` lines; {str(path)!r} holds {values!r}.")
    return values


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Sets `key=value` overrides in nested settings, in place, and returns them.

    The value is YAML. A dot in the key reaches inside: `model.num_bases=32` sets `values["model"]["num_bases"]`.

    Raises:
        ValueError: If an override has another form, its value is not YAML, or its key reaches inside a plain value.
    """
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"An override has the form key=value; got {override!r}.")
        _set_nested(values, key.split("."), parse_yaml(text, override))
    return values


def _set_nested(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ValueError(f"`{'.'.join(keys)}` sets a field of `{key}`, which is {values!r} and has no fields.")
    values[keys[-1]] = value

"""Settings as nested dictionaries: YAML files and `key=value` overrides."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml


MERGE_TAG = "tag:yaml.org,2002:merge"
MAX_NESTING = 100
MAX_VALUES = 100_000  # a few lines of aliases can stand for more values than any memory holds


class SettingsLoader(yaml.SafeLoader):
    """YAML 1.1 loader of bounded depth and size that refuses repeated keys.

    It reads `1e-5` as a number, as YAML 1.2 does; PyYAML's own reads it as text.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Reads one value with all that it holds."""
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise yaml.YAMLError(f"it is nested more than {MAX_NESTING} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        """Reads the document."""
        node = super().get_single_node()
        if node is not None and count_values(node, {}) > MAX_VALUES:
            raise yaml.YAMLError(f"with its aliases it holds more than {MAX_VALUES} values")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Builds a mapping."""
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        # by value, because 1 and 01 are one key; << has none
        counts = Counter(key.value if key.tag == MERGE_TAG else self.construct_object(key) for key in keys)
        repeated = [key for key, count in counts.items() if count > 1]
        if repeated:
            raise yaml.YAMLError(f"each key appears once in a mapping; got {repeated} again{node.start_mark}")
        return super().construct_mapping(node, deep)


def count_values(node: yaml.Node, counts: dict[yaml.Node, float]) -> float:
    """Returns the number of values of a node, where an alias counts as often as it is used; one in itself is infinite."""
    if node not in counts:
        counts[node] = math.inf  # while its own values are counted
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        values = node.value if isinstance(node, yaml.SequenceNode) else [value for pair in pairs for value in pair]
        counts[node] = 1 + sum(count_values(value, counts) for value in values)
    return counts[node]


class SettingsDumper(yaml.SafeDumper):
    """YAML writer that quotes the text which `SettingsLoader` would read as a number."""


for yaml_class in (SettingsLoader, SettingsDumper):
    yaml_class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def format_yaml(values: dict[str, Any]) -> str:
    """Formats settings as a YAML document, which [`parse_yaml`] reads back as they are."""
    return yaml.dump(values, Dumper=SettingsDumper, sort_keys=False)


def parse_yaml(text: str | bytes, source: str) -> Any:
    """Parses a YAML document.

    Args:
        text (`str` or `bytes`): The document.
        source (`str`): Where it comes from, for the error message.

    Raises:
        ValueError: If the text is not YAML, is nested too deeply, repeats a key, or holds too many values.
    """
    try:
        return yaml.load(text, SettingsLoader)  # a SafeLoader
    # PyYAML raises several types: a `ValueError` for the date 2021-99-99, an `AttributeError` for `!!timestamp x`
    except Exception as error:
        raise ValueError(f"Cannot use {source}: it is not YAML; {error}. Correct it.") from error


def read_settings(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file of settings. An empty file has none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a YAML mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of settings {str(path)!r}. Check the path.")
    values = parse_yaml(path.read_bytes(), str(path))
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

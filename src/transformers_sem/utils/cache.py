"""Results that are computed once and kept beside the cache of `datasets`."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
from filelock import FileLock

from .files import write_text


class CachedResult:
    """A result in a JSON file, of one version of the package.

    Args:
        name (`str`): Kind of the result, a folder of the cache.
        key: Everything that the result depends on; its `repr` is hashed.
    """

    def __init__(self, name: str, key: Any):
        digest = hashlib.sha256(repr((key, version("transformers-sem"))).encode()).hexdigest()
        self.path = Path(datasets.config.HF_DATASETS_CACHE).expanduser() / "transformers_sem" / name / f"{digest}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def lock(self) -> FileLock:
        """Returns a lock, so that one process computes the result and the others wait for it."""
        return FileLock(self.path.with_suffix(".lock"))

    def read(self) -> Any:
        """Returns the result, or `None` where it is not known."""
        return json.loads(self.path.read_text()) if self.path.is_file() else None

    def write(self, value: Any) -> None:
        """Keeps the result."""
        write_text(self.path, json.dumps(value))

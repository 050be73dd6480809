"""What an interrupted evaluation keeps: the statistics of every finished image, in one small file."""

import logging
import sqlite3
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path

import numpy as np


logger = logging.getLogger(__name__)


class StatisticsFile:
    """Statistics of images by name, in SQLite: an image is there whole or not at all, whenever the process is killed.

    Args:
        path (`Path`): The file; made where there is none.
        fingerprint (`str`): What the statistics depend on besides the image, such as the model. A file of another
            fingerprint, or one that is damaged, is started anew, and a warning says so.
    """

    def __init__(self, path: Path, fingerprint: str):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open(path)
            known = self.connection.execute("SELECT value FROM fingerprint").fetchone()
        except sqlite3.DatabaseError as error:
            logger.warning("%s is no statistics file (%s); it is started anew.", path, error)
            path.unlink()
            self._open(path)
            known = None
        if known != (fingerprint,):
            if known is not None:
                logger.warning("%s belongs to another model or to other settings; it is started anew.", path)
            with self.connection:
                self.connection.execute("DELETE FROM images")
                self.connection.execute("DELETE FROM fingerprint")
                self.connection.execute("INSERT INTO fingerprint VALUES (?)", (fingerprint,))

    def _open(self, path: Path) -> None:
        self.connection = sqlite3.connect(path)
        with self.connection:
            self.connection.execute("CREATE TABLE IF NOT EXISTS fingerprint (value TEXT)")
            self.connection.execute("CREATE TABLE IF NOT EXISTS images (name TEXT PRIMARY KEY, statistics BLOB)")

    def __enter__(self) -> "StatisticsFile":
        return self

    def __exit__(self, *exception) -> None:
        self.connection.close()

    def names(self) -> set[str]:
        """Names of the images that are there."""
        return {name for (name,) in self.connection.execute("SELECT name FROM images")}

    def add(self, name: str, statistics: Mapping[str, np.ndarray]) -> None:
        """Keeps the statistics of an image."""
        buffer = BytesIO()
        np.savez_compressed(buffer, **statistics)
        with self.connection:
            self.connection.execute("INSERT OR REPLACE INTO images VALUES (?, ?)", (name, buffer.getvalue()))

    def __iter__(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        for name, data in self.connection.execute("SELECT name, statistics FROM images ORDER BY name"):
            with np.load(BytesIO(data), allow_pickle=False) as arrays:
                yield name, dict(arrays)

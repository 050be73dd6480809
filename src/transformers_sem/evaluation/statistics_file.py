"""What an interrupted evaluation keeps: the statistics of every finished image, in one small file."""

import logging
import sqlite3
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np


logger = logging.getLogger(__name__)

DAMAGE = (sqlite3.DatabaseError, BadZipFile, ValueError, OSError, EOFError, zlib.error)
HEADER = b"SQLite format 3\0"


APPLICATION_ID = 0x53454D31  # in the header of the file, so that nobody else's database is taken for one of ours


class StatisticsFile:
    """Statistics of images by name, in SQLite: an image is there whole or not at all, whenever the process is killed.

    Args:
        path (`Path`): The file; made where there is none. No other process can use it meanwhile.
        fingerprint (`str`): What the statistics depend on besides the image, such as the model. A file of another
            fingerprint, or one that is damaged, is started anew, and a warning says so.

    Raises:
        ValueError: If the file is another program's, is in use, or cannot be opened.
    """

    def __init__(self, path: Path, fingerprint: str):
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(path)
        try:
            known = self._open(path)
        except DAMAGE as error:
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                raise ValueError(f"Cannot use {path} ({error}). Is another evaluation writing there?") from error
            self.connection.close()
            logger.warning("%s is damaged (%s); it is started anew.", path, error)
            path.unlink()
            known = self._open(path)
        if known != (fingerprint,):
            if known is not None:
                logger.warning("%s belongs to another model or to other settings; it is started anew.", path)
            with self.connection:
                self.connection.execute("DELETE FROM images")
                self.connection.execute("DELETE FROM fingerprint")
                self.connection.execute("INSERT INTO fingerprint VALUES (?)", (fingerprint,))

    def _open(self, path: Path) -> tuple[str] | None:
        """Opens and locks the file, reads all of it, so that damage shows now, and returns its fingerprint."""
        self.connection = sqlite3.connect(path)
        self.connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        with self.connection:
            self.connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self.connection.execute("CREATE TABLE IF NOT EXISTS fingerprint (value TEXT)")
            self.connection.execute("CREATE TABLE IF NOT EXISTS images (name TEXT PRIMARY KEY, statistics BLOB)")
        deque(self, maxlen=0)
        return self.connection.execute("SELECT value FROM fingerprint").fetchone()

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


def _refuse_foreign(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"Statistics are kept in a file; {path} is a folder. Choose another name.")
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        header = file.read(72)
    if not header.startswith(HEADER) or header[68:] != APPLICATION_ID.to_bytes(4, "big"):
        raise ValueError(f"{path} exists and is no statistics file of ours. Remove it, or choose another name.")

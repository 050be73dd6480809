"""Statistics of finished images on disk, so that an interrupted evaluation continues where it stopped."""

import hashlib
import logging
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from torch import Tensor

from ..utils.files import atomic_write


logger = logging.getLogger(__name__)

# Errors of NumPy for a file that is cut off or overwritten
DAMAGE = (BadZipFile, ValueError, KeyError, OSError, EOFError, zlib.error)


class StatisticsFolder:
    """A folder with one compressed NumPy file per image, each written atomically.

    Args:
        folder (`Path`): The folder; `add` creates it.
        fingerprint (`str`): Everything that the statistics depend on besides the image, such as the model. Statistics of
            other fingerprints are removed, and a warning says so.

    Raises:
        ValueError: If `folder` is a file.
    """

    def __init__(self, folder: Path, fingerprint: str):
        if folder.exists() and not folder.is_dir():
            raise ValueError(
                f"Statistics are kept in a folder; {folder} is a file. Remove it, or choose another output."
            )
        self.folder = folder / hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
        for other in folder.glob("[0-9a-f]" * 16):
            if other != self.folder:
                logger.warning("The statistics in %s are of another model or other settings; they are removed.", other)
                shutil.rmtree(other, ignore_errors=True)

    def names(self) -> set[str]:
        """Returns the names of the finished images."""
        return {path.stem for path in self.folder.glob("*.npz") if not path.name.startswith("unfinished_")}

    def add(self, name: str, statistics: Mapping[str, np.ndarray | Tensor]) -> None:
        """Writes the statistics of an image; `name` is a file name without its suffix."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / f"{name}.npz") as unfinished:
            np.savez_compressed(unfinished, **{key: np.asarray(value) for key, value in statistics.items()})

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        """Returns the statistics of an image, and `None` where its file is absent or, with a warning, damaged."""
        path = self.folder / f"{name}.npz"
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except DAMAGE as error:
            logger.warning("%s is damaged (%s); the image is evaluated again.", path, error)
            return None

"""Files from a user's disk: each is what its name says, or an error tells which file, what is wrong and what to do."""

import hashlib
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import datasets
import h5py
import numpy as np
import scipy.io
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from .row_format import code_normal


PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


class BrokenFrameError(ValueError):
    """Files of one frame cannot be used; the message has a line for each."""


@dataclass
class FrameReader:
    """Reads the files of a frame to the end, whatever is wrong with some, so that all problems are told at once.

    Args:
        name: The id of the frame.
    """

    name: str
    shape: tuple[int, int] | None = None
    problems: list[str] = field(default_factory=list)

    def read(self, path: str, read: Callable[[str], np.ndarray]) -> np.ndarray | None:
        """Reads one file: the image first, because every map must have its height and width.

        Args:
            path: The file.
            read: Reads it as an array `(height, width, ...)`.

        Returns:
            What was read, or `None` after a problem.
        """
        try:
            if not os.path.isfile(path):
                raise FileNotFoundError("it is missing")
            values = read(path)
            if self.shape is not None and values.shape[:2] != self.shape:
                raise ValueError(
                    f"a map must have the size of its image, {self.shape} (height, width); got {values.shape[:2]}"
                )
        except Exception as error:  # on a broken file PIL and SciPy raise whatever they stumble over
            self.problems.append(
                f"Cannot use {path}: {error or type(error).__name__}. Restore the file, or take {self.name} off the list."
            )
            return None
        self.shape = self.shape or values.shape[:2]
        return values

    def finish(self) -> None:
        """Says what was wrong.

        Raises:
            BrokenFrameError: If anything was.
        """
        if self.problems:
            raise BrokenFrameError("\n".join(self.problems))


def read_picture(path: str, palette: bool = False) -> np.ndarray:
    """Reads a picture: `(height, width)` for grey levels and ids, `(height, width, 3)` for colours.

    Args:
        path: The file.
        palette: Whether it may have a palette, and then its indices are wanted.

    Raises:
        ValueError: If it has not the format that its name says, or a palette that it must not have.
    """
    with Image.open(path) as picture:
        expected = PICTURE_FORMATS[Path(path).suffix.lower()]
        if picture.format != expected:
            raise ValueError(
                f"the name says {expected}, but it is a {picture.format} file, which may have lost exact values; if it "
                "has not, rename it"
            )
        if picture.mode == "P" and not palette:
            raise ValueError("it must be grey or RGB; got a palette, save it without")
        return np.asarray(ImageOps.exif_transpose(picture))  # upright, as `datasets` shows it


def read_npy(path: str) -> np.ndarray:
    """Reads a .npy file, never a pickle.

    Raises:
        ValueError: If it is none.
    """
    data = Path(path).read_bytes()
    # Else numpy takes it for a pickle, and advises to load that unsafely.
    if not data.startswith(b"\x93NUMPY"):
        raise ValueError("it must be a .npy file; this is none, or is empty")
    # From memory, because `datasets` replaces `np.load` in the module of a builder by one that leaves files open.
    return np.load(BytesIO(data), allow_pickle=False)


def read_values(path: str, palette: bool = False) -> np.ndarray:
    """Reads a picture or a .npy file, by its name."""
    return read_npy(path) if path.endswith(".npy") else read_picture(path, palette)


def read_colours(path: str) -> np.ndarray:
    """Reads 8-bit colours `(height, width, 3)`.

    Raises:
        ValueError: If the file holds something else.
    """
    colours = read_values(path)
    if colours.dtype != np.uint8 or colours.ndim != 3 or colours.shape[2] != 3:
        raise ValueError(f"it must be 8-bit RGB (height, width, 3); got {colours.dtype} {colours.shape}")
    return colours


def read_normals(path: str) -> np.ndarray:
    """Reads normals as their 8-bit codes (n + 1) / 2 * 255, `(height, width, 3)`; a .npy file may hold the vectors.

    Raises:
        ValueError: If the file holds something else.
    """
    vectors = read_values(path)
    if vectors.dtype.kind != "f":
        return read_colours(path)
    if vectors.ndim != 3 or vectors.shape[2] != 3 or np.nanmax(np.abs(vectors), initial=0.0) > 1.01:
        raise ValueError(f"normals must be vectors of -1..1 (height, width, 3); got {vectors.dtype} {vectors.shape}")
    return code_normal(np.clip(vectors, -1, 1).transpose(2, 0, 1))


def read_ids(path: str, ids: range, ignored: int) -> np.ndarray:
    """Reads class ids `(height, width)`, uint8; the palette that many such pictures have is for people.

    Args:
        path: The file.
        ids: What it may hold.
        ignored: What marks pixels without a class; it may be one of `ids`.

    Raises:
        ValueError: If it holds anything else.
    """
    labels = read_values(path, palette=True)
    if labels.dtype.kind not in "iu" or labels.ndim != 2:
        raise ValueError(f"ids must be whole numbers (height, width); got {labels.dtype} {labels.shape}")
    unknown = labels[(labels != ignored) & ((labels < ids[0]) | (labels > ids[-1]))]
    if len(unknown) > 0:
        raise ValueError(f"ids must be {ids[0]}..{ids[-1]}, and {ignored} where unlabelled; got {unknown.max()}")
    return labels.astype(np.uint8)


def read_depth(path: str, max_depth: float) -> np.ndarray:
    """Reads metres `(height, width)`, float32, NaN where the file has its invalid 0.

    Args:
        path: A .npy file.
        max_depth: No depth can be larger, in metres.

    Raises:
        ValueError: If it holds anything else.
    """
    depth = read_values(path)
    if depth.dtype.kind != "f" or depth.ndim != 2:
        raise ValueError(
            f"depth must be floating point metres (height, width); got {depth.dtype} {depth.shape}: store metres, such as "
            "millimetres divided by 1000"
        )
    return check_depth(depth, max_depth)


def check_depth(depth: np.ndarray, max_depth: float) -> np.ndarray:
    """Turns the invalid 0 into NaN, float32.

    Raises:
        ValueError: If there are negative, infinite or impossible depths.
    """
    if (depth < 0).any() or np.isinf(depth).any():
        raise ValueError(f"depth must be metres >= 0, 0 invalid; got {depth.min()} to {depth.max()}")
    largest = np.nanmax(depth, initial=0.0)
    if largest > max_depth:
        raise ValueError(
            f"depth must be metres, at most {max_depth:g}; got up to {largest:g}, which looks like another unit: store "
            "metres, such as millimetres divided by 1000"
        )
    return np.where(depth > 0, depth, np.nan).astype(np.float32)


def read_grey(path: str) -> np.ndarray:
    """Reads grey levels `(height, width)`, uint8 in 0..255; one-bit pictures and 0..1 of .npy files are stretched to that.

    Raises:
        ValueError: If the file holds anything else.
    """
    levels = read_values(path)
    if levels.dtype == bool or (path.endswith(".npy") and levels.min(initial=0) >= 0 and levels.max(initial=0) <= 1):
        levels = np.round(levels * 255.0).astype(np.uint8)
    if levels.ndim != 2 or levels.dtype != np.uint8:
        raise ValueError(f"it must be 8-bit grey or one bit (height, width); got {levels.dtype} {levels.shape}")
    if levels.max(initial=0) == 1:
        raise ValueError("it must be 0 or 255; got 0 and 1, multiply them by 255")
    return levels


def describe_file(path: str) -> tuple:
    """Name, size and time of a file; of a missing one the name."""
    try:
        facts = os.stat(path)
    except OSError:
        return (os.path.basename(path),)
    return os.path.basename(path), facts.st_size, facts.st_mtime_ns


def read_matlab(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the variables of a small MATLAB file of any version, in MATLAB's order of dimensions.

    Raises:
        ValueError: If it is none.
    """
    try:
        if h5py.is_hdf5(path):  # version 7.3, which SciPy does not read
            with h5py.File(path) as file:
                return {name: item[()].T for name, item in file.items() if isinstance(item, h5py.Dataset)}
        return scipy.io.loadmat(BytesIO(Path(path).read_bytes()))
    except Exception as error:  # on a broken file SciPy raises whatever it stumbles over
        raise ValueError(f"it must be a MATLAB file; {error or type(error).__name__}") from error


def read_variable(path: str | Path, name: str) -> np.ndarray:
    """Reads a variable of a small MATLAB file.

    Raises:
        ValueError: If there is no such variable, or the file is no MATLAB file.
    """
    variables = read_matlab(path)
    if name not in variables:
        found = [key for key in variables if not key.startswith("__")]
        raise ValueError(f"it must hold the variable {name}; got {found}")
    return variables[name]


def find_file(root: Path, patterns: tuple[str, ...], name: str) -> str:
    """Finds the file of a frame in the first place that has it; where none has, names the first."""
    paths = [root / pattern.format(name) for pattern in patterns]
    return str(next((path for path in paths if path.is_file()), paths[0]))


def find_places(root: Path, files: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Keeps the patterns whose folder is there; keys without any are left out."""
    places = {
        column: tuple(pattern for pattern in patterns if (root / pattern).parent.is_dir())
        for column, patterns in files.items()
    }
    return {column: patterns for column, patterns in places.items() if patterns}


def read_list(path: Path) -> list[str]:
    """Reads the ids of a split, in the order of its list.

    Raises:
        FileNotFoundError: If there is no such list.
        ValueError: If it is empty, names an id twice, or one that would lead out of the folder.
    """
    if not path.is_file():
        raise FileNotFoundError(f"A split needs the list {path}, and there is none; write one id a line.")
    # What is no text becomes ids without files, and is reported as such.
    names = path.read_text(encoding="utf-8-sig", errors="replace").split()
    if not names:
        raise ValueError(f"A split needs at least one id, and {path} is empty; write one id a line.")
    outside = [
        name
        for name in names
        if name.startswith("/") or ".." in name.split("/") or "\\" in name or not name.isprintable()
    ]
    if outside:
        raise ValueError(f"An id is a plain name; {path} has {outside[:5]}. Take them off the list.")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"An id is listed once; {path} repeats {twice[:5]}. Take the repetitions off the list.")
    return names


def find_root(data_dir: str | Path | None, is_root: Callable[[Path], bool], rule: str) -> Path:
    """Finds the folder of a data set, unpacking it if need be.

    Args:
        data_dir: That folder, the one that contains it, or a tar archive of either.
        is_root: Recognises the folder.
        rule: What the folder must have, for people.

    Raises:
        ValueError: If `data_dir` is not given, or leads to several such folders.
        FileNotFoundError: If it leads to none.
    """
    if data_dir is None:
        raise ValueError(f"The data is read from your disk, and data_dir is None; pass {rule}.")
    path = Path(data_dir).expanduser().resolve()
    if path.is_file():
        path = unpack(path)
    if not path.is_dir():
        raise FileNotFoundError(f"There is no file or folder {path}; pass {rule}.")
    roots = [path] if is_root(path) else [folder for folder in sorted(path.iterdir()) if is_root(folder)]
    if not roots:
        found = sorted(entry.name for entry in path.iterdir())
        raise FileNotFoundError(f"Pass {rule}; {path} is none, and holds {found[:10]}.")
    if len(roots) > 1:
        raise ValueError(f"{path} holds several data sets, {[str(root) for root in roots]}; pass one of them.")
    return roots[0]


def unpack(archive: Path) -> Path:
    """Unpacks a tar archive, once, beside what `datasets` itself unpacks.

    Args:
        archive: Of any compression that Python knows.

    Returns:
        The folder; its name changes when the archive does.

    Raises:
        ValueError: If the archive is broken, or has a member that leads out of the folder or is no plain file.
        OSError: If the disk is full.
    """
    facts = archive.stat()
    key = hashlib.sha256(f"{archive} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()[:16]
    parent = Path(datasets.config.EXTRACTED_DATASETS_PATH)
    folder = parent / f"{archive.name.split('.')[0]}-{key}"
    if folder.is_dir():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=parent, prefix="unfinished_") as temporary:
        content = Path(temporary) / "content"
        try:
            extract(archive, content)
        except Exception as error:  # of the archive, of any decompressor, or of the disk
            if getattr(error, "errno", None):
                raise OSError(
                    f"Cannot unpack {archive} into {parent}: {error}. Free some space, or set HF_HOME."
                ) from error
            reason = str(error).split("\n")[0].rstrip(":")
            raise ValueError(
                f"Cannot unpack {archive}: {reason}. Download it again, or unpack it yourself."
            ) from error
        try:
            content.rename(folder)
        except OSError:
            if not folder.is_dir():  # where it is, another process was faster
                raise
    return folder


def extract(archive: Path, folder: Path) -> None:
    """Extracts plain files and folders, and refuses an archive that has anything else, before anything leaves `folder`."""
    with tarfile.open(archive) as tar, tqdm(desc=f"unpacking {archive.name}", unit="file") as bar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                raise tarfile.TarError(f"{member.name!r} leads elsewhere, or is neither a file nor a folder")
            tar.extract(member, folder, filter="data")
            bar.update()

"""Readers of files from a user's disk. An error names the file, what is wrong with it and how to fix it."""

import errno
import hashlib
import os
import shutil
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import scipy.io
from PIL import Image
from tqdm.auto import tqdm

from ..image_files import decode_image, repair_image, to_upright
from ..task_kinds import unit_vectors_to_rgb
from ..utils.extras import MissingExtraError, require


IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
ZIP_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")  # the second one if it holds nothing
MAX_ROW_PIXELS = 178_000_000  # `datasets` decodes the images of rows with the limit of Pillow
MAX_COMPRESSION = 1000  # of zlib; an HDF5 file of a few bytes may say that it holds any number of zeros
MIN_ARRAY_LIMIT = 2**26
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class BrokenFrameError(ValueError):
    """Raised when files of a frame cannot be used; the message has one line per file."""


@dataclass
class FrameReader:
    """Reads all files of a frame and collects the problems, so that all of them are reported at once.

    Args:
        name: The id of the frame.
        shape: Height and width of the first file that was read.
        problems: One line per file that cannot be used.
    """

    name: str
    shape: tuple[int, int] | None = None
    problems: list[str] = field(default_factory=list)

    def read(self, path: str, read: Callable[[str], np.ndarray]) -> np.ndarray | None:
        """Reads one file. Read the image first: every map must have its height and width.

        Args:
            path: The file.
            read: Function that reads it as an array `(height, width, ...)`.

        Returns:
            The array, or `None` if the file cannot be used.
        """
        try:
            if not os.path.isfile(path):
                raise FileNotFoundError("it is missing")
            values = read(path)
            if self.shape is not None and values.shape[:2] != self.shape:
                raise ValueError(
                    f"a map must have the size of its image, {self.shape} (height, width); got {values.shape[:2]}"
                )
        except MissingExtraError:  # the file may be intact
            raise
        except Exception as error:  # PIL and SciPy raise errors of any type on broken files
            self.problems.append(
                f"Cannot use {path}: {error or type(error).__name__}. Restore the file, or take {self.name} off the list."
            )
            return None
        self.shape = self.shape or values.shape[:2]
        return values

    def finish(self) -> None:
        """Reports the problems.

        Raises:
            BrokenFrameError: If there are any.
        """
        if self.problems:
            raise BrokenFrameError("\n".join(self.problems))


def read_image(path: str, palette: bool = False) -> np.ndarray:
    """Reads an image as an array: `(height, width)` for gray levels and ids, `(height, width, 3)` for colors.

    Args:
        path: The file.
        palette: Whether the image may have a palette; its indices are returned then.

    Raises:
        ValueError: If the format is not that of the file name, or the image has a palette that is not allowed.
    """

    def convert(image: Image.Image) -> np.ndarray:
        expected = IMAGE_FORMATS[Path(path).suffix.lower()]
        if image.format != expected:
            raise ValueError(
                f"the name says {expected}, but it is a {image.format} file, which may have lost exact values; rename it "
                "if it has not"
            )
        if image.mode == "P" and not palette:
            raise ValueError("it must be gray or RGB; got a palette, save it without one")
        return np.asarray(to_upright(image))  # rotated by its EXIF orientation, as `datasets` does

    return decode_image(Path(path), convert, MAX_ROW_PIXELS)


def read_image_bytes(path: str) -> bytes:
    """Reads the file of an image that `read_rgb` can read as the bytes for a row."""
    return repair_image(Path(path).read_bytes())


def read_npy(path: str) -> np.ndarray:
    """Reads a .npy file, but no pickle.

    Raises:
        ValueError: If it is no .npy file.
    """
    data = Path(path).read_bytes()
    # Otherwise numpy takes it for a pickle and suggests to load that unsafely.
    if not data.startswith(b"\x93NUMPY"):
        raise ValueError("it must be a .npy file; it is another file, or empty")
    # From memory, because `datasets` replaces `np.load` in the module of a builder by one that leaves files open.
    return np.load(BytesIO(data), allow_pickle=False)


def read_values(path: str, palette: bool = False) -> np.ndarray:
    """Reads an image or, if the name ends in .npy, an array."""
    return read_npy(path) if path.lower().endswith(".npy") else read_image(path, palette)


def read_rgb(path: str) -> np.ndarray:
    """Reads 8-bit colors `(height, width, 3)`.

    Raises:
        ValueError: If the file holds something else.
    """
    colors = read_values(path)
    if colors.dtype != np.uint8 or colors.ndim != 3 or colors.shape[2] != 3:
        raise ValueError(f"it must be 8-bit RGB (height, width, 3); got {colors.dtype} {colors.shape}")
    return colors


def read_normals(path: str) -> np.ndarray:
    """Reads normals as 8-bit levels (n + 1) / 2 * 255, `(height, width, 3)`; a .npy file may hold the vectors.

    Raises:
        ValueError: If the file holds something else.
    """
    vectors = read_values(path)
    if vectors.dtype.kind != "f":
        return read_rgb(path)
    if vectors.ndim != 3 or vectors.shape[2] != 3 or np.nanmax(np.abs(vectors), initial=0.0) > 1.01:
        raise ValueError(f"normals must be vectors of -1..1 (height, width, 3); got {vectors.dtype} {vectors.shape}")
    return unit_vectors_to_rgb(np.clip(vectors, -1, 1).transpose(2, 0, 1))


def read_ids(path: str, ids: range, ignored: int) -> np.ndarray:
    """Reads class ids `(height, width)`, uint8; a palette is ignored.

    Args:
        path: The file.
        ids: The allowed ids.
        ignored: The id of pixels without a class; it may be one of `ids`.

    Raises:
        ValueError: If it holds anything else.
    """
    labels = read_values(path, palette=True)
    if labels.dtype.kind not in "iu" or labels.ndim != 2:
        raise ValueError(f"ids must be whole numbers (height, width); got {labels.dtype} {labels.shape}")
    unknown = labels[(labels != ignored) & ((labels < ids[0]) | (labels > ids[-1]))]
    if len(unknown) > 0:
        raise ValueError(f"ids must be {ids[0]}..{ids[-1]}, and {ignored} where unlabeled; got {unknown.max()}")
    return labels.astype(np.uint8)


def read_depth(path: str, max_depth: float) -> np.ndarray:
    """Reads metres `(height, width)`, float32, NaN where the file has the invalid 0.

    Args:
        path: A .npy file.
        max_depth: The largest possible depth in metres.

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
    """Converts depth to float32, the invalid 0 to NaN.

    Raises:
        ValueError: If a depth is negative, infinite or larger than `max_depth`.
    """
    if (depth < 0).any() or np.isinf(depth).any():
        raise ValueError(f"depth must be metres >= 0, 0 invalid; got {np.nanmin(depth)} to {np.nanmax(depth)}")
    largest = np.nanmax(depth, initial=0.0)
    if largest > max_depth:
        raise ValueError(
            f"depth must be metres, at most {max_depth:g}; got up to {largest:g}, which seems to be another unit: store "
            "metres, such as millimetres divided by 1000"
        )
    return np.where(depth > 0, depth, np.nan).astype(np.float32)


def read_gray(path: str) -> np.ndarray:
    """Reads gray levels `(height, width)`, uint8. Bits, and values in 0..1 of .npy files, are scaled to 0..255.

    Raises:
        ValueError: If the file holds anything else, such as ids 0 and 1 with or without an invalid 255.
    """
    levels = read_values(path)
    if levels.dtype == bool or (
        path.lower().endswith(".npy") and levels.min(initial=0) >= 0 and levels.max(initial=0) <= 1
    ):
        levels = np.round(levels * 255.0).astype(np.uint8)
    if levels.ndim != 2 or levels.dtype != np.uint8:
        raise ValueError(f"it must be 8-bit gray or one bit (height, width); got {levels.dtype} {levels.shape}")
    if (levels == 1).any() and not ((levels > 1) & (levels < 255)).any():
        raise ValueError(
            f"it must be 0 or 255; got {', '.join(map(str, np.unique(levels)))}: multiply ids by 255 (no level marks unknown pixels)"
        )
    return levels


def file_signature(path: str) -> tuple:
    """Returns name, size and modification time of a file; only the name if it is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return (os.path.basename(path),)
    return os.path.basename(path), status.st_size, status.st_mtime_ns


def read_matlab(path: str | Path) -> dict[str, np.ndarray]:
    """Reads all variables of a small MATLAB file of any version, in MATLAB's order of dimensions.

    Raises:
        ValueError: If it is no MATLAB file.
        MissingExtraError: If it is of version 7.3 and h5py is not installed.
    """
    try:
        content = Path(path).read_bytes()
        if HDF5_SIGNATURE in content[:1024]:  # version 7.3, which SciPy does not read
            return read_hdf5(path)
        return scipy.io.loadmat(BytesIO(content))
    except MissingExtraError:
        raise
    except Exception as error:  # SciPy raises errors of any type on broken files
        raise ValueError(f"it must be a MATLAB file; {error or type(error).__name__}") from error


def read_hdf5(path: str | Path) -> dict[str, np.ndarray]:
    """Reads all arrays of an HDF5 file, transposed to MATLAB's order of dimensions.

    Raises:
        ValueError: If an array lies in another file, or they are larger than a file of this size can hold.
    """
    h5py = require("h5py", extra="data")
    with h5py.File(path) as file:
        items = {name: own_item(file, name) for name in file}
        arrays = {name: item for name, item in items.items() if isinstance(item, h5py.Dataset)}
        file_size, size = os.path.getsize(path), sum(array.nbytes for array in arrays.values())
        if size > max(MAX_COMPRESSION * file_size, MIN_ARRAY_LIMIT):
            raise ValueError(f"it has {file_size:,} bytes and cannot hold its arrays, which need {size:,}")
        return {name: array[()].T for name, array in arrays.items()}


def own_item(file: Any, name: str) -> Any:
    """Returns an item of the top level of an HDF5 file.

    HDF5 follows links to other files, and reads arrays from raw files and virtual datasets; a file from elsewhere could
    show any file of this machine as a label.

    Args:
        file (`h5py.File`): The open file.
        name (`str`): Name of the item.

    Returns:
        `h5py.Dataset` or `h5py.Group`: The item.

    Raises:
        ValueError: If there is no such item, it is a link, or its values lie in another file.
    """
    h5py = require("h5py", extra="data")
    links, key = file.id.links, name.encode()
    if not links.exists(key):
        raise ValueError(f"it must hold {name}; got {list(file)[:10]}")
    # asks for the link alone: `file[name]` would follow it
    is_link = links.get_info(key).type != h5py.h5l.TYPE_HARD
    item = None if is_link else file[name]
    if is_link or (isinstance(item, h5py.Dataset) and (item.external or item.is_virtual)):
        raise ValueError(f"it must hold the values of {name} itself; got a link to another place")
    return item


def read_variable(path: str | Path, name: str) -> np.ndarray:
    """Reads one variable of a small MATLAB file.

    Raises:
        ValueError: If the file has no such variable, or is no MATLAB file.
    """
    variables = read_matlab(path)
    if name not in variables:
        found = [key for key in variables if not key.startswith("__")]
        raise ValueError(f"it must hold the variable {name}; got {found}")
    return variables[name]


def find_file(root: Path, patterns: tuple[str, ...], name: str) -> str:
    """Returns the path of the first pattern that exists for a frame; the path of the first pattern if none does."""
    paths = [root / pattern.format(name) for pattern in patterns]
    return str(next((path for path in paths if os.path.isfile(path)), paths[0]))


def existing_patterns(root: Path, files: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Returns the patterns whose folder exists, without the columns that have none."""
    existing = {
        column: tuple(pattern for pattern in patterns if (root / pattern).parent.is_dir())
        for column, patterns in files.items()
    }
    return {column: patterns for column, patterns in existing.items() if patterns}


def read_list(path: Path) -> list[str]:
    """Reads the ids of a split in the order of its list.

    Raises:
        FileNotFoundError: If the list does not exist.
        ValueError: If it is empty, repeats an id, or has an id that leads out of the folder.
    """
    if not path.is_file():
        raise FileNotFoundError(f"A split needs the list {path}, which does not exist; write one id per line.")
    # Bytes that are not text become ids without files, which are reported.
    names = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise ValueError(f"A split needs at least one id, and {path} is empty; write one id per line.")
    outside = [
        name
        for name in names
        if name.startswith("/") or ".." in name.split("/") or "\\" in name or not name.isprintable()
    ]
    if outside:
        raise ValueError(f"An id is a plain name; {path} has {outside[:5]}. Take them off the list.")
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ValueError(f"An id is listed once; {path} repeats {repeated[:5]}. Take the repetitions off the list.")
    return names


def find_root(data_dir: str | Path | None, is_root: Callable[[Path], bool], rule: str) -> Path:
    """Finds the folder of a dataset, and unpacks an archive.

    Args:
        data_dir: The folder, its parent, or a tar or zip archive of either.
        is_root: Function that recognizes the folder.
        rule: What the folder must have, for error messages.

    Raises:
        ValueError: If `data_dir` is `None`, or there are several such folders.
        FileNotFoundError: If there is no such folder.
    """
    if data_dir is None:
        raise ValueError(f"The data is read from disk, and data_dir is None; pass {rule}.")
    path = Path(data_dir).expanduser().resolve()
    if path.is_file():
        path = unpack(path)
    if not path.is_dir():
        raise FileNotFoundError(f"There is no file or folder {path}; pass {rule}.")
    roots = [path] if is_root(path) else [folder for folder in sorted(path.iterdir()) if is_root(folder)]
    if not roots:
        found = sorted(entry.name for entry in path.iterdir())
        raise FileNotFoundError(f"Pass {rule}; {path} is no such folder and holds {found[:10]}.")
    if len(roots) > 1:
        raise ValueError(f"{path} holds several datasets, {[str(root) for root in roots]}; pass one of them.")
    return roots[0]


def unpack(archive: Path) -> Path:
    """Unpacks a tar or zip archive once, into the folder where `datasets` unpacks its own archives.

    Args:
        archive: The archive, compressed in any way that Python supports.

    Returns:
        The folder; its name changes when the archive does.

    Raises:
        ValueError: If the archive is broken, or has a member that leads out of the folder or is no plain file.
        OSError: If the disk is full.
    """
    status = archive.stat()
    key = hashlib.sha256(f"{archive} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:16]
    parent = Path(datasets.config.EXTRACTED_DATASETS_PATH)
    folder = parent / f"{archive.name.split('.')[0]}-{key}"
    if folder.is_dir():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=parent, prefix="unfinished_") as temporary:
        content = Path(temporary) / "content"
        try:
            extract(archive, content)
        except Exception as error:  # from the archive, any decompressor, or the disk
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
            if not folder.is_dir():  # otherwise another process has unpacked it
                raise
    return folder


def extract(archive: Path, folder: Path) -> None:
    """Extracts plain files and folders of a tar or zip archive.

    Raises:
        ValueError: If it has any other member; nothing is written outside `folder`.
        tarfile.TarError or zipfile.BadZipFile: If it is damaged.
        OSError: If its files do not fit on the disk.
    """
    folder.mkdir()
    with archive.open("rb") as file:  # a tar archive that holds a zip archive at its end would pass as one too
        extract_members = extract_zip if file.read(4).startswith(ZIP_SIGNATURES) else extract_tar
    with tqdm(desc=f"unpacking {archive.name}", unit="file") as bar:
        extract_members(archive, folder, bar)


def extract_tar(archive: Path, folder: Path, bar: tqdm) -> None:
    """Extracts a tar archive; see [`extract`]."""
    with tarfile.open(archive) as tar:
        for member in tar:
            check_member(member.name, is_plain=member.isfile() or member.isdir())
            check_space(member.size, folder)
            tar.extract(member, folder, filter="data")
            bar.update()
        # A checksum of the compression is at the very end, and tarfile takes a damaged or missing header for the end of the members.
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.TarError("it is damaged: it has no end, or a file in it has no valid header")
        while block := tar.fileobj.read(2**20):
            if block.strip(b"\0"):
                raise tarfile.TarError("it is damaged: a file in it has no valid header")


def extract_zip(archive: Path, folder: Path, bar: tqdm) -> None:
    """Extracts a zip archive; see [`extract`]. A file that is longer than the archive says, as in a zip bomb, is damaged."""
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the archive was not written on Unix
            check_member(member.filename, is_plain=kind in (0, stat.S_IFREG, stat.S_IFDIR))
        with archive.open("rb") as content:
            num_members = zipfile._EndRecData(content)[zipfile._ECD_ENTRIES_TOTAL]
        # A member of the list may pass for the comment of the one before. Long lists of some programs are counted in 16 bits
        if (len(file.infolist()) - num_members) % 2**16:
            raise zipfile.BadZipFile(f"it is damaged: it lists {len(file.infolist())} of {num_members} files")
        check_space(sum(member.file_size for member in file.infolist()), folder)
        for member in file.infolist():
            file.extract(member, folder)
            bar.update()


def check_member(name: str, *, is_plain: bool) -> None:
    """Checks a member of an archive.

    Raises:
        ValueError: If it leads out of the folder, or is no plain file or folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not is_plain:
        raise ValueError(f"{name!r} leads out of it, or is neither a file nor a folder")


def check_space(num_bytes: int, folder: Path) -> None:
    """Checks that the disk of a folder has room.

    Raises:
        OSError: If it has not.
    """
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise OSError(errno.ENOSPC, f"its files need {num_bytes:,} bytes, and {free:,} are free")

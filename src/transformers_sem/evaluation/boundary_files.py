"""Boundary counts of images on disk, in several processes and resumable."""

import hashlib
import os
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image
from scipy.io import loadmat
from tqdm.auto import tqdm

from ..image_files import decode_image
from ..utils.processes import process_pool
from .boundary import boundary_counts, check_max_distance
from .statistics_folder import StatisticsFolder


Pair = tuple[Path, Path]


def read_map(path: Path) -> ndarray:
    """Reads a label map `(height, width)`: an image of one channel, or the `LabelMap` of a PASCAL-Context `.mat` file.

    Raises:
        ValueError: If the file cannot be read, or holds something else.
    """
    return _read(path, _read_label_map if path.suffix == ".mat" else _read_image)


def read_prediction(path: Path) -> ndarray:
    """Reads a predicted boundary as gray levels, uint8 `(height, width)`; black and white are 0 and 255.

    Raises:
        ValueError: If the file cannot be read, or is not an 8-bit gray image.
    """
    return _read(path, _read_gray)


def _read(path: Path, reader: Callable[[Path], ndarray]) -> ndarray:
    try:
        values = reader(path)
    except Exception as error:  # a damaged file makes its reader fail in any way
        raise ValueError(f"Cannot read {path}: {error}. Write the file again.") from error
    if values.ndim != 2:
        raise ValueError(
            f"A boundary or label map has one channel; {path} is {values.shape}. Convert it to gray levels or ids."
        )
    return values


def _read_image(path: Path) -> ndarray:
    return decode_image(path, np.asarray)


def _read_gray(path: Path) -> ndarray:
    return decode_image(path, _gray_levels)


def _gray_levels(image: Image.Image) -> ndarray:
    if image.mode not in ("L", "1"):
        raise ValueError(f"a predicted boundary is an 8-bit gray image, mode L; got mode {image.mode}")
    return np.asarray(image.convert("L"))


def _read_label_map(path: Path) -> ndarray:
    variables = loadmat(path)
    if "LabelMap" not in variables:
        raise ValueError("it has no variable LabelMap")
    return variables["LabelMap"]


def count_pair(pair: Pair, max_distance: float) -> ndarray:
    """Returns the `boundary_counts` of a prediction and a label on disk.

    Raises:
        ValueError: If a file cannot be read, or the two differ in size.
    """
    prediction, label = read_prediction(pair[0]), read_map(pair[1])
    try:
        return boundary_counts(prediction, label, max_distance)
    except ValueError as error:
        raise ValueError(f"{pair[0]}, {pair[1]}: {error}") from error


def pair_files(predictions: Path, labels: Path, names: Iterable[str] | None = None) -> dict[str, Pair]:
    """Pairs the files of two folders by their names without suffixes.

    Args:
        predictions (`Path`): Folder of predictions.
        labels (`Path`): Folder of labels.
        names (`Iterable[str]`, *optional*): The images to pair; `None` is all images of both folders.

    Returns:
        `dict[str, tuple[Path, Path]]`: Prediction and label of each image, sorted by name.

    Raises:
        FileNotFoundError: If a folder, a prediction or a label is missing.
        ValueError: If there is no image, or two files of a folder have the same name.
    """
    files = [_files_by_name(folder) for folder in (predictions, labels)]
    wanted = set(files[0]) | set(files[1]) if names is None else set(names)
    if not wanted:
        raise ValueError(
            f"There is no image to evaluate: {predictions} and {labels} are empty, or the list of names is."
        )
    for folder, found in zip((predictions, labels), files, strict=True):
        missing = sorted(wanted - set(found))
        if missing:
            raise FileNotFoundError(
                f"Every image needs a prediction and a label of its name; {folder} lacks {len(missing)} of {len(wanted)}: "
                f"{missing[:5]}. Write them, or list the images to evaluate."
            )
    return {name: (files[0][name], files[1][name]) for name in sorted(wanted)}


def _files_by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"Predictions and labels are folders of files; there is no folder {folder}.")
    files = {}
    for path in sorted(folder.iterdir()):
        if os.path.isfile(path) and not path.name.startswith("."):
            if path.stem in files:
                raise ValueError(
                    f"An image has one file; {files[path.stem]} and {path} have the same name. Remove one."
                )
            files[path.stem] = path
    return files


def count_boundaries(
    pairs: dict[str, Pair], max_distance: float, counts_dir: Path, num_processes: int = 1
) -> dict[str, ndarray]:
    """Counts a set of images, for `boundary_scores`.

    The counts of each image are kept in `counts_dir` as soon as they are known, so that the same call continues after an
    interruption. An image whose files have changed since is counted again.

    Args:
        pairs (`dict[str, tuple[Path, Path]]`): Prediction and label of each image.
        max_distance (`float`): As in `boundary_counts`.
        counts_dir (`Path`): Folder for the counts; it is created where it is missing.
        num_processes (`int`, *optional*, defaults to 1): Number of processes.

    Returns:
        `dict[str, np.ndarray]`: int64 `(101, 4)` of each image.

    Raises:
        ValueError: If a file cannot be read, or a prediction and its label differ in size.
    """
    check_max_distance(max_distance)
    folder = StatisticsFolder(
        counts_dir, f"max_distance {max_distance}, transformers-sem {version('transformers-sem')}"
    )
    keys = {name: _pair_key(name, pair) for name, pair in pairs.items()}
    counts = {name: statistics["counts"] for name in pairs if (statistics := folder.read(keys[name])) is not None}
    missing = {name: pair for name, pair in pairs.items() if name not in counts}
    bar = tqdm(initial=len(counts), total=len(pairs), desc="boundaries", unit="image")
    with bar, process_pool(num_processes) as pool:
        results = pool.map(count_pair, missing.values(), [max_distance] * len(missing))
        for name, image_counts in zip(missing, results, strict=True):
            folder.add(keys[name], {"counts": image_counts})
            counts[name] = image_counts
            bar.update()
    return {name: counts[name] for name in pairs}


def _pair_key(name: str, pair: Pair) -> str:
    """A file name that changes with the name of an image and with its files, by path, size and time."""
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in pair]
    return hashlib.sha256(f"{name} {states}".encode()).hexdigest()[:24]

"""The boundary F-measure of pictures on disk, whoever made them: many processes, and resumable."""

from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image
from scipy.io import loadmat
from tqdm.auto import tqdm

from transformers_sem.utils.processes import process_pool

from .boundary import boundary_counts, check_max_distance
from .statistics_file import StatisticsFile


Pair = tuple[Path, Path]


def read_map(path: Path) -> ndarray:
    """Reads a label map `(height, width)`: a picture of one channel, or the `LabelMap` of a PASCAL-Context `.mat` file.

    Raises:
        ValueError: If the file cannot be read, or holds something else.
    """
    return _read(path, _read_label_map if path.suffix == ".mat" else _read_picture)


def read_prediction(path: Path) -> ndarray:
    """Reads the grey levels, uint8 `(height, width)`, of a picture; those of black and white are 0 and 255.

    Raises:
        ValueError: If the file cannot be read, or is another picture.
    """
    return _read(path, _read_grey)


def _read(path: Path, reader: Callable[[Path], ndarray]) -> ndarray:
    try:
        values = reader(path)
    except Exception as error:  # a damaged file makes its reader fail in any way
        raise ValueError(f"Cannot read {path}: {error}. Write the file again.") from error
    if values.ndim != 2:
        raise ValueError(
            f"A boundary or label map has one channel; {path} is {values.shape}. Convert it to grey or ids."
        )
    return values


def _read_picture(path: Path) -> ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def _read_grey(path: Path) -> ndarray:
    with Image.open(path) as picture:
        if picture.mode not in ("L", "1"):
            raise ValueError(f"a predicted boundary is 8-bit grey, mode L; got mode {picture.mode}")
        return np.asarray(picture.convert("L"))


def _read_label_map(path: Path) -> ndarray:
    variables = loadmat(path)
    if "LabelMap" not in variables:
        raise ValueError("it has no variable LabelMap")
    return variables["LabelMap"]


def count_pair(pair: Pair, max_distance: float) -> ndarray:
    """`boundary_counts` of a prediction and a label on disk.

    Raises:
        ValueError: If a file cannot be read, or the two do not go together.
    """
    prediction, label = read_prediction(pair[0]), read_map(pair[1])
    try:
        return boundary_counts(prediction, label, max_distance)
    except ValueError as error:
        raise ValueError(f"{pair[0]}, {pair[1]}: {error}") from error


def pair_files(predictions: Path, labels: Path, names: Iterable[str] | None = None) -> dict[str, Pair]:
    """Pairs the files of two folders by their names without endings.

    Args:
        predictions (`Path`): Folder of predictions.
        labels (`Path`): Folder of labels.
        names (`Iterable[str]`, *optional*): The images wanted; `None` is all, and then both folders hold the same.

    Returns:
        `dict[str, tuple[Path, Path]]`: By name, in order.

    Raises:
        FileNotFoundError: If a folder is not there, or an image lacks its prediction or label.
        ValueError: If there is no image, or two files of a folder go by one name.
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
                f"{missing[:5]}. Write them, or list the images wanted."
            )
    return {name: (files[0][name], files[1][name]) for name in sorted(wanted)}


def _files_by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"Predictions and labels are folders of files; there is no folder {folder}.")
    files = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            if path.stem in files:
                raise ValueError(f"An image has one file; {files[path.stem]} and {path} go by one name. Remove one.")
            files[path.stem] = path
    return files


def count_boundaries(
    pairs: dict[str, Pair], max_distance: float, counts_path: Path, num_processes: int = 1
) -> dict[str, ndarray]:
    """Counts of a set of images, for `boundary_scores`.

    The counts of each image are kept in `counts_path` as soon as they are known, so that the same call continues where an
    earlier one was killed. Files that have changed since are counted again.

    Args:
        pairs (`dict[str, tuple[Path, Path]]`): Prediction and label of each image.
        max_distance (`float`): As in `boundary_counts`.
        counts_path (`Path`): Small file, made where there is none.
        num_processes (`int`): Processes to work with.

    Returns:
        `dict[str, np.ndarray]`: int64 `(101, 4)` of each image.

    Raises:
        ValueError: If a file cannot be read, or a prediction and its label do not go together.
    """
    check_max_distance(max_distance)
    keys = {f"{name} {[_state(path) for path in pair]}": name for name, pair in pairs.items()}
    with StatisticsFile(
        counts_path, fingerprint=f"max_distance {max_distance}, transformers-sem {version('transformers-sem')}"
    ) as file:
        done = file.names()
        missing = {key: pairs[name] for key, name in keys.items() if key not in done}
        bar = tqdm(initial=len(keys) - len(missing), total=len(keys), desc="boundaries", unit="image")
        with bar, process_pool(num_processes) as pool:
            results = pool.map(count_pair, missing.values(), [max_distance] * len(missing))
            for key, counts in zip(missing, results, strict=True):
                file.add(key, {"counts": counts})
                bar.update()
        counts = {keys[key]: statistics["counts"] for key, statistics in file if key in keys}
    return {name: counts[name] for name in pairs}


def _state(path: Path) -> tuple[str, int, int]:
    facts = path.stat()
    return str(path.resolve()), facts.st_size, facts.st_mtime_ns

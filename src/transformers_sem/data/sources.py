"""Datasets on disk: their files, rows read frame by frame, and the `datasets` builder that serves them."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np

from ..losses import INVALID_ID
from ..utils.settings import read_settings
from .files import BrokenFrameError, file_signature
from .row_format import encode_map, map_feature
from .shrink import Maps, shrink_maps


Frame = dict[str, Any]
DESCRIPTION_NAME = "dataset.yaml"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset found on disk.

    Args:
        title (`str`): Name of the dataset.
        variant (`str`): The form in which it was found, in words.
        root (`Path`): Its folder.
        frames (`dict[str, list[dict]]`): The frames of each split. A frame is what `read` needs: "id", and the path of
            each file by its key, `None` for a map that is allowed to be missing.
        columns (`list[str]`): Columns of images in a row.
        class_names (`dict[str, list[str]]`): Names of the classes, for columns of class ids.
        derived (`dict[str, str]`): Columns that are computed and not annotated, with the source of their values.
        read (`Callable`): Reads a frame: "image", the bytes of its file or uint8 `(height, width, 3)`, and the maps. It
            must be a function of a module, so that other processes can call it, and raises `BrokenFrameError`.
        official_sizes (`dict[str, int]`): Number of frames of each split in papers; empty for a user's own dataset.
        terms (`str`): Origin and terms of use, for the dataset card.
        factor (`int`): How many times smaller the rows are than the files.
    """

    title: str
    variant: str
    root: Path
    frames: dict[str, list[Frame]]
    columns: list[str]
    class_names: dict[str, list[str]]
    derived: dict[str, str]
    read: Callable[[Frame], Maps]
    official_sizes: dict[str, int]
    terms: str
    factor: int = 1

    @property
    def class_columns(self) -> list[str]:
        """Columns of class ids with names."""
        return [column for column in self.columns if column in self.class_names]

    @property
    def features(self) -> datasets.Features:
        """Features of a row: "id", the images, "<column>_classes" and "derived"."""
        classes = {
            f"{column}_classes": datasets.List(datasets.ClassLabel(names=self.class_names[column]))
            for column in self.class_columns
        }
        images = {column: map_feature(column) for column in self.columns}
        text = datasets.Value("string")
        return datasets.Features({"id": text, **images, **classes, "derived": datasets.List(text)})

    @property
    def read_row(self) -> Callable[[Frame], dict[str, Any]]:
        """Function that reads a frame as a row; it is small enough to be sent to other processes."""
        return partial(
            read_row,
            read=self.read,
            class_columns=self.class_columns,
            derived=[*self.derived],
            columns=self.columns,
            factor=self.factor,
        )


def read_row(
    frame: Frame,
    read: Callable[[Frame], Maps],
    columns: list[str],
    class_columns: list[str],
    derived: list[str],
    factor: int,
) -> dict[str, Any]:
    """Reads a frame as a row of `Source.features`, with `None` for maps that it does not have.

    Raises:
        BrokenFrameError: If a file of the frame cannot be used.
    """
    maps = shrink_maps(read(frame), factor)
    images = {column: value if isinstance(value, bytes) else encode_map(value) for column, value in maps.items()}
    classes = {column: find_classes(maps[column]) for column in class_columns if column in maps}
    return {
        "id": frame["id"],
        **{column: images.get(column) for column in columns},
        **{f"{column}_classes": classes.get(column) for column in class_columns},
        "derived": [column for column in derived if column in maps],
    }


def find_classes(ids: np.ndarray) -> list[int]:
    """Returns the sorted classes in a map of ids, without the invalid id."""
    return [int(index) for index in np.unique(ids) if index != INVALID_ID]


def drop_missing(source: Source) -> Source:
    """Replaces the paths of maps without a file by `None`, if `dataset.yaml` in the folder has `allow_missing: true`.

    Raises:
        ValueError: If `dataset.yaml` cannot be read.
    """
    path = source.root / DESCRIPTION_NAME
    allowed = read_settings(path).get("allow_missing", False) if path.is_file() else False
    if not isinstance(allowed, bool):
        raise ValueError(f"Cannot use {path}: `allow_missing` is true or false; got {allowed!r}.")
    if not allowed:
        return source
    maps = {*source.columns} - {"image"}
    frames = {
        split: [
            {
                key: None if key in maps and value and not os.path.isfile(value) else value
                for key, value in frame.items()
            }
            for frame in split_frames
        ]
        for split, split_frames in source.frames.items()
    }
    return replace(source, frames=frames)


def check_files(source: Source) -> None:
    """Finds missing files before the first frame is read.

    Raises:
        FileNotFoundError: If a file of a frame is missing; the message names up to five.
    """
    missing = [path for frames in source.frames.values() for frame in frames for path in missing_files(frame)]
    if missing:
        raise FileNotFoundError(
            f"Every id on the lists needs a file in each folder of maps; {len(missing)} are missing, first {missing[:5]}. "
            f"Restore them, take their ids off the lists, remove a folder, and its task from {DESCRIPTION_NAME}, to "
            f"leave its map out, or write `allow_missing: true` to {DESCRIPTION_NAME} in the folder of the dataset: images are "
            "trained on the maps that they have then."
        )


def frame_files(frame: Frame) -> list[str]:
    """Returns the paths of a frame."""
    return [value for key, value in frame.items() if key != "id" and isinstance(value, str)]


def missing_files(frame: Frame) -> list[str]:
    """Returns the paths of a frame that do not exist."""
    return [path for path in frame_files(frame) if not os.path.isfile(path)]


class SourceConfig(datasets.BuilderConfig):
    """Configuration of a builder; `data_dir` is a folder, an archive or a file of the dataset."""

    find_source: ClassVar[Callable[[str | Path | None], Source]]

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Names the cache by the files with their sizes and times, so that changed files are read again."""
        frames = self.find_source(self.data_dir).frames
        files = [file_signature(path) for split in frames.values() for frame in split for path in frame_files(frame)]
        values = {**config_kwargs, "data_dir": None, **frames, "files": files}
        return super().create_config_id(values, custom_features)


class SourceBuilder(datasets.GeneratorBasedBuilder):
    """Serves a dataset from `data_dir`. The cache is rebuilt when one of its lists or files changes."""

    # Raise the version when files are read in another way: it is part of the path of the cache.
    VERSION = datasets.Version("2.0.0")
    BUILDER_CONFIG_CLASS: type[SourceConfig]
    DEFAULT_WRITER_BATCH_SIZE = 16

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description=self.__doc__, features=self.config.find_source(self.config.data_dir).features
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        source = self.config.find_source(self.config.data_dir)
        check_files(source)
        # `datasets` distributes the list over its processes.
        return [
            datasets.SplitGenerator(split, gen_kwargs={"frames": frames, "to_row": source.read_row})
            for split, frames in source.frames.items()
        ]

    def _generate_examples(
        self, frames: list[Frame], to_row: Callable[[Frame], dict[str, Any]]
    ) -> Iterator[tuple[str, dict]]:
        problems = []
        for frame in frames:
            try:
                row = to_row(frame)
            except BrokenFrameError as error:  # the others are read, so that one error names all
                problems.append(str(error))
            else:
                yield frame["id"], row
        if problems:
            raise BrokenFrameError("\n".join(problems))

"""What all data sets on disk have in common: found once, read frame by frame, served by one kind of builder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np

from .files import describe_file
from .row_format import FEATURES, encode_map


# The full ids of a `LabelMap` go beside the maps of the tasks: boundaries are judged by them.
COLUMNS = {**FEATURES, "label_map": datasets.Image()}
Frame = dict[str, Any]
Maps = dict[str, np.ndarray | bytes]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set as it was found on a disk.

    Args:
        title (`str`): Name of the data set, for people.
        variant (`str`): Which of the forms that it goes round in, for people.
        root (`Path`): Where it lies.
        frames (`dict[str, list[dict]]`): For each split what `read` needs: "id", and the path of every file by its key.
        columns (`list[str]`): Columns of pictures that a row has.
        class_names (`dict[str, list[str]]`): For the columns of class ids.
        derived (`dict[str, str]`): Columns that were computed rather than annotated, and from what.
        read (`Callable`): Reads a frame: "image", the bytes of its file or uint8 `(height, width, 3)`, and the maps. A
            function of a module, so that other processes can call it. It raises `BrokenFrameError`.
        official_sizes (`dict[str, int]`): How many frames each split has in papers; empty where there are none.
        terms (`str`): Where the data is from, and on what terms, for the data set card.
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

    @property
    def class_columns(self) -> list[str]:
        """Columns of class ids with names."""
        return [column for column in self.columns if column in self.class_names]

    @property
    def features(self) -> datasets.Features:
        """Features of a row: "id", the pictures, "<column>_classes" and "derived"."""
        classes = {
            f"{column}_classes": datasets.List(datasets.ClassLabel(names=self.class_names[column]))
            for column in self.class_columns
        }
        pictures = {column: COLUMNS.get(column, datasets.Image()) for column in self.columns}
        text = datasets.Value("string")
        return datasets.Features({"id": text, **pictures, **classes, "derived": datasets.List(text)})

    @property
    def read_row(self) -> Callable[[Frame], dict[str, Any]]:
        """What turns a frame into a row; light enough to be sent to other processes."""
        return partial(
            read_row, read=self.read, class_columns=self.class_columns, derived=[*self.derived], columns=self.columns
        )


def read_row(
    frame: Frame,
    read: Callable[[Frame], Maps],
    columns: list[str],
    class_columns: list[str],
    derived: list[str],
) -> dict[str, Any]:
    """Reads a frame as a row of `Source.features`.

    Raises:
        BrokenFrameError: If a file of the frame cannot be used.
    """
    maps = read(frame)
    pictures = {column: maps[column] for column in columns}
    classes = {f"{column}_classes": find_classes(maps[column]) for column in class_columns}
    return {
        "id": frame["id"],
        **{column: value if isinstance(value, bytes) else encode_map(value) for column, value in pictures.items()},
        **classes,
        "derived": derived,
    }


def find_classes(ids: np.ndarray) -> list[int]:
    """The classes in a map of ids, in order; 255 is none."""
    return [int(index) for index in np.unique(ids) if index != 255]


def check_files(source: Source) -> None:
    """Finds missing files before the first frame is read, not after an hour.

    Raises:
        FileNotFoundError: If a file of a frame is missing; names up to five.
    """
    missing = [path for frames in source.frames.values() for frame in frames for path in missing_files(frame)]
    if missing:
        raise FileNotFoundError(
            f"Every id on the lists needs a file in each folder of maps; {len(missing)} are missing, first {missing[:5]}. "
            "Restore them, take their ids off the lists, or remove a folder to leave its map out."
        )


def files_of(frame: Frame) -> list[str]:
    """The paths of a frame."""
    return [value for key, value in frame.items() if key != "id" and isinstance(value, str)]


def missing_files(frame: Frame) -> list[str]:
    """Those of a frame's files that are not there."""
    return [path for path in files_of(frame) if not Path(path).is_file()]


class SourceConfig(datasets.BuilderConfig):
    """`data_dir` is a folder, an archive or a file of the data set."""

    find_source: ClassVar[Callable[[str | Path | None], Source]]

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Name the cache by the files that are read, with their sizes and times, so that what has changed is read anew."""
        frames = self.find_source(self.data_dir).frames
        files = [describe_file(path) for split in frames.values() for frame in split for path in files_of(frame)]
        values = {**config_kwargs, "data_dir": None, **frames, "files": files}
        return super().create_config_id(values, custom_features)


class SourceBuilder(datasets.GeneratorBasedBuilder):
    """Serves a data set from `data_dir`; a cache is made anew when one of its lists or files has changed."""

    # A change of how files are read must raise the version: it is part of the path of the cache.
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
        # The list is what `datasets` cuts into shards for its processes.
        return [
            datasets.SplitGenerator(split, gen_kwargs={"frames": frames, "to_row": source.read_row})
            for split, frames in source.frames.items()
        ]

    def _generate_examples(
        self, frames: list[Frame], to_row: Callable[[Frame], dict[str, Any]]
    ) -> Iterator[tuple[str, dict]]:
        for frame in frames:
            yield frame["id"], to_row(frame)

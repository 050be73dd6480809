"""Preparation of a dataset on disk: verified Parquet shards, which `datasets` loads fast, and a dataset card.

    OUTPUT/data/train-00000-of-00008-HASH.parquet ...      the hash changes with the files that a shard is made of
    OUTPUT/README.md                                       the card

Shards are written to `unfinished_OUTPUT`, which is renamed when it is complete. A second run writes only missing shards.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
from huggingface_hub import DatasetCard, DatasetCardData
from tqdm.auto import tqdm

from ..tasks import TASKS
from ..utils.files import atomic_write, locked
from ..utils.processes import process_pool
from ..visualization.panels import contact_sheet, save_image
from .files import BrokenFrameError, file_signature
from .row_format import describe_column
from .sources import Frame, Source, SourceBuilder, frame_files


FRAMES_PER_SHARD = 100
ROWS_PER_GROUP = 20  # rows that a reader has in memory at once: about 30 MB
NUM_PREVIEWS = 8
Plan = dict[str, list[Frame]]


def try_row(frame: Frame, to_row: Callable[[Frame], dict[str, Any]]) -> dict[str, Any] | BrokenFrameError:
    """Reads a frame as a row, or returns the error."""
    try:
        return to_row(frame)
    except BrokenFrameError as error:
        return error


def find_problem(frame: Frame, to_row: Callable[[Frame], dict[str, Any]]) -> str | None:
    """Reads a frame, and returns the message of the error, one line per file, or `None`."""
    row = try_row(frame, to_row)
    return str(row) if isinstance(row, BrokenFrameError) else None


@contextmanager
def process_map(num_processes: int) -> Iterator[Callable[..., Iterator]]:
    """Returns a `map` that runs in a pool of processes, or in this one if `num_processes` is 1."""
    if num_processes == 1:
        yield map
        return
    with process_pool(num_processes) as pool:
        yield pool.map


def verify(source: Source, num_processes: int) -> list[str]:
    """Reads every file of a dataset without writing anything.

    Args:
        source: The dataset.
        num_processes: Number of processes.

    Returns:
        One line per broken file: what is wrong, and how to fix it.
    """
    frames = [frame for split in source.frames.values() for frame in split]
    with process_map(num_processes) as apply:
        found = apply(find_problem, frames, repeat(source.read_row, len(frames)))
        problems = [problem for problem in tqdm(found, desc="verifying", total=len(frames), unit="frame") if problem]
    train, validation = ({frame["id"] for frame in split} for split in source.frames.values())
    both = sorted(train & validation)
    if both:
        problems.append(f"A frame is in one split; both lists have {both[:5]}. Take them off one of the lists.")
    return [line for problem in problems for line in problem.split("\n")]


def plan_shards(source: Source) -> Plan:
    """Divides the splits into shards.

    Returns:
        `{path of a shard in the folder: frames}`.
    """
    plan = {}
    for split, frames in source.frames.items():
        parts = [frames[start : start + FRAMES_PER_SHARD] for start in range(0, len(frames), FRAMES_PER_SHARD)]
        for index, part in enumerate(parts):
            plan[f"data/{split}-{index:05d}-of-{len(parts):05d}-{shard_hash(source, part)}.parquet"] = part
    return plan


def shard_hash(source: Source, frames: list[Frame]) -> str:
    """Returns a hash of all that a shard depends on: name, size and time of its files, and the way they are read."""
    files = [(frame["id"], [file_signature(path) for path in frame_files(frame)]) for frame in frames]
    inputs = (str(SourceBuilder.VERSION), str(source.features), source.derived, files)
    if source.factor > 1:
        inputs += (source.factor,)
    return hashlib.sha256(repr(inputs).encode()).hexdigest()[:12]


def prepare(source: Source, output: Path, num_processes: int, *, skip_broken: bool = False) -> list[str]:
    """Writes the shards that are missing, and the card.

    Args:
        source: The dataset.
        output: The folder to write.
        num_processes: Number of processes.
        skip_broken: Whether to leave out broken frames.

    Returns:
        One line per broken file. If there are any and `skip_broken` is not set, `output` is not created; shards without
        broken frames are kept for the next run.

    Raises:
        ValueError: If `output` holds something else, has a name that `datasets` cannot load, or another process prepares it.
        OSError: If it cannot be written.
    """
    plan, output = plan_shards(source), output.expanduser().resolve()
    if set("*?[]") & set(str(output)):
        raise ValueError(
            f"`datasets` reads * ? [ ] in the name of a folder as patterns; choose another name than {output}."
        )
    if is_complete(output, plan, skip_broken):
        return []
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(
            f"The output must be a new folder, and {output} holds something else, or was made of other files. Remove it, or "
            "choose another folder."
        )
    unfinished = output.with_name(f"unfinished_{output.name}")
    (unfinished / "data").mkdir(parents=True, exist_ok=True)
    lock = output.with_name(f".{unfinished.name}.lock")  # beside it: Windows moves no folder in which a file is open
    with locked(lock, "One process prepares a folder at a time"):
        problems = write_missing(source, unfinished, plan, num_processes, skip_broken)
        if not problems or skip_broken:
            finish_folder(source, unfinished, plan)
            if output.exists():
                output.rmdir()  # it is empty
            os.replace(unfinished, output)
    lock.unlink(missing_ok=True)
    return problems


def finish_folder(source: Source, folder: Path, plan: Plan) -> None:
    """Removes shards of earlier runs with other files, and writes the card.

    Raises:
        ValueError: If a split has no frame that can be used.
    """
    for path in (folder / "data").iterdir():
        # `datasets` cannot read a file without rows; a shard of broken frames has none.
        if f"data/{path.name}" not in plan or pyarrow.parquet.read_metadata(path).num_rows == 0:
            path.unlink()
    ids = {split: read_prepared_ids(folder, split) for split in source.frames}
    for split, names in ids.items():
        if not names:
            raise ValueError(f"Every split needs a frame; all of {split} are broken. Repair some, and run this again.")
    make_card(source, ids).save(folder / "README.md")


def is_complete(folder: Path, plan: Plan, skip_broken: bool) -> bool:
    """Returns whether a folder has every shard."""
    return all(is_written(folder / name, frames, skip_broken) for name, frames in plan.items())


def is_written(path: Path, frames: list[Frame], skip_broken: bool) -> bool:
    """Returns whether a shard is complete; with `skip_broken`, it may lack frames."""
    try:
        num_rows = pyarrow.parquet.read_metadata(path).num_rows
    except (OSError, pyarrow.ArrowInvalid):  # missing, or truncated when the machine stopped
        return False
    return skip_broken or num_rows == len(frames)


def write_missing(source: Source, folder: Path, plan: Plan, num_processes: int, skip_broken: bool) -> list[str]:
    """Writes the missing shards except those with broken frames; returns one line per broken file."""
    missing = {name: frames for name, frames in plan.items() if not is_written(folder / name, frames, skip_broken)}
    num_frames, num_missing = (sum(len(frames) for frames in shards.values()) for shards in (plan, missing))
    problems = []
    bar = tqdm(desc=f"writing {folder}", initial=num_frames - num_missing, total=num_frames, unit="frame")
    with bar, process_map(num_processes) as apply:
        for name, frames in missing.items():
            rows = []
            for row in apply(try_row, frames, repeat(source.read_row, len(frames))):
                (problems if isinstance(row, BrokenFrameError) else rows).append(row)
                bar.update()
            if len(rows) == len(frames) or skip_broken:
                write_shard(folder / name, rows, source.features)
    return [line for problem in problems for line in str(problem).split("\n")]


def write_shard(path: Path, rows: list[dict[str, Any]], features: datasets.Features) -> None:
    """Writes a Parquet file atomically.

    Raises:
        OSError: If the disk is full or cannot be written.
    """
    columns = {column: [row[column] for row in rows] for column in features}  # has all columns even without rows
    table = datasets.Dataset.from_dict(columns, features=features).data.table
    try:
        with atomic_write(path) as unfinished:
            pyarrow.parquet.write_table(table, unfinished, row_group_size=ROWS_PER_GROUP, write_page_checksum=True)
    except OSError as error:
        raise OSError(
            f"Cannot write {path}: {error}. Free some space, and run the same command again: finished shards are kept."
        ) from error


def read_prepared_ids(folder: Path, split: str) -> list[str]:
    """Reads the ids in the shards of a split."""
    paths = sorted((folder / "data").glob(f"{split}-*.parquet"))
    tables = [pyarrow.parquet.read_table(path, columns=["id"], page_checksum_verification=True) for path in paths]
    return [name for table in tables for name in table["id"].to_pylist()]


def make_card(source: Source, ids: dict[str, list[str]]) -> DatasetCard:
    """Returns the dataset card of a prepared folder: its content, origin and use.

    Args:
        source: The dataset.
        ids: Ids of the frames in the folder, by split.
    """
    data_files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in source.frames]
    metadata = DatasetCardData(
        pretty_name=source.title,
        license="other",
        tags=["multi-task-learning", "dense-prediction"],
        configs=[{"config_name": "default", "data_files": data_files}],
    )
    return DatasetCard(f"---\n{metadata}\n---\n\n{describe(source, ids)}")


def describe(source: Source, ids: dict[str, list[str]]) -> str:
    """Returns the text of the card."""
    origins = {column: f"**derived**: {text}" for column, text in source.derived.items()}
    columns = "\n".join(
        f"| `{column}` | {describe_column(column)} | {origins.get(column, 'as in the files')} |"
        for column in source.columns
    )
    missing = {
        split: sorted({frame["id"] for frame in frames} - set(ids[split])) for split, frames in source.frames.items()
    }
    shrunk = f", {source.factor} times smaller in height and width" if source.factor > 1 else ""
    left_out = [f"`{name}` ({split})" for split, names in missing.items() for name in names]
    return f"""# {source.title}, prepared for multi-task dense prediction

Prepared by transformers-sem {version("transformers-sem")} from {source.variant}{shrunk}.

| split | frames | in papers |
|---|---|---|
{format_counts({split: len(names) for split, names in ids.items()}, source.official_sizes)}

Frames left out, because their files are broken: {", ".join(left_out) or "none"}.

```python
from datasets import load_dataset

rows = load_dataset("path/of/this/folder")  # streaming=True also works
```

| column | content | origin |
|---|---|---|
| `id` | name of the frame | as in the files |
{columns}

In each row, `derived` lists the columns that are computed and not annotated. The columns `<task>_classes` hold the classes
in the image; their features have the names of all classes.

{source.terms}
"""


def format_counts(sizes: dict[str, int], official_sizes: dict[str, int]) -> str:
    """Returns one line of the table per split."""
    return "\n".join(f"| {split} | {size} | {official_sizes[split]} |" for split, size in sizes.items())


def preview_rows(source: Source, *, skip_broken: bool = False) -> Iterator[dict[str, Any]]:
    """Yields evenly spaced frames of all splits as rows of images; with `skip_broken`, the next one in place of a broken one.

    Raises:
        BrokenFrameError: If a file of one of them cannot be used and `skip_broken` is not set.
    """
    frames = [frame for split in source.frames.values() for frame in split]
    count = min(NUM_PREVIEWS, len(frames))
    for index in range(count):
        part = frames[index * len(frames) // count : (index + 1) * len(frames) // count]
        rows = (try_row(frame, source.read_row) for frame in part)
        if skip_broken:
            rows = (row for row in rows if not isinstance(row, BrokenFrameError))
        for row in islice(rows, 1):
            if isinstance(row, BrokenFrameError):
                raise row
            yield source.features.decode_example(source.features.encode_example(row))


def save_preview(source: Source, path: Path, *, skip_broken: bool = False) -> None:
    """Saves a contact sheet: images next to all their maps in color.

    Raises:
        BrokenFrameError: If a file of one of the frames cannot be used and `skip_broken` is not set.
        OSError: If the image cannot be written.
    """
    tasks = [column for column in source.columns if column in TASKS]
    sheet = contact_sheet(list(preview_rows(source, skip_broken=skip_broken)), tasks)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(path, sheet)

"""From what is on a user's disk to what `datasets` serves fast: verified Parquet shards, and a card that says what is in them.

    OUTPUT/data/train-00000-of-00008-STAMP.parquet ...     the stamp changes with the files that a shard was made of
    OUTPUT/README.md                                       the card

Everything is written to `unfinished_OUTPUT`, shard by shard, and moved when it is whole. Run again, the same command goes on
with the shards that are missing there.
"""

import argparse
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
from huggingface_hub import DatasetCard, DatasetCardData
from tqdm.auto import tqdm

from ..hub.upload import create_repository, upload
from ..tasks import TASKS
from ..utils.processes import available_cpus, process_pool
from ..visualization.panels import contact_sheet
from .files import BrokenFrameError, describe_file
from .row_format import ENCODINGS
from .sources import Frame, Source, SourceBuilder, files_of


FRAMES_PER_SHARD = 100
ROWS_PER_GROUP = 20  # what a reader has in memory at a time: some 30 MB
NUM_PREVIEWS = 8
Plan = dict[str, list[Frame]]


def try_row(frame: Frame, to_row: Callable[[Frame], dict[str, Any]]) -> dict[str, Any] | BrokenFrameError:
    """Reads a frame as a row, or returns what is wrong with it."""
    try:
        return to_row(frame)
    except BrokenFrameError as error:
        return error


def find_problem(frame: Frame, to_row: Callable[[Frame], dict[str, Any]]) -> str | None:
    """Reads a frame, and returns what is wrong with it, a line for each file, or `None`."""
    row = try_row(frame, to_row)
    return str(row) if isinstance(row, BrokenFrameError) else None


@contextmanager
def mapping(num_processes: int) -> Iterator[Callable[..., Iterator]]:
    """A `map` over processes; one process needs no others."""
    if num_processes == 1:
        yield map
        return
    with process_pool(num_processes) as pool:
        yield pool.map


def verify(source: Source, num_processes: int) -> list[str]:
    """Reads every file of a data set, and writes nothing.

    Args:
        source: The data set.
        num_processes: Processes to read with.

    Returns:
        What is wrong, a line for each file, and what to do about it.
    """
    frames = [frame for split in source.frames.values() for frame in split]
    with mapping(num_processes) as apply:
        found = apply(find_problem, frames, repeat(source.read_row, len(frames)))
        problems = [problem for problem in tqdm(found, desc="verifying", total=len(frames), unit="frame") if problem]
    train, validation = ({frame["id"] for frame in split} for split in source.frames.values())
    both = sorted(train & validation)
    if both:
        problems.append(f"A frame is in one split; both lists have {both[:5]}. Take them off one of the lists.")
    return [line for problem in problems for line in problem.split("\n")]


def plan_shards(source: Source) -> Plan:
    """Cuts the splits into shards.

    Returns:
        Path of each shard below the folder to its frames.
    """
    plan = {}
    for split, frames in source.frames.items():
        parts = [frames[start : start + FRAMES_PER_SHARD] for start in range(0, len(frames), FRAMES_PER_SHARD)]
        for index, part in enumerate(parts):
            plan[f"data/{split}-{index:05d}-of-{len(parts):05d}-{stamp(source, part)}.parquet"] = part
    return plan


def stamp(source: Source, frames: list[Frame]) -> str:
    """What the rows of a shard depend on: the files by name, size and time, and how they are read."""
    files = [(frame["id"], [describe_file(path) for path in files_of(frame)]) for frame in frames]
    facts = (str(SourceBuilder.VERSION), str(source.features), source.derived, files)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def prepare(source: Source, output: Path, num_processes: int, *, skip_broken: bool = False) -> list[str]:
    """Writes shards and card, or what an earlier run has left to do.

    Args:
        source: The data set.
        output: The folder to write.
        num_processes: Processes to read with.
        skip_broken: Whether to leave out broken frames; else nothing is finished while there are any.

    Returns:
        What is wrong with the broken frames, a line for each file; without `skip_broken`, where there are any, `output` is
        not there yet, but all shards without broken frames are kept for the next run.

    Raises:
        ValueError: If `output` holds something else, or cannot be loaded under its name.
        OSError: If it cannot be written.
    """
    plan, output = plan_shards(source), output.expanduser().resolve()
    if set("*?[]") & set(str(output)):
        raise ValueError(
            f"`datasets` takes * ? [ ] in the name of a folder for patterns; choose another than {output}."
        )
    if is_whole(output, plan, skip_broken):
        return []
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(
            f"The output must be a new folder, and {output} holds something else, or was made of other files. Remove it, or "
            "choose another."
        )
    unfinished = output.with_name(f"unfinished_{output.name}")
    (unfinished / "data").mkdir(parents=True, exist_ok=True)
    problems = write_missing(source, unfinished, plan, num_processes, skip_broken)
    if not problems or skip_broken:
        finish(source, unfinished, plan)
        os.replace(unfinished, output)
    return problems


def finish(source: Source, folder: Path, plan: Plan) -> None:
    """Removes what earlier runs with other files have left, and writes the card.

    Raises:
        ValueError: If a split has no frame that can be used.
    """
    for path in (folder / "data").glob("*-of-*"):
        # `datasets` cannot read a file without rows, which a shard of broken frames is.
        if f"data/{path.name}" not in plan or pyarrow.parquet.read_metadata(path).num_rows == 0:
            path.unlink()
    ids = {split: read_prepared_ids(folder, split) for split in source.frames}
    for split, names in ids.items():
        if not names:
            raise ValueError(f"Every split needs a frame; all of {split} are broken. Mend some, and run this again.")
    make_card(source, ids).save(folder / "README.md")


def is_whole(folder: Path, plan: Plan, skip_broken: bool) -> bool:
    """Whether a folder has every shard."""
    return all(is_written(folder / name, frames, skip_broken) for name, frames in plan.items())


def is_written(path: Path, frames: list[Frame], skip_broken: bool) -> bool:
    """Whether a shard is there and whole, and none of its frames was left out that must not be."""
    try:
        num_rows = pyarrow.parquet.read_metadata(path).num_rows
    except (OSError, pyarrow.ArrowInvalid):  # not there, or cut off when the machine stopped
        return False
    return skip_broken or num_rows == len(frames)


def write_missing(source: Source, folder: Path, plan: Plan, num_processes: int, skip_broken: bool) -> list[str]:
    """Writes the shards that are not there, except those with broken frames; returns what is wrong with these."""
    missing = {name: frames for name, frames in plan.items() if not is_written(folder / name, frames, skip_broken)}
    num_frames, num_missing = (sum(len(frames) for frames in shards.values()) for shards in (plan, missing))
    problems = []
    bar = tqdm(desc=f"writing {folder}", initial=num_frames - num_missing, total=num_frames, unit="frame")
    with bar, mapping(num_processes) as apply:
        for name, frames in missing.items():
            rows = []
            for row in apply(try_row, frames, repeat(source.read_row, len(frames))):
                (problems if isinstance(row, BrokenFrameError) else rows).append(row)
                bar.update()
            if len(rows) == len(frames) or skip_broken:
                write_shard(folder / name, rows, source.features)
    return [line for problem in problems for line in str(problem).split("\n")]


def write_shard(path: Path, rows: list[dict[str, Any]], features: datasets.Features) -> None:
    """Writes a Parquet file, or, if that fails, nothing.

    Raises:
        OSError: If the disk is full or cannot be written.
    """
    unfinished = path.with_suffix(".unfinished")
    try:
        columns = {column: [row[column] for row in rows] for column in features}  # also those of no row at all
        table = datasets.Dataset.from_dict(columns, features=features).data.table
        pyarrow.parquet.write_table(table, unfinished, row_group_size=ROWS_PER_GROUP)
        os.replace(unfinished, path)
    except OSError as error:
        raise OSError(
            f"Cannot write {path}: {error}. Free some space, and run the same command again: finished shards are kept."
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def read_prepared_ids(folder: Path, split: str) -> list[str]:
    """The ids in the shards of a split."""
    paths = sorted((folder / "data").glob(f"{split}-*.parquet"))
    tables = [pyarrow.parquet.read_table(path, columns=["id"]) for path in paths]
    return [name for table in tables for name in table["id"].to_pylist()]


def make_card(source: Source, ids: dict[str, list[str]]) -> DatasetCard:
    """Says what is in a prepared folder, where it is from, and how to load it.

    Args:
        source: The data set.
        ids: Those of the frames in the folder, by split.
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
    """The text of the card."""
    columns = "\n".join(
        f"| `{column}` | {ENCODINGS[column]} | {'**derived**: ' + source.derived[column] if column in source.derived else 'as in the files'} |"
        for column in source.columns
    )
    missing = {
        split: sorted({frame["id"] for frame in frames} - set(ids[split])) for split, frames in source.frames.items()
    }
    left_out = [f"`{name}` ({split})" for split, names in missing.items() for name in names]
    return f"""# {source.title}, prepared for multi-task dense prediction

Made by transformers-sem {version("transformers-sem")} from {source.variant}.

| split | frames | in papers |
|---|---|---|
{format_counts({split: len(names) for split, names in ids.items()}, source.official_sizes)}

Frames left out, because their files are broken: {", ".join(left_out) or "none"}.

```python
from datasets import load_dataset

rows = load_dataset("path/of/this/folder")  # streaming=True also works
```

| column | what it holds | origin |
|---|---|---|
| `id` | name of the frame | as in the files |
{columns}

`derived` names, in every row, the columns that were computed rather than annotated. The columns `<task>_classes` hold the
classes that the image shows, and name all classes.

{source.terms}
"""


def format_counts(sizes: dict[str, int], official_sizes: dict[str, int]) -> str:
    """A line of a table for each split."""
    return "\n".join(f"| {split} | {size} | {official_sizes[split]} |" for split, size in sizes.items())


def preview_rows(source: Source) -> Iterator[dict[str, Any]]:
    """Frames from all over the splits, as rows of pictures.

    Raises:
        BrokenFrameError: If a file of one cannot be used.
    """
    frames = [frame for split in source.frames.values() for frame in split]
    count = min(NUM_PREVIEWS, len(frames))
    for index in range(count):
        frame = frames[index * len(frames) // count]
        yield source.features.decode_example(source.features.encode_example(source.read_row(frame)))


def save_preview(source: Source, path: Path) -> None:
    """Draws a contact sheet: images beside all their maps in colour.

    Raises:
        BrokenFrameError: If a file of one of its frames cannot be used.
        OSError: If the picture cannot be written.
    """
    tasks = [column for column in source.columns if column in TASKS]
    sheet = contact_sheet(list(preview_rows(source)), tasks)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished_{path.name}")
    try:
        sheet.save(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def build_parser(description: str) -> argparse.ArgumentParser:
    """The command line of the scripts that prepare a data set."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="what you have: a folder, an archive or a file")
    parser.add_argument("--output", type=Path, help="folder to write Parquet shards and a data set card to")
    parser.add_argument("--verify", action="store_true", help="read every file, list what is wrong, write nothing")
    parser.add_argument("--preview", type=Path, metavar="PNG", help="draw frames beside all their maps in colour")
    parser.add_argument("--skip-broken", action="store_true", help="leave broken frames out; the card names them")
    parser.add_argument("--processes", type=int, default=available_cpus(), help="default: all cores")
    parser.add_argument("--push-to-hub", metavar="USER/NAME", help="upload OUTPUT as a private data set")
    return parser


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuses command lines that cannot mean anything.

    Raises:
        ValueError: If nothing is asked for, or an option lacks what it needs.
    """
    if not (arguments.output or arguments.verify or arguments.preview):
        raise ValueError("Say what to do: --output FOLDER, --verify or --preview FILE.png.")
    if arguments.push_to_hub and not arguments.output:
        raise ValueError("--push-to-hub uploads a prepared folder; say which with --output FOLDER.")
    if arguments.processes < 1:
        raise ValueError(f"--processes must be at least 1; got {arguments.processes}.")
    if arguments.preview and arguments.preview.suffix != ".png":
        raise ValueError(f"--preview writes a .png file; got {arguments.preview}.")


def run(find_source: Callable[[Path], Source], arguments: argparse.Namespace) -> Iterator[str]:
    """Does what the command line asks for.

    Args:
        find_source: Recognises the data set.
        arguments: Of `build_parser`.

    Yields:
        What there is to say, as it comes.

    Raises:
        ValueError: If the data cannot be used, after all that is wrong was said.
        OSError: If something is missing, or cannot be written.
    """
    check_arguments(arguments)
    if arguments.push_to_hub:  # first, or a missing login would show after an hour
        repository = create_repository(arguments.push_to_hub, repo_type="dataset", private=True)
    source = find_source(arguments.source)
    yield f"{source.title}: {source.variant}, {source.root}"
    yield from describe_source(source)
    problems = verify(source, arguments.processes) if arguments.verify else []
    if arguments.output:
        problems = prepare(source, arguments.output, arguments.processes, skip_broken=arguments.skip_broken)
    yield from problems
    if problems and not (arguments.output and arguments.skip_broken):
        kept = " All shards without broken frames are written; the same command goes on." if arguments.output else ""
        raise ValueError(
            f"{len(problems)} files cannot be used.{kept} Mend them, or leave them out with --skip-broken."
        )
    if arguments.output:
        yield f"Written: {arguments.output}"
    if arguments.verify and not problems:
        yield "Every file is whole."
    if arguments.preview:
        save_preview(source, arguments.preview)
        yield f"Written: {arguments.preview}"
    if arguments.push_to_hub:
        address = upload(arguments.output, repository, repo_type="dataset")
        yield f"Uploaded: {address}"


def describe_source(source: Source) -> Iterator[str]:
    """Counts frames, and says which maps there are."""
    for split, frames in source.frames.items():
        yield f"{split}: {len(frames)} frames; papers have {source.official_sizes[split]}"
    for column in source.columns:
        yield f"{column}: {source.derived.get(column, 'as in the files')}"

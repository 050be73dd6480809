"""Convert a downloaded benchmark to Parquet shards, which load fast, with a dataset card.

    transformers-sem prepare nyud_v2 SOURCE --verify
    transformers-sem prepare pascal_context SOURCE --output FOLDER --preview preview.png

SOURCE of nyud_v2: the folder NYUDv2 or NYUD_MT, a tar or zip archive of it, or the official nyu_depth_v2_labeled.mat with
splits.mat and a class map beside it. SOURCE of pascal_context: the folder PASCALContext or PASCAL_MT, or a tar or zip archive of
it. SOURCE of cityscapes: the folder with leftImg8bit, gtFine, disparity and camera, or a tar or zip archive of it;
--num-classes 7 writes categories instead of classes. Maps that are missing are computed where that is possible, and marked as
derived. --verify reads every file and lists what is wrong. The same command resumes a run that was interrupted. --shrink 4 writes
images and maps at a quarter of their height and width, for experiments on small machines.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..data import cityscapes, nyud_v2, pascal_context
from ..data.prepare import prepare, save_preview, verify
from ..data.sources import Source
from ..hub.upload import create_repository, upload
from ..utils.errors import plain_errors
from ..utils.processes import available_cpus
from .arguments import command_parser


SOURCES = {
    "nyud_v2": nyud_v2.find_source,
    "pascal_context": pascal_context.find_source,
    "cityscapes": cityscapes.find_source,
}


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    parser = command_parser("prepare", __doc__)
    parser.add_argument("benchmark", choices=SOURCES, help="name of the benchmark")
    parser.add_argument("source", type=Path, help="your copy of it: a folder, an archive or a file")
    parser.add_argument("--output", type=Path, help="folder to write Parquet shards and a dataset card to")
    parser.add_argument("--verify", action="store_true", help="read every file, list what is wrong, write nothing")
    parser.add_argument("--preview", type=Path, metavar="PNG", help="draw images beside all their maps in color")
    parser.add_argument("--skip-broken", action="store_true", help="leave broken images out; the card names them")
    parser.add_argument("--shrink", type=int, default=1, metavar="N", help="make images and maps N times smaller")
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help="of cityscapes: 19 (default), or 7 for categories"
    )
    parser.add_argument("--processes", type=int, default=available_cpus(), help="default: all cores")
    parser.add_argument("--push-to-hub", metavar="USER/NAME", help="upload OUTPUT as a private dataset")
    return parser


def check_arguments(arguments: argparse.Namespace) -> None:
    """Checks that the options fit together.

    Raises:
        ValueError: If no action is asked for, or an option lacks what it needs.
    """
    if not (arguments.output or arguments.verify or arguments.preview):
        raise ValueError("Nothing to do: pass --output FOLDER, --verify or --preview FILE.png.")
    if arguments.push_to_hub and not arguments.output:
        raise ValueError("--push-to-hub uploads a prepared folder; name it with --output FOLDER.")
    if arguments.num_classes is not None and arguments.benchmark != "cityscapes":
        raise ValueError(f"--num-classes is a choice of cityscapes; {arguments.benchmark} has none. Leave it out.")
    if arguments.processes < 1:
        raise ValueError(f"--processes must be at least 1; got {arguments.processes}.")
    if arguments.shrink < 1:
        raise ValueError(f"--shrink must be at least 1; got {arguments.shrink}.")
    if arguments.preview and arguments.preview.suffix != ".png":
        raise ValueError(f"--preview writes a .png file; got {arguments.preview}.")


def run(find_source: Callable[..., Source], arguments: argparse.Namespace) -> Iterator[str]:
    """Does what the command line asks for.

    Args:
        find_source (`Callable`): Recognizes the benchmark in a folder, an archive or a file.
        arguments (`argparse.Namespace`): Of [`build_parser`].

    Yields:
        `str`: lines for the user, as soon as they are known.

    Raises:
        ValueError: If the data cannot be used; the lines before say why.
        OSError: If a file is missing or cannot be written.
    """
    check_arguments(arguments)
    if arguments.push_to_hub:  # first, or a missing login would show after an hour
        repository = create_repository(arguments.push_to_hub, repo_type="dataset", private=True)
    choices = {} if arguments.num_classes is None else {"num_classes": arguments.num_classes}
    source = replace(find_source(arguments.source, **choices), factor=arguments.shrink)
    yield f"{source.title}: {source.variant}, {source.root}"
    yield from describe_source(source)
    problems = verify(source, arguments.processes) if arguments.verify else []
    if arguments.output:
        prepared = prepare(source, arguments.output, arguments.processes, skip_broken=arguments.skip_broken)
        problems += [problem for problem in prepared if problem not in problems]
    yield from problems
    if problems and not (arguments.output and arguments.skip_broken):
        kept = " All shards without broken images are written; the same command resumes." if arguments.output else ""
        raise ValueError(
            f"{len(problems)} files cannot be used.{kept} Repair them, or leave them out with --skip-broken."
        )
    if arguments.output:
        yield f"Written: {arguments.output}"
    if arguments.verify and not problems:
        yield "Every file is intact."
    if arguments.preview:
        save_preview(source, arguments.preview, skip_broken=arguments.skip_broken)
        yield f"Written: {arguments.preview}"
    if arguments.push_to_hub:
        address = upload(arguments.output, repository, repo_type="dataset")
        yield f"Uploaded: {address}"


def describe_source(source: Source) -> Iterator[str]:
    """Yields the size of each split and the origin of each map."""
    for split, frames in source.frames.items():
        yield f"{split}: {len(frames)} frames; papers have {source.official_sizes[split]}"
    for column in source.columns:
        yield f"{column}: {source.derived.get(column, 'as in the files')}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Recognizes the source, checks it, and writes."""
    parsed = build_parser().parse_args(arguments)
    with plain_errors():
        for line in run(SOURCES[parsed.benchmark], parsed):
            print(line, flush=True)


if __name__ == "__main__":
    main()

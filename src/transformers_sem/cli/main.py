"""Entry point of `transformers-sem COMMAND`: imports the module of one command and calls its `main`."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__


COMMANDS = {  # {command: (module, what the command does)}
    "train": ("train", "train a model, evaluate it and save it"),
    "evaluate": ("evaluate", "compute the scores of a trained model"),
    "evaluate-boundaries": ("evaluate_boundaries", "compute the boundary F-measure of images on disk"),
    "predict": ("predict", "predict images, folders, videos and cameras"),
    "prepare": ("prepare", "convert a downloaded benchmark to Parquet"),
    "export": ("export", "export a trained model to ONNX, or as a page for the browser"),
    "demo": ("demo", "serve the demo page, or write it as a Hub Space"),
    "push": ("push", "upload a trained model to the Hub"),
    "ablation": ("ablation", "reproduce the tables and figures of the paper"),
    "benchmark": ("benchmark", "measure speed and cost"),
    "cards": ("cards", "render the model cards of a folder"),
}


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's name; what follows the name is parsed by the command itself."""
    table = "\n".join(f"  {command:21}{summary}" for command, (_, summary) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="transformers-sem",
        usage="%(prog)s [-h] [--version] COMMAND ...",
        description=f"Train, evaluate and use Synergy Embedding Models (SEM).\n\ncommands:\n{table}",
        epilog="`transformers-sem COMMAND --help` describes a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"transformers-sem {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command.

    Args:
        arguments (`Sequence[str]`, *optional*): Name of the command and its arguments; `None` takes those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = build_parser().parse_args(arguments[:1]).command
    module, _ = COMMANDS[command]
    import_module(f".{module}", __package__).main(arguments[1:])

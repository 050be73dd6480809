"""Commit, versions and hardware, for the reports that runs and evaluations write."""

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from .files import locked, write_text


PROGRAM = "transformers-sem"


def lock_report(path: Path) -> AbstractContextManager:
    """Locks a JSON report and all that is kept beside it while it is computed, in a `with` block.

    Raises:
        ValueError: If another process holds the lock.
    """
    return locked(path.with_name(f".{path.stem}.lock"), "One command writes a report at a time")


def save_report(path: Path, **facts) -> None:
    """Writes a JSON report: the `facts`, then the command, the commit, the versions and the hardware."""
    report = {**facts, "command": typed_command(sys.argv), "environment": environment()}
    write_text(path, json.dumps(report, indent=2) + "\n")


def typed_command(arguments: Sequence[str]) -> str:
    """Returns the command that starts a process with these `sys.argv` again."""
    path = Path(arguments[0])
    if path.stem == PROGRAM or path.name == "__main__.py":  # the console entry point, or `python -m transformers_sem`
        start = [PROGRAM]
    elif path.parent.name == "cli":  # `accelerate launch -m transformers_sem.cli.train`
        start = [PROGRAM, path.stem.replace("_", "-")]
    else:
        start = ["python", arguments[0]]
    return shlex.join([*start, *arguments[1:]])


def environment() -> dict[str, str | None]:
    """Returns the commit, the versions of the packages and the hardware."""
    packages = ("transformers-sem", "torch", "transformers", "timm", "datasets", "accelerate", "scipy", "numpy")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    hardware = gpu or f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    return {
        "commit": starting_commit(),
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "hardware": hardware,
    }


@cache
def starting_commit() -> str | None:
    """Returns the commit at the first call, which commands make when they start.

    Files may change while a program runs; the modules it has loaded do not.
    """
    return git_commit()


def git_commit() -> str | None:
    """Returns the commit of this code, with `-dirty` where files differ from it; `None` outside a repository."""
    # A virtual environment may lie in another project's repository: only one that tracks this file counts.
    if run_git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = run_git("rev-parse", "HEAD")
    # `git describe --dirty` would lock the index, whatever it is told
    return f"{commit}-dirty" if commit and run_git("status", "--porcelain", "--untracked-files=no") else commit


def run_git(*arguments: str) -> str | None:
    """Runs git in the folder of this file and returns its output; `None` if it fails or is not installed."""
    try:
        # Without locks: one that is left behind, by a kill or on a full disk, would stop the user's own git.
        command = ["git", "--no-optional-locks", *arguments]
        result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()

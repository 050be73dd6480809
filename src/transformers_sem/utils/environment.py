"""."""

import json
import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from transformers_sem.utils.files import atomic_write


def save_report(path: Path, **facts) -> None:
    """Writes scores and how they came about as JSON: the `facts`, then command, commit, versions and hardware."""
    report = {**facts, "command": shlex.join(["python", *sys.argv]), "environment": environment()}
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(report, indent=2) + "\n")


def environment() -> dict[str, str | None]:
    """Commit, versions and hardware, for reports."""
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
    """The commit at the first call, which scripts make when they start.

    Files may change while a program runs, and what it has loaded does not.
    """
    return git_commit()


def git_commit() -> str | None:
    """The commit of this code, `-dirty` appended where files differ from it; `None` where it is installed without."""
    # a virtual environment may lie in somebody else's repository: only one that knows this file is meant
    if run_git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return run_git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def run_git(*arguments: str) -> str | None:
    """What git prints about the folder of this file, or `None` where it cannot."""
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()

"""What a run says while it trains: means between two log entries, for the history, the trackers and the progress bar."""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator

from ..utils.files import atomic_write


HISTORY_NAME = "history.jsonl"


class LossLog:
    """Running means of the total loss and of each task's, which a checkpoint carries over.

    The history, `output_dir/history.jsonl`, has one JSON object per log entry: `step`; `loss` and `losses` of each task, null
    where no step was finite; `learning_rate` of what learns fastest; `images_per_second` and `memory_gigabytes`, the
    largest that this process has held; `skipped_steps` since the start.

    Args:
        accelerator (`Accelerator`): Holds the trackers.
        folder (`Path`): Where the history is.
        images_per_step (`int`): Images of an optimiser step, over all ranks.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, images_per_step: int):
        self.accelerator, self.path, self.images_per_step = accelerator, folder / HISTORY_NAME, images_per_step
        self.sums: dict[str, float] = {}
        self.count = 0
        self._start_timing()

    def state_dict(self) -> dict:
        """What a resumed run needs of the entry that is not written yet."""
        return {"sums": dict(self.sums), "count": self.count}

    def load_state_dict(self, state: dict) -> None:
        """Goes on with that entry."""
        self.sums, self.count = dict(state["sums"]), state["count"]

    def _start_timing(self) -> None:
        self.started, self.num_timed = time.perf_counter(), 0

    def add(self, losses: dict[str, float]) -> None:
        """Adds a step: `loss` and those of the tasks. One that is not finite, and was skipped, leaves the means alone."""
        self.num_timed += 1
        if all(map(math.isfinite, losses.values())):
            self.sums = {name: self.sums.get(name, 0.0) + value for name, value in losses.items()}
            self.count += 1
        else:
            self.sums = {name: self.sums.get(name, 0.0) for name in losses}

    def flush(self, step: int, learning_rate: float, skipped_steps: int) -> dict[str, str]:
        """Writes the means since the last call to history and trackers, and returns them for a progress bar."""
        losses = {name: value / self.count if self.count else None for name, value in self.sums.items()}
        entry = {
            "step": step,
            "loss": losses.pop("loss"),
            "losses": losses,
            "learning_rate": learning_rate,
            "images_per_second": self.num_timed * self.images_per_step / (time.perf_counter() - self.started),
            "memory_gigabytes": largest_memory(self.accelerator.device) / 1e9,
            "skipped_steps": skipped_steps,
        }
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())  # a checkpoint that survives a power failure has its history before it
        values = {name: value for name, value in flatten(entry) if value is not None}
        self.accelerator.log({f"train/{name}": value for name, value in values.items()}, step=step)
        self.sums, self.count = {}, 0
        self._start_timing()
        return {name: f"{value:.3g}" for name, value in values.items()}

    def truncate_after(self, step: int) -> None:
        """Drops the entries of steps that a resumed run takes again, and what a killed one left half written."""
        if not self.accelerator.is_main_process or not self.path.exists():
            return
        kept = [json.dumps(entry) + "\n" for entry in read_history(self.path.parent) if entry["step"] <= step]
        with atomic_write(self.path) as unfinished:
            unfinished.write_text("".join(kept))


def read_history(folder: Path) -> list[dict]:
    """The log entries of a run up to the first line that is none; a killed run may have left the last one half written."""
    entries = []
    for line in history_lines(folder):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not is_entry(entry):
            break
        entries.append(entry)
    return entries


def history_lines(folder: Path) -> list[bytes]:
    """The lines that `read_history` reads; a run that has logged nothing has none."""
    path = folder / HISTORY_NAME
    return path.read_bytes().splitlines() if path.is_file() else []


def is_entry(value: Any) -> bool:
    """Whether a JSON value has the form of a log entry, as far as a reader must rely on it."""
    return isinstance(value, dict) and isinstance(value.get("step"), int) and isinstance(value.get("losses", {}), dict)


def flatten(entry: dict) -> Iterator[tuple[str, float | None]]:
    """Names and values for trackers, which know no nesting; the losses of tasks go by the names of the tasks."""
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from value.items()
        elif name != "step":
            yield name, value


def largest_memory(device: torch.device) -> int:
    """Bytes that this process has held at most on the accelerator, or holds now where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss

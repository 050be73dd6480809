"""The history of a run: mean losses and validation scores over the steps, in a file and in the trackers."""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..utils.files import write_text
from ..utils.memory import peak_memory


HISTORY_NAME = "history.jsonl"


class History:
    """Writes log entries of losses and scores, and keeps the running means of the losses between two entries.

    `output_dir/history.jsonl` has one JSON object per entry. An entry of losses has `step`; `loss` and `losses`, means over the
    steps since the last entry, null where no step was finite; `learning_rate`, the largest of all layers; `images_per_second`;
    `memory_gigabytes`, the peak of this process; `skipped_steps` since the start. An entry of scores has `step` and `scores`.

    Args:
        accelerator (`Accelerator`): Holds the trackers.
        folder (`Path`): Folder of the file.
        images_per_step (`int`): Images per optimizer step, over all ranks.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, images_per_step: int):
        self.accelerator, self.path, self.images_per_step = accelerator, folder / HISTORY_NAME, images_per_step
        self.sums: dict[str, float] = {}
        self.count = 0
        self._start_timing()

    def state_dict(self) -> dict:
        """Returns the running means of the next entry, for a checkpoint."""
        return {"sums": dict(self.sums), "count": self.count}

    def load_state_dict(self, state: dict) -> None:
        """Restores the running means."""
        self.sums, self.count = dict(state["sums"]), state["count"]

    def _start_timing(self) -> None:
        self.started, self.num_timed = time.perf_counter(), 0

    def add(self, losses: dict[str, float]) -> None:
        """Adds `loss` and the losses of the tasks of one step; a step with a loss that is not finite is left out."""
        self.num_timed += 1
        if all(map(math.isfinite, losses.values())):
            self.sums = {name: self.sums.get(name, 0.0) + value for name, value in losses.items()}
            self.count += 1
        else:
            self.sums = {name: self.sums.get(name, 0.0) for name in losses}

    def write_losses(self, step: int, learning_rate: float, skipped_steps: int) -> dict[str, str]:
        """Writes the means since the last call and returns them, formatted for a progress bar."""
        losses = {name: value / self.count if self.count else None for name, value in self.sums.items()}
        entry = {
            "step": step,
            "loss": losses.pop("loss"),
            "losses": losses,
            "learning_rate": learning_rate,
            "images_per_second": self.num_timed * self.images_per_step / (time.perf_counter() - self.started),
            "memory_gigabytes": peak_memory(self.accelerator.device) / 1e9,
            "skipped_steps": skipped_steps,
        }
        self._write(entry)
        values = {name: value for name, value in tracker_values(entry) if value is not None}
        self.accelerator.log({f"train/{name}": value for name, value in values.items()}, step=step)
        self.sums, self.count = {}, 0
        self._start_timing()
        return {name: f"{value:.3g}" for name, value in values.items()}

    def write_scores(self, step: int, scores: dict[str, float]) -> None:
        """Writes scores `{"task/score": value}` of validation images."""
        self._write({"step": step, "scores": scores})
        self.accelerator.log({f"validation/{name}": value for name, value in scores.items()}, step=step)

    def _write(self, entry: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())  # a checkpoint that survives a power failure has its history before it

    def truncate_after(self, step: int) -> None:
        """Removes the entries of steps that a resumed run takes again, and a line that a killed run left incomplete."""
        if not self.accelerator.is_main_process or not self.path.exists():
            return
        kept = [json.dumps(entry) + "\n" for entry in read_history(self.path.parent) if entry["step"] <= step]
        write_text(self.path, "".join(kept))


def read_history(folder: Path) -> list[dict]:
    """Reads the log entries of a run, up to the first line that is no entry; a killed run may have left one incomplete."""
    path = folder / HISTORY_NAME
    entries = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not is_entry(entry):
            break
        entries.append(entry)
    return entries


def is_entry(value: Any) -> bool:
    """Returns whether a JSON value has the form of a log entry, as far as readers rely on it."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("step"), int)
        and all(isinstance(value.get(name, {}), dict) for name in ("losses", "scores"))
    )


def tracker_values(entry: dict) -> Iterator[tuple[str, float | None]]:
    """Yields names and values of an entry for trackers, which take no nested values; losses have the names of their tasks."""
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from value.items()
        elif name != "step":
            yield name, value

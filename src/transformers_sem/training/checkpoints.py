"""Checkpoints that are whole or not there: written beside, then renamed."""

import shutil
from pathlib import Path

from accelerate import Accelerator


def checkpoint_step(path: Path) -> int:
    """Number of optimiser steps behind a checkpoint."""
    return int(path.name.removeprefix("step_"))


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted((path for path in folder.glob("step_*") if path.name[5:].isdigit()), key=checkpoint_step)


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, keep: int) -> Path:
    """Saves model, optimiser, schedule and random states of all ranks, and removes all but the newest `keep`."""
    target, unfinished = folder / f"step_{step:06d}", folder / f"unfinished_{step:06d}"
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed here
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()  # save_state has no barrier at its end
    if accelerator.is_main_process:
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return target


def resume(accelerator: Accelerator, folder: Path) -> int:
    """Loads the newest checkpoint, if any, and returns its step."""
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return 0
    accelerator.load_state(str(checkpoints[-1]))
    return checkpoint_step(checkpoints[-1])

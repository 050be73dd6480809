"""Checkpoints that are whole or not there: written beside, sealed with checksums, then renamed; read as data only."""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, patch_environment


logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"


def checkpoint_step(path: Path) -> int:
    """Number of optimiser steps behind a checkpoint."""
    return int(path.name.removeprefix("step_"))


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted((path for path in folder.glob("step_*") if path.name[5:].isdigit()), key=checkpoint_step)


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, keep: int) -> Path:
    """Saves model, optimiser and all that is registered with `accelerator`, and keeps the newest `keep` checkpoints.

    All ranks call it, and `folder` is one that all of them see.
    """
    target, unfinished = folder / f"step_{step:06d}", folder / f"unfinished_{step:06d}"
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for leftover in folder.glob("unfinished_*"):  # of runs that were killed here
            shutil.rmtree(leftover)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()  # save_state has no barrier at its end
    if accelerator.is_main_process:
        seal(unfinished)
        if target.exists():  # a broken one that this run has come to again
            discard(target)
        unfinished.rename(target)
        synchronize(folder)
        # what lies ahead is broken, or this run would have resumed it: it does not count
        for old in [path for path in list_checkpoints(folder) if checkpoint_step(path) <= step][:-keep]:
            discard(old)
    accelerator.wait_for_everyone()
    return target


def discard(checkpoint: Path) -> None:
    """Removes a checkpoint, which is at no moment half there."""
    unfinished = checkpoint.with_name(f"unfinished_{checkpoint.name}")
    checkpoint.rename(unfinished)
    shutil.rmtree(unfinished)


def seal(folder: Path) -> None:
    """Brings all files of a checkpoint to the disk and then writes its manifest: their sizes and SHA-256 checksums."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": checksum(path)} for path in files
    }
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n")
    for path in sorted(folder.rglob("*")):
        synchronize(path)
    synchronize(folder)


def synchronize(path: Path) -> None:
    """Returns when a file, or the list of names in a folder, would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """SHA-256 of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, or `None` where every file is as it was written."""
    if not (checkpoint / MANIFEST_NAME).is_file():
        return f"{MANIFEST_NAME} is missing"
    try:
        manifest = json.loads((checkpoint / MANIFEST_NAME).read_bytes())
        expected = {name: (facts["size"], facts["sha256"]) for name, facts in manifest.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST_NAME} is damaged"
    if not expected:
        return f"{MANIFEST_NAME} is empty"
    for name, (size, sha256) in expected.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if checksum(path) != sha256:
            return f"{name} has another checksum than when it was written"
    return None


def newest_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint without a defect; a warning names those that are passed over."""
    for checkpoint in reversed(list_checkpoints(folder)):
        defect = verify(checkpoint)
        if defect is None:
            return checkpoint
        logger.warning("The checkpoint %s is broken: %s. It is passed over.", checkpoint, defect)
    if list_checkpoints(folder):
        logger.warning("No checkpoint in %s is whole: the training starts anew.", folder)
    return None


def resume(accelerator: Accelerator, folder: Path) -> int:
    """Loads the newest whole checkpoint, if any, the same on all ranks, and returns its step."""
    found = [newest_whole_checkpoint(folder) if accelerator.is_main_process else None]
    checkpoint = broadcast_object_list(found)[0]
    if checkpoint is None:
        return 0
    # accelerate reads registered objects, and DeepSpeed everything, with weights_only=False: a pickle runs code
    with (
        patch_environment(TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"),
        torch.serialization.safe_globals(safe_globals(accelerator)),
    ):
        accelerator.load_state(str(checkpoint))
    return checkpoint_step(checkpoint)


def safe_globals(accelerator: Accelerator) -> list[type]:
    """Classes besides tensors that a checkpoint may hold: numbers that DeepSpeed has names for."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return []
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]

"""Checkpoints with checksums, written to a temporary folder and then renamed. Loading executes no pickled code."""

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, patch_environment

from ..utils.files import plain_disk_errors


logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"


def checkpoint_step(path: Path) -> int:
    """Returns the number of optimizer steps before a checkpoint."""
    return int(path.name.removeprefix("step_"))


def list_checkpoints(folder: Path) -> list[Path]:
    """Returns the finished checkpoints, oldest first."""
    return sorted((path for path in folder.glob("step_*") if path.name[5:].isdecimal()), key=checkpoint_step)


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, keep: int) -> Path:
    """Saves model, optimizer and everything registered with `accelerator`, and keeps the newest `keep` checkpoints.

    All ranks call it, and `folder` is visible to all of them.

    Raises:
        OSError: If it cannot be written, for example because the disk is full. Earlier checkpoints stay.
    """
    target, unfinished = folder / f"step_{step:06d}", folder / f"unfinished_{step:06d}"
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for leftover in folder.glob("unfinished_*"):  # of killed runs
            shutil.rmtree(leftover)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    with plain_disk_errors(folder):
        accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()  # save_state has no barrier at its end
    if accelerator.is_main_process:
        with plain_disk_errors(folder):
            write_manifest(unfinished)
        if target.exists():  # a broken one, which this run has reached again
            discard(target)
        unfinished.rename(target)
        synchronize(folder)
        # Later checkpoints are broken, or this run would have resumed them; they do not count.
        for old in [path for path in list_checkpoints(folder) if checkpoint_step(path) <= step][:-keep]:
            discard(old)
    accelerator.wait_for_everyone()
    return target


def discard(checkpoint: Path) -> None:
    """Removes a checkpoint: renames it first, so that a kill leaves no incomplete checkpoint."""
    unfinished = checkpoint.with_name(f"unfinished_{checkpoint.name}")
    checkpoint.rename(unfinished)
    shutil.rmtree(unfinished)


def write_manifest(folder: Path) -> None:
    """Writes the sizes and SHA-256 checksums of all files of a checkpoint, and flushes all files to the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": checksum(path)} for path in files
    }
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n")
    for path in sorted(folder.rglob("*")):
        synchronize(path)
    synchronize(folder)


def synchronize(path: Path) -> None:
    """Flushes a file, or the list of names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify(checkpoint: Path) -> str | None:
    """Returns why a checkpoint cannot be used, or `None` if every file is as it was written."""
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
            return f"{name} has changed since it was written: its checksum differs"
    return None


def newest_whole_checkpoint(folder: Path) -> Path | None:
    """Returns the newest checkpoint without a defect, or `None`; warnings name the skipped ones."""
    for checkpoint in reversed(list_checkpoints(folder)):
        defect = verify(checkpoint)
        if defect is None:
            return checkpoint
        logger.warning("The checkpoint %s is broken: %s. It is skipped.", checkpoint, defect)
    if list_checkpoints(folder):
        logger.warning("Every checkpoint in %s is broken; the training starts from the beginning.", folder)
    return None


def resume(accelerator: Accelerator, folder: Path) -> int:
    """Loads the newest whole checkpoint, the same on all ranks, and returns its step; 0 if there is none.

    Raises:
        ValueError: If it is one of another model, for example because `pretrained_model` has changed.
    """
    found = [newest_whole_checkpoint(folder) if accelerator.is_main_process else None]
    checkpoint = broadcast_object_list(found)[0]
    if checkpoint is None:
        return 0
    # accelerate loads registered objects, and DeepSpeed everything, with weights_only=False, which would execute pickles.
    with (
        patch_environment(TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"),
        torch.serialization.safe_globals(safe_globals(accelerator)),
    ):
        try:
            accelerator.load_state(str(checkpoint))
        except (RuntimeError, ValueError) as error:
            if not re.search("state.?dict", str(error)):
                raise
            reason = str(error).split("\n")[0].rstrip(":. ")
            raise ValueError(
                f"The checkpoint {checkpoint} is one of another model: {reason}. Choose another output_dir, or remove that "
                "folder."
            ) from error
    return checkpoint_step(checkpoint)


def safe_globals(accelerator: Accelerator) -> list[type]:
    """Returns the classes besides tensors that a checkpoint may hold; only those of DeepSpeed hold any."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return []
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]

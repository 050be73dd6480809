"""Trainings in processes of their own, one after another or side by side."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch

from ..utils.processes import available_cpus
from .tables import Run


SECONDS_TO_SAVE = 120
SECONDS_TO_POLL = 0.1


def launch_trainings(
    runs: Iterable[Run],
    num_jobs: int = 1,
    accelerate_config: Path | None = None,
    on_start: Callable[[Run], None] = lambda run: None,
    on_end: Callable[[Run], None] = lambda run: None,
) -> None:
    """Trains and evaluates models with the command `train`, in order.

    An interrupt or a failure sends SIGTERM to the trainings that run, and waits until they have saved.

    Args:
        runs (`Iterable[Run]`): The trainings.
        num_jobs (`int`): Maximum number of trainings that run at a time.
        accelerate_config (`Path`, *optional*): Configuration of `accelerate launch`: devices and engine. Without it, each
            training runs on one GPU, and those that run at a time share all GPUs.
        on_start (`Callable[[Run], None]`): Called before each training.
        on_end (`Callable[[Run], None]`): Called after each.

    Raises:
        ValueError: If a training fails.
    """
    waiting, running = deque(runs), {}
    environment = {**(share_cores(num_jobs) if num_jobs > 1 else {}), **os.environ}
    gpus = [] if accelerate_config else visible_gpus()
    try:
        while waiting or running:
            while waiting and len(running) < num_jobs:
                run = waiting.popleft()
                on_start(run)
                gpu = choose_gpu(gpus, running.values())
                command = training_command(run, accelerate_config)
                running[run] = start_group(command, {**environment, **gpu}), gpu
            for run in [run for run, (process, _) in running.items() if process.poll() is not None]:
                process, _ = running.pop(run)
                end_group(process)
                if process.returncode or not run.is_trained:
                    raise ValueError(
                        f"training {run} ended with status {process.returncode}; see its messages above. The same command "
                        "resumes it."
                    )
                on_end(run)
            time.sleep(SECONDS_TO_POLL)
    finally:
        stop_groups(process for process, _ in running.values())


def visible_gpus() -> list[str]:
    """Returns the names by which CUDA knows the GPUs that it may use, where there are several."""
    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if len(names) < count:
        names = [str(index) for index in range(count)]
    return names[:count] if count > 1 else []


def choose_gpu(gpus: list[str], running: Iterable[tuple[subprocess.Popen, dict[str, str]]]) -> dict[str, str]:
    """Returns the variable that gives a training the GPU with the fewest trainings; nothing where there is one GPU."""
    used = [gpu.get("CUDA_VISIBLE_DEVICES") for _, gpu in running]
    return {"CUDA_VISIBLE_DEVICES": min(gpus, key=used.count)} if gpus else {}


def share_cores(num_jobs: int) -> dict[str, str]:
    """Returns variables that give each of several processes its threads, and a core for its data worker.

    Threads that spin while they wait would take the cores of the other processes, and slow all of them down many times.
    """
    return {"OMP_NUM_THREADS": str(max(1, available_cpus() // num_jobs - 1)), "OMP_WAIT_POLICY": "PASSIVE"}


def training_command(run: Run, accelerate_config: Path | None) -> list[str]:
    """Returns the command that trains and evaluates one model: on one device, or on those of a configuration."""
    launcher = [sys.executable]
    if accelerate_config:
        launcher += ["-m", "accelerate.commands.launch", "--config_file", str(accelerate_config)]
    return [*launcher, "-m", "transformers_sem.cli.train", "--config", str(run.config_path), *run.overrides]


def start_group(command: list[str], environment: dict[str, str]) -> subprocess.Popen:
    """Starts a command in a process group of its own: `accelerate launch` does not pass signals on to the process that trains."""
    return subprocess.Popen(command, env=environment, start_new_session=True)


def stop_groups(processes: Iterable[subprocess.Popen], seconds: float = SECONDS_TO_SAVE) -> None:
    """Sends SIGTERM to process groups, waits until they have ended, and kills those that have not; an interrupt does so at once."""
    processes = list(processes)
    try:
        for process in processes:
            signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while any(is_running(process) for process in processes) and time.monotonic() < deadline:
            time.sleep(SECONDS_TO_POLL)
    finally:
        for process in processes:
            end_group(process)


def is_running(process: subprocess.Popen) -> bool:
    """Returns whether a process of the group is left."""
    process.poll()
    return signal_group(process, 0)


def end_group(process: subprocess.Popen) -> None:
    """Kills what is left of a process group."""
    signal_group(process, signal.SIGKILL)
    process.wait()


def signal_group(process: subprocess.Popen, signum: int) -> bool:
    """Sends a signal to a process group, and returns whether there was one left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signum)
        return True
    return False

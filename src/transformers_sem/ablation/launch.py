"""Trainings in processes of their own, under `accelerate launch`."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from .tables import Run


SECONDS_TO_SAVE = 120


def launch_training(run: Run, accelerate_config: Path | None = None) -> None:
    """Trains and evaluates one model with the command `train`.

    Args:
        run (`Run`): The training.
        accelerate_config (`Path`, *optional*): Configuration of `accelerate launch`: devices and engine.

    Raises:
        ValueError: If the training fails.
    """
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    if accelerate_config:
        launcher += ["--config_file", str(accelerate_config)]
    module = ["-m", "transformers_sem.cli.train"]
    code = run_process_group([*launcher, *module, "--config", str(run.config_path), *run.overrides])
    if code or not run.is_finished:
        raise ValueError(
            f"training {run} ended with status {code}; see its messages above. The same command resumes it."
        )


def run_process_group(command: list[str]) -> int:
    """Runs a command in a process group of its own and returns its exit status.

    `KeyboardInterrupt` sends SIGTERM to the whole group and waits until it has ended: `accelerate launch` does not pass
    signals on to the process that trains, and would leave it running. A second one kills the group.
    """
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait()
    except KeyboardInterrupt:
        with suppress(ProcessLookupError):  # the group has ended
            os.killpg(process.pid, signal.SIGTERM)
            for _ in range(10 * SECONDS_TO_SAVE):
                process.poll()
                os.killpg(process.pid, 0)  # raises once no process is left
                time.sleep(0.1)
        raise
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

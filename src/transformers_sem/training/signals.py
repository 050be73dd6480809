"""Ctrl-C and SIGTERM: a run finishes its step, saves a checkpoint and exits."""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator


SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Ctrl-C in a terminal reaches a rank twice, from the terminal and from its launcher; that is one request.
SECONDS_OF_ONE_REQUEST = 1.0


class StopRequest:
    """Context manager that records the first SIGINT or SIGTERM in `signum`, which is 0 before. The second one kills.

    Args:
        accelerator (`Accelerator`): Its main process prints.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.signum, self.recorded_at = accelerator, 0, 0.0

    def __enter__(self) -> "StopRequest":
        self.pid = os.getpid()
        self.earlier = {signum: signal.signal(signum, self._record) for signum in SIGNALS}
        return self

    def __exit__(self, *exception_info) -> None:
        for signum, handler in self.earlier.items():
            signal.signal(signum, handler)

    def _record(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:  # a forked process, which must not end before the run does
            return
        if not self.signum:
            self.signum, self.recorded_at = signum, time.monotonic()
            if self.accelerator.is_main_process:
                # print is not reentrant, and may be what the signal interrupted
                os.write(sys.stderr.fileno(), b"\nStopping after this step. Repeat to stop at once.\n")
        elif time.monotonic() - self.recorded_at > SECONDS_OF_ONE_REQUEST:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)

    def agree(self) -> int:
        """Returns the signal that any rank has received, or 0. All ranks call it."""
        signum = torch.tensor([self.signum], device=self.accelerator.device)
        return int(self.accelerator.gather(signum).max())

    def leave(self, signum: int, step: int, checkpoints: Path) -> None:
        """Ends the program with the exit code 128 + `signum`, as is usual for signals."""
        self.accelerator.print(
            f"Stopped by {signal.Signals(signum).name} after step {step}, saved in {checkpoints}. The same command "
            "resumes from there."
        )
        self.accelerator.end_training()
        sys.exit(128 + signum)

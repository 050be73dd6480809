"""Ctrl-C and SIGTERM: a run finishes its step, saves and leaves."""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator


SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Ctrl-C in a terminal reaches a rank twice, from the terminal and from its launcher, which is not a person who insists
SECONDS_OF_ONE_REQUEST = 1.0


class StopRequest:
    """While it is entered, notes the first SIGINT or SIGTERM in `signum`, which is 0 before; the second one kills.

    Args:
        accelerator (`Accelerator`): Its main process speaks.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.signum, self.noted_at = accelerator, 0, 0.0

    def __enter__(self) -> "StopRequest":
        self.earlier = {signum: signal.signal(signum, self._note) for signum in SIGNALS}
        return self

    def __exit__(self, *exception_info) -> None:
        for signum, handler in self.earlier.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if not self.signum:
            self.signum, self.noted_at = signum, time.monotonic()
            if self.accelerator.is_main_process:
                # not print: it may have been interrupted itself
                os.write(sys.stderr.fileno(), b"\nStopping after this step; once more to stop at once.\n")
        elif time.monotonic() - self.noted_at > SECONDS_OF_ONE_REQUEST:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)

    def agree(self) -> int:
        """The signal that any rank has got, or 0; all ranks ask."""
        signum = torch.tensor([self.signum], device=self.accelerator.device)
        return int(self.accelerator.gather(signum).max())

    def leave(self, signum: int, step: int, checkpoints: Path) -> None:
        """Ends the program with the exit code of programs that a signal ends, 128 + `signum`."""
        self.accelerator.print(
            f"Stopped by {signal.Signals(signum).name} after step {step}, which is saved in {checkpoints}. The same command "
            "again goes on from there."
        )
        self.accelerator.end_training()
        sys.exit(128 + signum)

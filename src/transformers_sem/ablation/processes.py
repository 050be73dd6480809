"""Commands that do not outlive whoever started them."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import psutil


SECONDS_TO_SAVE = 120
# It sees the end of the pipe, however the process at the other end has ended, and ends a group of processes.
WATCHDOG = "import os, signal, sys; sys.stdin.read(); os.killpg(int(sys.argv[1]), signal.SIGKILL)"


def run_to_the_end(command: list[str]) -> int:
    """Runs a command and returns its exit status; none of its processes outlives this one, however it ends.

    Interrupted, it asks them to end, waits while they save what they have, and raises `KeyboardInterrupt`.
    """
    child = subprocess.Popen(command, start_new_session=True)
    watchdog = subprocess.Popen(
        [sys.executable, "-c", WATCHDOG, str(child.pid)], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        return child.wait()
    except KeyboardInterrupt:
        with suppress(ProcessLookupError, psutil.NoSuchProcess):  # it has ended meanwhile
            family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
            os.killpg(child.pid, signal.SIGTERM)
            psutil.wait_procs(family, timeout=SECONDS_TO_SAVE)
        raise
    finally:
        with suppress(ProcessLookupError):  # nothing is left
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        watchdog.kill()
        watchdog.stdin.close()
        watchdog.wait()

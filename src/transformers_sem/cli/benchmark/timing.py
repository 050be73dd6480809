"""Wall time and peak memory."""

import time
from collections.abc import Callable
from pathlib import Path


def seconds(function: Callable, *inputs) -> float:
    """Returns the wall time of one call."""
    start = time.perf_counter()
    function(*inputs)
    return time.perf_counter() - start


def peak_megabytes(_: int) -> float:
    """Returns the peak memory of the process that runs this, on Linux; NaN elsewhere.

    `getrusage` would also count the memory of the parent process before the fork.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), float("nan"))

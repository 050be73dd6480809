"""Wall time and peak memory."""

import time
from collections.abc import Callable

import torch

from ...utils.memory import peak_memory


def seconds(function: Callable, *inputs) -> float:
    """Returns the wall time of one call."""
    start = time.perf_counter()
    function(*inputs)
    return time.perf_counter() - start


def peak_megabytes(_: int) -> float:
    """Returns the peak main memory of the process that runs this."""
    return peak_memory(torch.device("cpu")) / 2**20

"""."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from accelerate import Accelerator
from loky import ProcessPoolExecutor
from tqdm.auto import tqdm


@contextmanager
def process_pool(num_processes: int) -> Iterator[Executor]:
    """Processes that do not import the running script, and so cost megabytes instead of gigabytes."""
    pool = ProcessPoolExecutor(num_processes, timeout=5)  # or they would outlive a killed parent
    try:
        yield pool
    except BaseException:
        pool.shutdown(kill_workers=True)  # or Ctrl-C would wait for all that is queued
        raise
    pool.shutdown()


def available_cpus() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress(items: Iterable, total: int, title: str, accelerator: Accelerator) -> Iterable:
    """A bar, on the main process only."""
    return tqdm(items, total=total, desc=title, disable=not accelerator.is_main_process, mininterval=1.0)

"""Pools of worker processes, and progress bars."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import wait

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from tqdm.auto import tqdm


# Imported once by the fork server, whose workers share its memory.
PRELOADED_MODULES = ["transformers_sem.evaluation.boundary"]


@contextmanager
def process_pool(num_processes: int) -> Iterator[Executor]:
    """Starts a pool of processes for CPU work.

    Workers are forked from a small server process and not from this one, whose threads and GPU context must not be
    copied. A worker ends when this process does, even if that is killed. An error or Ctrl-C in the `with` block cancels
    what is queued, and waits only for the calls that have started.

    Args:
        num_processes (`int`): Number of worker processes.
    """
    pool = ProcessPoolExecutor(num_processes, mp_context=_process_context(), initializer=_initialize_worker)
    try:
        yield pool
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _process_context() -> multiprocessing.context.BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED_MODULES)
    return context


def _initialize_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def start_accelerator(**kwargs) -> Accelerator:
    """Builds an accelerator, also for ranks on CPUs, whose ranks wait for each other as long as it takes.

    One rank may read a whole dataset, or predict a long video; a rank that ends is noticed by the launcher.
    """
    patience = InitProcessGroupKwargs(timeout=timedelta(days=30))  # NCCL's default is ten minutes
    # without `cpu`, ranks on CPUs do not find each other
    return Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[patience], **kwargs)


def available_cpus() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def leave_cores(num_workers: int) -> None:
    """Limits the threads of torch so that they and the workers of this process have a core each.

    Threads that wait for a thread without a core make every operation wait. `OMP_NUM_THREADS` takes precedence.

    Args:
        num_workers (`int`): Number of worker processes that are busy while torch computes.
    """
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(max(1, min(torch.get_num_threads(), available_cpus() - num_workers)))


def progress(items: Iterable, total: int, title: str, accelerator: Accelerator) -> Iterable:
    """Wraps an iterable in a progress bar that only the main process shows."""
    return tqdm(items, total=total, desc=title, disable=not accelerator.is_main_process, mininterval=1.0)

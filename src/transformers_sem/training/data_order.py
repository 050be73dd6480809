"""Data order and random numbers that depend on the seed and the position only, so that a run resumes exactly."""

import gc
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import BaseContext

import numpy as np
import torch
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.transforms import TransformedDataset
from .signals import SIGNALS


# Independent streams of random numbers
ORDER, AUGMENTATION, FORWARD, MIXTURE = 0, 1, 2, 3


class PositionSampler(Sampler):
    """Yields `(position, row)` for the positions `start` to `stop - 1` of an endless series of shuffled epochs.

    Args:
        num_rows (`int`): Number of rows of the dataset.
        start (`int`): Number of samples that earlier runs have drawn.
        stop (`int`): Number of samples of the whole training.
        seed (`int`): Seed of the shuffling.
    """

    def __init__(self, num_rows: int, *, start: int, stop: int, seed: int):
        self.num_rows, self.start, self.stop, self.seed = num_rows, start, stop, seed

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = None
        for position in range(self.start, self.stop):
            if position // self.num_rows != epoch:
                epoch = position // self.num_rows
                generator = torch.Generator().manual_seed(derive_seed(self.seed, ORDER, epoch))
                order = torch.randperm(self.num_rows, generator=generator).tolist()
            yield position, order[position % self.num_rows]


class MixtureSampler(Sampler):
    """Yields `(position, row)` as [`PositionSampler`] does, of several datasets whose rows follow each other.

    The dataset of each position is drawn by weight. The rows of a dataset come in shuffled epochs of its own, whatever the
    other datasets are.

    Args:
        parts (`Sequence[tuple[int, float]]`): Number of rows and weight of each dataset.
        start (`int`): Number of samples that earlier runs have drawn.
        stop (`int`): Number of samples of the whole training.
        seed (`int`): Seed of the draws and of the shuffling.
    """

    def __init__(self, parts: Sequence[tuple[int, float]], *, start: int, stop: int, seed: int):
        self.parts, self.start, self.stop, self.seed = parts, start, stop, seed

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        sizes, weights = zip(*self.parts, strict=True)
        drawn = self._draw_parts(np.cumsum(weights))
        num_drawn = np.bincount(drawn[: self.start], minlength=len(sizes)).tolist()
        orders = [
            iter(
                PositionSampler(
                    size, start=num_drawn[part], stop=self.stop, seed=derive_seed(self.seed, MIXTURE, part)
                )
            )
            for part, size in enumerate(sizes)
        ]
        first_rows = np.cumsum([0, *sizes]).tolist()
        for position in range(self.start, self.stop):
            part = drawn[position]
            _, row = next(orders[part])
            yield position, first_rows[part] + row

    def _draw_parts(self, bounds: np.ndarray) -> list[int]:
        """Draws the dataset of each position up to `stop`."""
        numbers = np.random.default_rng(derive_seed(self.seed, MIXTURE)).random(self.stop)
        return np.searchsorted(bounds, numbers * bounds[-1], side="right").tolist()


class PositionSeededDataset(Dataset):
    """Seeds the augmentation of a sample by its position in the training, whatever the worker."""

    def __init__(self, dataset: TransformedDataset, seed: int):
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        position, row = key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, AUGMENTATION, position))
            return self.dataset[row]


def derive_seed(*numbers: int) -> int:
    """Mixes numbers to a seed of 32 bits, as many as torch's CPU generator keeps."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds the random numbers of the model in a step, such as stochastic depth; each rank has its own."""
    set_seed(derive_seed(seed, FORWARD, step, rank))


def worker_context() -> BaseContext | None:
    """Returns a context of `multiprocessing` whose processes start with Ctrl-C and SIGTERM blocked.

    These signals reach the whole process group. A worker that one of them ends before `init_worker` ignores them would end the
    run. On Linux workers are forked, also where Python 3.14 would start each from a server, with an import of torch and a copy of
    the rows; elsewhere the default context, `None`, is returned.
    """
    if sys.platform != "linux":
        return None
    default = multiprocessing.get_context("fork")

    class Worker(default.Process):
        def start(self) -> None:
            earlier = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:
                super().start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, earlier)

    class Context(type(default)):
        Process = Worker

    return Context()


def init_worker(worker: int) -> None:
    """Ignores Ctrl-C and SIGTERM in a data worker: they reach the whole process group, and the current step needs its data.

    Workers end when their iterator is freed, as `open_batches` does. That must not be left to the exit of the interpreter,
    which sends SIGTERM and waits.
    """
    # Otherwise a worker may free an earlier iterator that its parent still holds, and wait for the workers of that one
    gc.freeze()
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def build_train_loader(
    dataset: TransformedDataset,
    *,
    batch_size: int,
    first_sample: int,
    num_samples: int,
    seed: int,
    num_workers: int,
    parts: Sequence[tuple[int, float]] = (),
) -> DataLoader:
    """Builds a loader whose single pass is the rest of the training.

    Args:
        dataset (`TransformedDataset`): The training rows.
        batch_size (`int`): Images of a micro-batch of one rank.
        first_sample (`int`): Number of samples that earlier runs have drawn.
        num_samples (`int`): Number of samples of the whole training.
        seed (`int`): Seed of the order and of the augmentation.
        num_workers (`int`): Processes that load data.
        parts (`Sequence[tuple[int, float]]`, *optional*): Number of rows and weight of each of several datasets, which follow
            each other in the rows.
    """
    sampler = partial(MixtureSampler, parts) if len(parts) > 1 else partial(PositionSampler, len(dataset))
    return DataLoader(
        PositionSeededDataset(dataset, seed),
        batch_size=batch_size,
        sampler=sampler(start=first_sample, stop=num_samples, seed=seed),
        generator=torch.Generator(),  # otherwise the loader draws its base seed from the global generator
        num_workers=num_workers,
        multiprocessing_context=worker_context() if num_workers else None,
        worker_init_fn=init_worker,
        pin_memory=torch.cuda.is_available(),
    )


@contextmanager
def open_batches(loader: DataLoader) -> Iterator[Iterator[dict]]:
    """Yields the batches of a loader, and ends its workers afterwards, also after an error.

    Args:
        loader (`DataLoader`): As `Accelerator.prepare` returns it.

    Raises:
        ChildProcessError: If a worker was killed.
    """
    batches = iter(loader)
    try:
        yield batches
    except BaseException as error:
        free_frames(error)
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
            raise ChildProcessError(
                f"A data worker ended: {error} Where memory is short, lower num_workers, or set keep_in_memory=false; the "
                "same command goes on from the last checkpoint."
            ) from None
        raise
    finally:
        batches.close()


def free_frames(error: BaseException | None) -> None:
    """Frees the local variables of the frames of an error, which hold the iterator of a loader with its workers."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__

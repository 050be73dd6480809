"""Data order and random numbers that depend on the seed and the position only, so that a run resumes exactly."""

import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.transforms import TransformedDataset


# Independent streams of random numbers
ORDER, AUGMENTATION, FORWARD = 0, 1, 2


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


def ignore_signals(worker: int) -> None:
    """Ignores Ctrl-C and SIGTERM in a data worker: they reach the whole process group, and the current step needs its data.

    Workers end when their iterator is freed, as `open_batches` does. That must not be left to the exit of the interpreter,
    which sends SIGTERM and waits.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def build_train_loader(
    dataset: TransformedDataset, *, batch_size: int, first_sample: int, num_samples: int, seed: int, num_workers: int
) -> DataLoader:
    """Builds a loader whose single pass is the rest of the training."""
    return DataLoader(
        PositionSeededDataset(dataset, seed),
        batch_size=batch_size,
        sampler=PositionSampler(len(dataset), start=first_sample, stop=num_samples, seed=seed),
        generator=torch.Generator(),  # otherwise the loader draws its base seed from the global generator
        num_workers=num_workers,
        worker_init_fn=ignore_signals,
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

"""Data order and randomness that depend on the seed and the position only, so that a run resumes where it stood."""

import signal
from collections.abc import Iterator

import numpy as np
import torch
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.transforms import TransformedDataset


# Streams of randomness that must not repeat each other
ORDER, AUGMENTATION, FORWARD = 0, 1, 2


class PositionSampler(Sampler):
    """Gives `(position, row)` for positions `start ... stop - 1` of an endless series of shuffled epochs.

    Args:
        num_rows (`int`): Rows of the data set.
        start (`int`): Samples drawn by earlier runs.
        stop (`int`): Samples of the whole training.
        seed (`int`): Of the shuffling.
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
    """Draws the augmentation of a sample from its position in the training, whichever worker prepares it."""

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
    """A seed of 32 bits, all that torch's CPU generator keeps, in which every number counts."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_step(seed: int, step: int, rank: int) -> None:
    """Draws what the model itself draws in a step, such as stochastic depth, from its number, on each rank another."""
    set_seed(derive_seed(seed, FORWARD, step, rank))


def ignore_signals(worker: int) -> None:
    """Ctrl-C and SIGTERM may reach a whole group of processes, but the step under way still needs its data.

    Workers end when their iterator is closed, which must not be left to the end of the interpreter: it sends SIGTERM.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def build_train_loader(
    dataset: TransformedDataset, *, batch_size: int, first_sample: int, num_samples: int, seed: int, num_workers: int
) -> DataLoader:
    """One pass over this loader is the rest of the training: no epochs to count and none to skip."""
    return DataLoader(
        PositionSeededDataset(dataset, seed),
        batch_size=batch_size,
        sampler=PositionSampler(len(dataset), start=first_sample, stop=num_samples, seed=seed),
        generator=torch.Generator(),  # or starting to load would draw from the generator of the model
        num_workers=num_workers,
        worker_init_fn=ignore_signals,
        pin_memory=torch.cuda.is_available(),
    )

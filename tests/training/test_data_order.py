import os
import random
import signal

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from transformers_sem.training.data_order import PositionSampler, PositionSeededDataset, build_train_loader, seed_step


class NoisyRows(Dataset):
    """Each row is its index and a random number, as an augmentation draws it."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return {"row": index, "noise": torch.rand(())}


def draw(start=0, stop=23, seed=0, num_rows=7):
    return list(PositionSampler(num_rows, start=start, stop=stop, seed=seed))


def load(**values):
    loader = build_train_loader(
        NoisyRows(), **{"batch_size": 2, "first_sample": 0, "num_samples": 12, "seed": 0, "num_workers": 0, **values}
    )
    return [(batch["row"].tolist(), batch["noise"].tolist()) for batch in loader]


def test_positions_are_consecutive():
    assert [position for position, _ in draw()] == list(range(23))
    assert len(PositionSampler(7, start=5, stop=23, seed=0)) == 18


def test_every_epoch_is_a_permutation():
    rows = [row for _, row in draw()]
    epochs = [rows[start : start + 7] for start in (0, 7, 14)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len(set(rows[21:])) == 2


@pytest.mark.parametrize("start", [0, 1, 6, 7, 8, 20, 22, 23])
def test_resuming_gives_the_tail(start):
    assert draw(start=start) == draw()[start:]


def test_seeds_shuffle_differently():
    assert draw(seed=0) == draw(seed=0)
    orders = {tuple(row for _, row in draw(seed=seed, num_rows=50, stop=50)) for seed in range(5)}
    assert len(orders) == 5


def test_a_sample_depends_on_its_position_only():
    dataset = PositionSeededDataset(NoisyRows(), seed=3)
    first = dataset[(4, 2)]
    torch.rand(10)
    assert dataset[(4, 2)] == first
    assert dataset[(4, 1)]["noise"] == first["noise"]
    noise = {dataset[(position, 2)]["noise"].item() for position in range(50)}
    assert len(noise) == 50
    assert PositionSeededDataset(NoisyRows(), seed=4)[(4, 2)]["noise"] != first["noise"]
    assert len(dataset) == 5


def test_preparing_a_sample_leaves_the_random_state_alone():
    """The model's dropout must not depend on whether the main process prepares the data."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    PositionSeededDataset(NoisyRows(), seed=3)[(4, 2)]
    assert torch.equal(torch.rand(3), expected)


def test_loading_leaves_the_random_state_alone():
    """A resumed run starts a loader in the middle of the training; its stochastic depth must not notice."""
    before = torch.get_rng_state()
    load()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_do_not_matter(num_workers):
    assert load(num_workers=num_workers) == load()


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5, 6])
def test_a_resumed_loader_gives_the_remaining_batches(num_steps):
    assert load(first_sample=2 * num_steps) == load()[num_steps:]


def test_batches_may_cross_epochs():
    rows = [row for rows, _ in load(batch_size=3) for row in rows]
    assert len(rows) == 12
    assert sorted(rows[:5]) == sorted(rows[5:10]) == list(range(5))


@pytest.mark.parametrize("seed", [1, 2])
def test_seeds_reach_the_loader(seed):
    assert load(seed=seed) != load()


def draw_all(step, rank=0):
    seed_step(5, step, rank)
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_random_numbers_of_the_model_depend_on_step_and_rank_only():
    first = draw_all(3)
    torch.rand(7)
    assert draw_all(3) == first
    for other in (draw_all(4), draw_all(3, rank=1)):
        assert not set(other) & set(first)


class SignalledRows(NoisyRows):
    def __getitem__(self, index):
        for signum in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), signum)
        return super().__getitem__(index)


def test_workers_ignore_signals_and_end_with_their_iterator():
    loader = build_train_loader(SignalledRows(), batch_size=2, first_sample=0, num_samples=12, seed=0, num_workers=2)
    batches = iter(loader)
    rows = [next(batches)["row"].tolist() for _ in range(4)]
    assert rows == [row for row, _ in load()[:4]]
    workers = batches._workers
    del batches
    assert [worker.is_alive() for worker in workers] == [False, False]

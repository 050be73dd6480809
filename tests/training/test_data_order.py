import gc
import multiprocessing
import os
import random
import signal

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

from transformers_sem import SEMImageProcessor
from transformers_sem.data.row_format import encode_map
from transformers_sem.data.transforms import RowError, TransformedDataset
from transformers_sem.training.data_order import (
    MixtureSampler,
    PositionSampler,
    PositionSeededDataset,
    build_train_loader,
    open_batches,
    seed_step,
)
from transformers_sem.training.signals import SIGNALS


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


PARTS = [(5, 1), (7, 3.0)]


def mix(start=0, stop=400, seed=0, parts=PARTS):
    return list(MixtureSampler(parts, start=start, stop=stop, seed=seed))


def test_datasets_are_mixed_by_weight_in_epochs_of_their_own():
    order = mix()
    assert [position for position, _ in order] == list(range(400))
    first, second = ([row for _, row in order if (row < 5) == is_first] for is_first in (True, False))
    assert 75 <= len(first) <= 125  # a quarter; the standard deviation is 9
    assert [sorted(first[start : start + 5]) for start in (0, 5, 10)] == [list(range(5))] * 3
    assert [sorted(second[start : start + 7]) for start in (0, 7, 14)] == [list(range(5, 12))] * 3
    assert first[:5] != first[5:10]


@pytest.mark.parametrize("start", [0, 1, 9, 399, 400])
def test_resuming_a_mixture_gives_the_tail(start):
    assert mix(start=start) == mix()[start:]
    assert len(MixtureSampler(PARTS, start=start, stop=400, seed=0)) == 400 - start


def test_a_mixture_depends_on_its_seed_and_not_on_its_length():
    assert mix(stop=30) == mix()[:30]
    assert mix(seed=1) != mix()


def test_a_loader_mixes_several_datasets_and_resumes():
    batches = load(parts=[(2, 1), (3, 1)])
    assert batches != load()
    assert load(parts=[(2, 1), (3, 1)], first_sample=6) == batches[3:]
    assert load(parts=[(5, 2)]) == load()


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


class RowsOfAWorker(NoisyRows):
    def __getitem__(self, index):
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, []).intersection(SIGNALS)
        return {"num_blocked": len(blocked), "num_frozen": gc.get_freeze_count()}


def test_a_worker_starts_without_signals_and_frees_nothing_of_its_parent():
    """SIGTERM to the group would end it and so the run; to free an earlier iterator would join the workers of that."""
    loader = build_train_loader(RowsOfAWorker(), batch_size=1, first_sample=0, num_samples=1, seed=0, num_workers=1)
    (batch,) = loader
    assert batch["num_blocked"] == len(SIGNALS) and batch["num_frozen"] > 0
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []).intersection(SIGNALS)


@pytest.fixture
def broken_rows(tmp_path):
    """Rows on disk; the image of row 3, "d", is cut off."""
    images = [encode_map(np.zeros((4, 4, 3), np.uint8)) for _ in range(5)]
    images[3] = images[3][:40]
    values = {"id": [*"abcde"], "image": images, "saliency": [encode_map(np.zeros((4, 4), np.uint8))] * 5}
    features = datasets.Features(
        {"id": datasets.Value("string"), "image": datasets.Image(), "saliency": datasets.Image()}
    )
    datasets.Dataset.from_dict(values, features=features).save_to_disk(tmp_path / "rows")
    return TransformedDataset(datasets.load_from_disk(tmp_path / "rows"), ["saliency"], SEMImageProcessor())


def read_all(dataset, num_workers):
    loader = build_train_loader(dataset, batch_size=2, first_sample=0, num_samples=6, seed=0, num_workers=num_workers)
    with open_batches(Accelerator(cpu=True).prepare(loader)) as batches:
        return list(batches)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_a_row_is_one_line_and_ends_the_workers(broken_rows, num_workers):
    """While the error is handled, as when the program exits: workers that still live then are waited for forever."""
    try:
        read_all(broken_rows, num_workers)
    except RowError as error:
        message = str(error)
        assert multiprocessing.active_children() == []
    folder = broken_rows.dataset.cache_files[0]["filename"]
    assert message.startswith(f"Cannot use row 3 ('d') of {folder}: ") and "\n" not in message


class DeadlyRows(NoisyRows):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_line_and_ends_the_workers():
    with pytest.raises(ChildProcessError, match="lower num_workers"):
        read_all(DeadlyRows(), num_workers=1)
    assert multiprocessing.active_children() == []

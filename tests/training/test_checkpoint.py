import json
import pickle
import re

import pytest
import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import PolynomialLR

from transformers_sem import SEMForMultiTaskDensePrediction
from transformers_sem.training.checkpoint import (
    MANIFEST_NAME,
    checkpoint_step,
    list_checkpoints,
    resume,
    save_checkpoint,
    verify,
    write_manifest,
)

from ..disk import full_disk
from ..samples import random_labels
from ..tiny import tiny_config


class Run:
    """A model, an optimizer and a schedule, as in a training run."""

    def __init__(self):
        torch.manual_seed(0)
        self.accelerator = Accelerator(cpu=True)
        model = self.build_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        self.schedule = PolynomialLR(optimizer, total_iters=10)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.accelerator.register_for_checkpointing(self.schedule)

    def build_model(self):
        return torch.nn.Linear(3, 1)

    def loss(self):
        return self.model(torch.rand(2, 3)).sum()

    def weights(self):
        return self.model.weight

    def step(self):
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        return self.weights().detach().clone()


class WeightingRun(Run):
    """It learns the weights of its two losses."""

    def build_model(self):
        widths = {"depth": 1, "normal": 3}
        config = tiny_config(task_num_labels=widths, task_loss_weighting="uncertainty", use_decoder=False)
        return SEMForMultiTaskDensePrediction(config)

    def loss(self):
        labels = {task: random_labels(task, 2, (32, 32)) for task in ("depth", "normal")}
        return self.model(torch.rand(2, 3, 32, 32), labels=labels).loss

    def weights(self):
        return torch.cat([*self.model.task_log_variances.values()])


@pytest.fixture
def run():
    return Run()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_nothing_to_resume(run, tmp_path):
    assert resume(run.accelerator, tmp_path / "absent") == 0
    assert resume(run.accelerator, tmp_path) == 0


@pytest.mark.parametrize("keep", [1, 2])
def test_only_the_newest_are_kept(run, tmp_path, keep):
    for step in (5, 10, 999, 1000):
        assert save_checkpoint(run.accelerator, tmp_path, step, keep) == tmp_path / f"step_{step:06d}"
    assert names(tmp_path) == ["step_000999", "step_001000"][-keep:]


def test_order_is_by_number(tmp_path):
    for name in ("step_2000000", "step_999999", "step_000100"):
        (tmp_path / name).mkdir()
    assert [checkpoint_step(path) for path in list_checkpoints(tmp_path)] == [100, 999_999, 2_000_000]


def test_incomplete_checkpoints_are_ignored(run, tmp_path):
    save_checkpoint(run.accelerator, tmp_path, 3, keep=2)
    for name in ("unfinished_000009", "step_", "step_000007.tmp", "step_²", "step_old", "other"):
        (tmp_path / name).mkdir()
    assert list_checkpoints(tmp_path) == [tmp_path / "step_000003"]
    assert resume(run.accelerator, tmp_path) == 3


def test_leftovers_of_a_killed_save_are_replaced(run, tmp_path):
    for name in ("unfinished_000004", "step_000004"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "junk").touch()
    target = save_checkpoint(run.accelerator, tmp_path, 4, keep=1)
    assert names(tmp_path) == ["step_000004"]
    assert "junk" not in names(target)
    assert resume(run.accelerator, tmp_path) == 4


def test_a_resumed_run_equals_an_uninterrupted_one(run, tmp_path):
    for _ in range(2):
        run.step()
    save_checkpoint(run.accelerator, tmp_path, 2, keep=1)
    expected = [run.step() for _ in range(3)]
    resumed = Run()
    assert resume(resumed.accelerator, tmp_path) == 2
    # data, moments of the optimizer, learning rate and random state all matter
    for weights in expected:
        assert torch.equal(resumed.step(), weights)
    assert resumed.schedule.get_last_lr() == run.schedule.get_last_lr()


def test_learned_weights_of_the_losses_are_resumed(tmp_path):
    run = WeightingRun()
    saved = run.step()
    save_checkpoint(run.accelerator, tmp_path, 1, keep=1)
    expected = run.step()
    resumed = WeightingRun()
    assert resume(resumed.accelerator, tmp_path) == 1
    assert saved.all() and torch.equal(resumed.weights(), saved)
    assert torch.equal(resumed.step(), expected)


def test_a_full_disk_is_an_error_and_with_space_the_run_goes_on(run, tmp_path):
    run.step()
    save_checkpoint(run.accelerator, tmp_path, 1, keep=1)
    expected = [run.step()]
    with full_disk(1000), pytest.raises(OSError, match="Cannot write to .* Free some space"):
        save_checkpoint(run.accelerator, tmp_path, 2, keep=1)
    assert list_checkpoints(tmp_path) == [tmp_path / "step_000001"]
    expected += [run.step() for _ in range(2)]  # as if there had been no save
    for step, weights in enumerate(expected, start=1):
        resumed = Run()
        assert resume(resumed.accelerator, tmp_path) == step
        assert torch.equal(resumed.step(), weights)
        save_checkpoint(resumed.accelerator, tmp_path, step + 1, keep=1)
    assert names(tmp_path) == ["step_000004"]


def test_the_newest_is_resumed(run, tmp_path):
    save_checkpoint(run.accelerator, tmp_path, 1, keep=2)
    weights = run.step()
    save_checkpoint(run.accelerator, tmp_path, 2, keep=2)
    resumed = Run()
    assert resume(resumed.accelerator, tmp_path) == 2
    assert torch.equal(resumed.model.weight, weights)


def test_a_checkpoint_of_another_model_is_named(run, tmp_path):
    checkpoint = save_checkpoint(run.accelerator, tmp_path, 1, keep=1)
    with pytest.raises(ValueError, match=f"The checkpoint {checkpoint} is one of another model: .*Choose") as error:
        resume(WeightingRun().accelerator, tmp_path)
    assert "\n" not in str(error.value)


@pytest.fixture
def saved(run, tmp_path):
    """A folder of checkpoints of steps 1 and 2, and the weights of step 1."""
    weights = run.step()
    save_checkpoint(run.accelerator, tmp_path, 1, keep=2)
    run.step()
    save_checkpoint(run.accelerator, tmp_path, 2, keep=2)
    return tmp_path, weights


def test_a_manifest_lists_every_file(saved):
    checkpoint = saved[0] / "step_000002"
    assert sorted(json.loads((checkpoint / MANIFEST_NAME).read_text())) == sorted(
        {*names(checkpoint)} - {MANIFEST_NAME}
    )
    assert verify(checkpoint) is None


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:40])


DAMAGE = {
    "flipped bit": (flip_a_bit, "model.safetensors", "model.safetensors has changed"),
    "truncated": (truncate, "optimizer.bin", r"optimizer.bin has \d+ bytes instead of"),
    "deleted": (lambda path: path.unlink(), "custom_checkpoint_0.pkl", "custom_checkpoint_0.pkl is missing"),
    "no manifest": (lambda path: path.unlink(), MANIFEST_NAME, "manifest.json is missing"),
    "half a manifest": (truncate, MANIFEST_NAME, "manifest.json is damaged"),
    "another manifest": (lambda path: path.write_text("[1]"), MANIFEST_NAME, "manifest.json is damaged"),
    "not text": (lambda path: path.write_bytes(b"\xff"), MANIFEST_NAME, "manifest.json is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_broken_checkpoint_is_skipped_for_the_one_before_it(saved, caplog, kind):
    folder, weights = saved
    damage, name, reason = DAMAGE[kind]
    damage(folder / "step_000002" / name)
    resumed = Run()
    assert resume(resumed.accelerator, folder) == 1
    assert torch.equal(resumed.model.weight, weights)
    (record,) = caplog.records
    assert "step_000002" in record.getMessage()
    assert re.search(reason, record.getMessage())


def test_without_a_whole_checkpoint_a_run_starts_from_the_beginning(saved, caplog):
    for name in ("step_000001", "step_000002"):
        (saved[0] / name / MANIFEST_NAME).unlink()
    assert resume(Run().accelerator, saved[0]) == 0
    assert len(caplog.records) == 3 and "starts from the beginning" in caplog.text


def test_a_later_broken_checkpoint_does_not_remove_whole_ones(saved, run):
    """A run that resumed an earlier checkpoint keeps it."""
    folder, _ = saved
    (folder / "step_000002").rename(folder / "step_000009")
    save_checkpoint(run.accelerator, folder, 3, keep=2)
    assert names(folder) == ["step_000001", "step_000003", "step_000009"]
    save_checkpoint(run.accelerator, folder, 9, keep=2)
    assert names(folder) == ["step_000003", "step_000009"]


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


@pytest.mark.parametrize("name", ["custom_checkpoint_0.pkl", "optimizer.bin"])
def test_a_hostile_checkpoint_runs_no_code(saved, tmp_path, name):
    folder, _ = saved
    checkpoint, touched = folder / "step_000002", tmp_path / "touched"
    torch.save(Hostile(touched), checkpoint / name)
    (checkpoint / MANIFEST_NAME).unlink()
    write_manifest(checkpoint)
    with pytest.raises(pickle.UnpicklingError):
        resume(Run().accelerator, folder)
    assert not touched.exists()
    torch.load(checkpoint / name, weights_only=False)
    assert touched.exists()  # the test would notice

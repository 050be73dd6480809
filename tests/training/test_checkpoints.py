import pytest
import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import PolynomialLR

from transformers_sem.training.checkpoints import checkpoint_step, list_checkpoints, resume, save_checkpoint


class Run:
    """A model, an optimiser and a schedule, as `scripts/train.py` puts them together."""

    def __init__(self):
        torch.manual_seed(0)
        self.accelerator = Accelerator(cpu=True)
        model = torch.nn.Linear(3, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        self.schedule = PolynomialLR(optimizer, total_iters=10)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.accelerator.register_for_checkpointing(self.schedule)

    def step(self):
        self.model(torch.rand(2, 3)).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        return self.model.weight.detach().clone()


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


def test_what_is_not_whole_is_ignored(run, tmp_path):
    save_checkpoint(run.accelerator, tmp_path, 3, keep=2)
    for name in ("unfinished_000009", "step_", "step_000007.tmp", "step_old", "other"):
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


def test_a_resumed_run_goes_on_as_if_nothing_had_happened(run, tmp_path):
    for _ in range(2):
        run.step()
    save_checkpoint(run.accelerator, tmp_path, 2, keep=1)
    expected = [run.step() for _ in range(3)]
    resumed = Run()
    assert resume(resumed.accelerator, tmp_path) == 2
    # data, optimiser moments, learning rate and random state all play a part
    for weights in expected:
        assert torch.equal(resumed.step(), weights)
    assert resumed.schedule.get_last_lr() == run.schedule.get_last_lr()


def test_the_newest_is_resumed(run, tmp_path):
    save_checkpoint(run.accelerator, tmp_path, 1, keep=2)
    weights = run.step()
    save_checkpoint(run.accelerator, tmp_path, 2, keep=2)
    resumed = Run()
    assert resume(resumed.accelerator, tmp_path) == 2
    assert torch.equal(resumed.model.weight, weights)

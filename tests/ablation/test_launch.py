import itertools
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from transformers_sem.ablation import launch

from ..utils.test_processes import is_running, wait_until


GRANDCHILD = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), pathlib.Path("saved").touch(), sys.exit(3)))
pathlib.Path("ready").touch()
time.sleep(60)
"""
CHILD = f"""
import os, pathlib, subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", {GRANDCHILD!r}])
while not pathlib.Path("ready").exists():
    time.sleep(0.02)
pathlib.Path("unfinished").write_text(f"{{os.getpid()}} {{grandchild.pid}}")
pathlib.Path("unfinished").rename("pid")
time.sleep(60)
"""
PARENT = """
import signal, sys
from transformers_sem.ablation import launch
signal.signal(signal.SIGTERM, signal.default_int_handler)
launch.training_command = lambda run, accelerate_config: [sys.executable, "-c", sys.argv[1]]
launch.launch_trainings(["a training"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=lambda signum: signum.name)
def test_a_training_saves_and_ends_with_the_ablation(tmp_path, signum):
    """A child stands for the launcher, whose own child trains and saves."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as parent:
        try:
            wait_until((tmp_path / "pid").exists, seconds=120)
            pids = [int(pid) for pid in (tmp_path / "pid").read_text().split()]
            parent.send_signal(signum)
            parent.wait(timeout=60)
        finally:
            parent.kill()
    assert (tmp_path / "saved").exists()
    assert not any(is_running(pid) for pid in pids)


@dataclass(frozen=True)
class FakeRun:
    """Leaves a line with its name and its start and end in a common file."""

    name: str
    folder: Path
    status: int = 0

    @property
    def is_trained(self):
        return (self.folder / self.name).exists()

    @property
    def code(self):
        return f"""
import os, pathlib, sys, time
folder = pathlib.Path({str(self.folder)!r})
with open(folder / "log", "a") as log:
    variables = os.environ.get("OMP_NUM_THREADS"), os.environ.get("CUDA_VISIBLE_DEVICES")
    print("start", {self.name!r}, *variables, file=log, flush=True)
    time.sleep(0.15)
    print("end", {self.name!r}, file=log, flush=True)
if not {self.status}:
    (folder / {self.name!r}).touch()
sys.exit({self.status})
"""


@pytest.fixture
def commands(monkeypatch):
    monkeypatch.setattr(launch, "training_command", lambda run, _: [sys.executable, "-S", "-c", run.code])
    monkeypatch.setattr(launch, "available_cpus", lambda: 8)


def read_log(folder):
    return [line.split() for line in (folder / "log").read_text().splitlines()]


def test_trainings_run_one_after_another_in_order(commands, tmp_path):
    runs = [FakeRun(name, tmp_path) for name in "abc"]
    started, ended = [], []
    launch.launch_trainings(runs, on_start=started.append, on_end=ended.append)
    assert started == ended == runs
    assert [line[0] for line in read_log(tmp_path)] == ["start", "end"] * 3


@pytest.mark.parametrize(
    ("names", "expected"), [(None, {"a": "0", "b": "1"}), ("5,GPU-7,6", {"a": "5", "b": "GPU-7"})]
)
def test_trainings_at_a_time_have_gpus_of_their_own(commands, tmp_path, monkeypatch, names, expected):
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: 3 if names else 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if names:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    launch.launch_trainings([FakeRun(name, tmp_path) for name in "ab"], num_jobs=2)
    assert {line[1]: line[3] for line in read_log(tmp_path) if line[0] == "start"} == expected


def test_a_training_takes_one_device_unless_a_configuration_names_others():
    run = SimpleNamespace(config_path="a.yaml", overrides=["seed=1"])
    train = ["-m", "transformers_sem.cli.train", "--config", "a.yaml", "seed=1"]
    assert launch.training_command(run, None) == [sys.executable, *train]
    launcher = ["-m", "accelerate.commands.launch", "--config_file", "devices.yaml"]
    assert launch.training_command(run, "devices.yaml") == [sys.executable, *launcher, *train]


def test_no_more_trainings_than_jobs_run_side_by_side_and_they_share_the_cores(commands, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    ended = []
    launch.launch_trainings([FakeRun(name, tmp_path) for name in "abcde"], num_jobs=2, on_end=ended.append)
    log = read_log(tmp_path)
    running = list(itertools.accumulate(1 if line[0] == "start" else -1 for line in log))
    assert max(running) == 2 and len(ended) == 5
    assert {line[2] for line in log if line[0] == "start"} == {"3"}  # of 4 cores one is for the data


def test_a_training_that_fails_ends_the_others(commands, tmp_path):
    runs = [FakeRun("a", tmp_path, status=3), FakeRun("b", tmp_path), FakeRun("c", tmp_path)]
    with pytest.raises(ValueError, match="ended with status 3.*resumes"):
        launch.launch_trainings(runs, num_jobs=2)
    assert "c" not in {line[1] for line in read_log(tmp_path)}
    assert not (tmp_path / "c").exists()


def test_a_training_that_leaves_no_scores_has_failed(commands, tmp_path, monkeypatch):
    monkeypatch.setattr(FakeRun, "is_trained", False)
    with pytest.raises(ValueError, match="ended with status 0"):
        launch.launch_trainings([FakeRun("a", tmp_path)])

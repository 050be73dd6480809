import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from transformers_sem.utils.processes import available_cpus, leave_cores, process_pool


PARENT = """
if __name__ == "__main__":
    from transformers_sem.utils.processes import process_pool
    from worker_calls import wait_in_worker

    with process_pool(2) as pool:
        list(pool.map(wait_in_worker, ["a", "b"]))
"""
CALLS = """
import os, time
from pathlib import Path

def wait_in_worker(name):
    Path(f"unfinished_{name}").write_text(str(os.getpid()))
    Path(f"unfinished_{name}").rename(f"{name}.pid")
    time.sleep(120)
"""


def square(number):
    return number * number, os.getpid()


def note(path):
    time.sleep(0.2)
    Path(path).touch()


def fail():
    raise ValueError("this call fails")


def is_running(pid):
    """Whether a process exists that is not a zombie."""
    path = Path(f"/proc/{pid}/stat")
    try:
        return path.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_pool_works_in_other_processes():
    with process_pool(2) as pool:
        results = list(pool.map(square, range(6)))
    assert [value for value, _ in results] == [0, 1, 4, 9, 16, 25]
    assert os.getpid() not in {pid for _, pid in results}
    assert not any(is_running(pid) for _, pid in results)


@pytest.mark.slow
def test_the_error_of_a_call_is_raised():
    with process_pool(1) as pool, pytest.raises(ValueError, match="this call fails"):
        pool.submit(fail).result()


@pytest.mark.slow
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_cancels_what_is_queued(tmp_path, error):
    paths = [tmp_path / str(index) for index in range(50)]
    with pytest.raises(error), process_pool(1) as pool:  # noqa: PT012
        for path in paths:
            pool.submit(note, path)
        wait_until(paths[0].exists)
        raise error
    assert sum(path.exists() for path in paths) < 10


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "worker_calls.py").write_text(CALLS)
    (tmp_path / "parent.py").write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(tmp_path)])}
    with subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path, env=environment) as parent:
        try:
            wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2, seconds=300)
            workers = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
            assert all(is_running(pid) for pid in workers) and parent.pid not in workers
        finally:
            parent.kill()
    wait_until(lambda: not any(is_running(pid) for pid in workers), seconds=10)


@pytest.mark.slow
@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs a fork server")
def test_workers_are_not_forked_from_this_process():
    """A fork would copy the locks of its threads and a GPU context that cannot be used."""
    with process_pool(1) as pool:
        assert pool.submit(os.getppid).result() != os.getpid()


def test_cores_are_those_of_this_process():
    assert 1 <= available_cpus() <= os.cpu_count()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("num_workers", "num_threads"), [(0, 4), (1, 4), (3, 3), (5, 1), (9, 1)])
def test_threads_and_workers_have_a_core_each(threads, monkeypatch, num_workers, num_threads):
    monkeypatch.setattr("transformers_sem.utils.processes.available_cpus", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)
    leave_cores(num_workers)
    assert torch.get_num_threads() == num_threads


def test_the_environment_decides_on_threads(threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    leave_cores(1000)
    assert torch.get_num_threads() == 3

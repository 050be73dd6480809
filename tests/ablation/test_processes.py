import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from transformers_sem.ablation.processes import run_to_the_end


CHILD = """
import pathlib, signal, subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("saved").touch(), sys.exit(3)))
pathlib.Path("unfinished").write_text(str(grandchild.pid))
pathlib.Path("unfinished").rename("pid")
time.sleep(60)
"""
PARENT = """
import signal, sys
from transformers_sem.training.processes import run_to_the_end
signal.signal(signal.SIGTERM, signal.default_int_handler)
run_to_the_end([sys.executable, "-c", sys.argv[1]])
"""


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_training_does_not_outlive_the_ablation(tmp_path, number):
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as parent:
        wait_until((tmp_path / "pid").exists)
        family = psutil.Process(parent.pid).children(recursive=True)
        assert int((tmp_path / "pid").read_text()) in [process.pid for process in family]
        os.kill(parent.pid, number)
    wait_until(lambda: not any(is_running(process.pid) for process in family))
    assert (tmp_path / "saved").exists() == (number == signal.SIGTERM)


def test_the_exit_status_of_a_training_is_returned():
    assert run_to_the_end([sys.executable, "-c", "raise SystemExit(3)"]) == 3

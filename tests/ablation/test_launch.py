import os
import signal
import subprocess
import sys

import pytest

from transformers_sem.ablation.launch import run_process_group

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
from transformers_sem.ablation.launch import run_process_group
signal.signal(signal.SIGTERM, signal.default_int_handler)
run_process_group([sys.executable, "-c", sys.argv[1]])
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


def test_the_exit_status_of_a_training_is_returned():
    assert run_process_group([sys.executable, "-c", "raise SystemExit(3)"]) == 3

import os
import signal

import pytest
from accelerate import Accelerator

from transformers_sem.training import signals as stopping
from transformers_sem.training.signals import SIGNALS, StopRequest


@pytest.fixture
def request_to_stop():
    return StopRequest(Accelerator(cpu=True))


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_is_only_recorded(request_to_stop, capfd, signum):
    earlier = signal.getsignal(signum)
    with request_to_stop as stop:
        assert stop.signum == 0
        os.kill(os.getpid(), signum)
        assert stop.signum == signum
        os.kill(os.getpid(), signum)  # the launcher passes it on
    assert signal.getsignal(signum) == earlier
    assert capfd.readouterr().err.count("Stopping after this step") == 1


def test_the_second_request_ends_the_process(request_to_stop, monkeypatch):
    monkeypatch.setattr(stopping, "SECONDS_OF_ONE_REQUEST", -1.0)
    child = os.fork()
    if child == 0:
        with request_to_stop:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGINT


def test_a_forked_process_neither_prints_nor_ends(request_to_stop, capfd, monkeypatch):
    monkeypatch.setattr(stopping, "SECONDS_OF_ONE_REQUEST", -1.0)
    with request_to_stop:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert "Stopping" not in capfd.readouterr().err


def test_leaving_prints_the_step_and_the_checkpoints(request_to_stop, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        request_to_stop.leave(signal.SIGTERM, 12, tmp_path / "step_000012")
    assert exit_info.value.code == 143
    printed = capsys.readouterr().out
    assert "SIGTERM after step 12" in printed and str(tmp_path / "step_000012") in printed

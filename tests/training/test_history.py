import json

import pytest
from accelerate import Accelerator

from transformers_sem.training.history import LossLog, read_history


@pytest.fixture
def log(tmp_path):
    return LossLog(Accelerator(cpu=True), tmp_path, images_per_step=4)


def losses(loss, depth=0.5):
    return {"loss": loss, "depth": depth}


def flush(log, step, skipped_steps=0):
    return log.flush(step, 1e-3, skipped_steps)


def without_machine(entries):
    return [
        {key: value for key, value in entry.items() if "_per_" not in key and "mem" not in key} for entry in entries
    ]


def test_an_entry_holds_the_means_since_the_last_one(log, tmp_path):
    for value in (1.0, 2.0, 6.0):
        log.add(losses(value))
    flush(log, 3)
    log.add(losses(7.0, depth=1.5))
    shown = flush(log, 4, skipped_steps=2)
    expected = [
        {"step": 3, "loss": 3.0, "losses": {"depth": 0.5}, "learning_rate": 1e-3, "skipped_steps": 0},
        {"step": 4, "loss": 7.0, "losses": {"depth": 1.5}, "learning_rate": 1e-3, "skipped_steps": 2},
    ]
    entries = read_history(tmp_path)
    assert without_machine(entries) == expected
    assert all(entry["images_per_second"] > 0 and entry["memory_gigabytes"] > 0.01 for entry in entries)
    assert shown.items() >= {"loss": "7", "depth": "1.5", "learning_rate": "0.001", "skipped_steps": "2"}.items()


def test_what_is_not_finite_stays_out_of_the_means(log, tmp_path):
    log.add(losses(float("nan")))
    log.add(losses(3.0))
    log.add(losses(4.0, depth=float("inf")))
    flush(log, 3)
    log.add(losses(float("nan")))
    flush(log, 4)
    first, second = read_history(tmp_path)
    assert (first["loss"], first["losses"]) == (3.0, {"depth": 0.5})
    assert (second["loss"], second["losses"]) == (None, {"depth": None})
    for line in (tmp_path / "history.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_an_entry_that_a_checkpoint_cuts_in_two_is_the_same(log, tmp_path):
    values = [0.1, 0.2, 0.7, 1e-9, 3.0]
    for value in values:
        log.add(losses(value))
    flush(log, 5)
    for value in values[:2]:
        log.add(losses(value))
    state = log.state_dict()
    resumed = LossLog(log.accelerator, tmp_path, images_per_step=4)
    resumed.load_state_dict(state)
    for value in values[2:]:
        resumed.add(losses(value))
    flush(resumed, 5)
    first, second = without_machine(read_history(tmp_path))
    assert first == second


def test_a_resumed_run_drops_what_it_takes_again(log, tmp_path):
    for step in (2, 4, 6):
        log.add(losses(step))
        flush(log, step)
    with log.path.open("a") as file:
        file.write('{"step": 8, "lo')
    lines = log.path.read_text().splitlines()
    assert [entry["step"] for entry in read_history(tmp_path)] == [2, 4, 6]
    log.truncate_after(4)
    assert log.path.read_text().splitlines() == lines[:2]
    assert [path.name for path in tmp_path.iterdir()] == ["history.jsonl"]
    log.truncate_after(0)
    assert log.path.read_text() == ""


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "",
        '{"step": 30, "loss": 1.',
        "[1, 2]",
        "null",
        '{"loss": 1.0}',
        '{"step": "30"}',
        '{"step": 30, "losses": [1]}',
        "\x00\x00",
        "\udcff",
    ],
    ids=ascii,
)
def test_a_history_is_read_up_to_the_first_line_that_is_no_entry(log, tmp_path, line):
    lines = ['{"step": 10}', '{"step": 20}', line, '{"step": 30}']
    log.path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    assert read_history(tmp_path) == [{"step": 10}, {"step": 20}]
    log.truncate_after(10)
    assert log.path.read_text() == '{"step": 10}\n'


def test_a_run_without_a_history_has_nothing_to_drop(log, tmp_path):
    log.truncate_after(3)
    assert read_history(tmp_path) == []
    assert list(tmp_path.iterdir()) == []

import json

import pytest
from accelerate import Accelerator

from transformers_sem.training.history import History, read_history


@pytest.fixture
def history(tmp_path):
    return History(Accelerator(cpu=True), tmp_path, images_per_step=4)


def losses(loss, depth=0.5):
    return {"loss": loss, "depth": depth}


def flush(history, step, skipped_steps=0):
    return history.write_losses(step, 1e-3, skipped_steps)


def without_machine(entries):
    return [
        {key: value for key, value in entry.items() if "_per_" not in key and "mem" not in key} for entry in entries
    ]


def test_an_entry_holds_the_means_since_the_last_one(history, tmp_path):
    for value in (1.0, 2.0, 6.0):
        history.add(losses(value))
    flush(history, 3)
    history.add(losses(7.0, depth=1.5))
    shown = flush(history, 4, skipped_steps=2)
    expected = [
        {"step": 3, "loss": 3.0, "losses": {"depth": 0.5}, "learning_rate": 1e-3, "skipped_steps": 0},
        {"step": 4, "loss": 7.0, "losses": {"depth": 1.5}, "learning_rate": 1e-3, "skipped_steps": 2},
    ]
    entries = read_history(tmp_path)
    assert without_machine(entries) == expected
    assert all(entry["images_per_second"] > 0 and entry["memory_gigabytes"] > 0.01 for entry in entries)
    assert shown.items() >= {"loss": "7", "depth": "1.5", "learning_rate": "0.001", "skipped_steps": "2"}.items()


def test_losses_that_are_not_finite_are_left_out_of_the_means(history, tmp_path):
    history.add(losses(float("nan")))
    history.add(losses(3.0))
    history.add(losses(4.0, depth=float("inf")))
    flush(history, 3)
    history.add(losses(float("nan")))
    flush(history, 4)
    first, second = read_history(tmp_path)
    assert (first["loss"], first["losses"]) == (3.0, {"depth": 0.5})
    assert (second["loss"], second["losses"]) == (None, {"depth": None})
    for line in (tmp_path / "history.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_an_entry_split_by_a_checkpoint_is_the_same(history, tmp_path):
    values = [0.1, 0.2, 0.7, 1e-9, 3.0]
    for value in values:
        history.add(losses(value))
    flush(history, 5)
    for value in values[:2]:
        history.add(losses(value))
    state = history.state_dict()
    resumed = History(history.accelerator, tmp_path, images_per_step=4)
    resumed.load_state_dict(state)
    for value in values[2:]:
        resumed.add(losses(value))
    flush(resumed, 5)
    first, second = without_machine(read_history(tmp_path))
    assert first == second


def test_a_resumed_run_removes_the_entries_of_steps_it_repeats(history, tmp_path):
    for step in (2, 4, 6):
        history.add(losses(step))
        flush(history, step)
    with history.path.open("a") as file:
        file.write('{"step": 8, "lo')
    lines = history.path.read_text().splitlines()
    assert [entry["step"] for entry in read_history(tmp_path)] == [2, 4, 6]
    history.truncate_after(4)
    assert history.path.read_text().splitlines() == lines[:2]
    assert [path.name for path in tmp_path.iterdir()] == ["history.jsonl"]
    history.truncate_after(0)
    assert history.path.read_text() == ""


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
        '{"step": 30, "scores": 0.5}',
        "\x00\x00",
        "\udcff",
    ],
    ids=ascii,
)
def test_a_history_is_read_up_to_the_first_line_that_is_no_entry(history, tmp_path, line):
    lines = ['{"step": 10}', '{"step": 20}', line, '{"step": 30}']
    history.path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    assert read_history(tmp_path) == [{"step": 10}, {"step": 20}]
    history.truncate_after(10)
    assert history.path.read_text() == '{"step": 10}\n'


def test_a_run_without_a_history_has_nothing_to_remove(history, tmp_path):
    history.truncate_after(3)
    assert read_history(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_scores_are_entries_of_their_own(history, tmp_path):
    history.add(losses(1.0))
    flush(history, 2)
    history.write_scores(2, {"depth/rmse": 0.5})
    history.write_scores(4, {"depth/rmse": 0.25})
    assert read_history(tmp_path)[1:] == [
        {"step": 2, "scores": {"depth/rmse": 0.5}},
        {"step": 4, "scores": {"depth/rmse": 0.25}},
    ]
    history.truncate_after(3)
    assert [entry["step"] for entry in read_history(tmp_path)] == [2, 2]


def test_trackers_get_losses_and_scores(history, monkeypatch):
    logged = []
    monkeypatch.setattr(history.accelerator, "log", lambda values, step: logged.append((step, values)))
    history.add(losses(1.0))
    history.add(losses(float("nan")))
    flush(history, 2)
    history.write_scores(2, {"depth/rmse": 0.5})
    (step, values), scores = logged
    assert step == 2 and values.items() >= {"train/loss": 1.0, "train/depth": 0.5, "train/learning_rate": 1e-3}.items()
    assert scores == (2, {"validation/depth/rmse": 0.5})

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest

from transformers_sem.evaluation.statistics_file import StatisticsFile


KILLED = """
import sys
from pathlib import Path

import numpy as np

from transformers_sem.statistics_file import StatisticsFile

with StatisticsFile(Path(sys.argv[1]), "model") as file:
    for number in range(int(sys.argv[2]), 1_000_000):
        file.add(str(number), {"first": np.full(20_000, number), "second": np.random.default_rng(number).random(5_000)})
"""


def statistics(number=0):
    return {
        "counts": np.arange(8).reshape(2, 4) + number,
        "sum": np.array(0.1 + number),
        "small": np.array([1.5, np.nan], dtype=np.float32),
        "model/semseg/num_valid": np.array(3, dtype=np.uint8),
        "none": np.zeros((0, 3)),
    }


def write(path, *names, fingerprint="model"):
    with StatisticsFile(path, fingerprint) as file:
        for number, name in enumerate(names):
            file.add(name, statistics(number))
    return path


def read(path, fingerprint="model"):
    with StatisticsFile(path, fingerprint) as file:
        content = dict(file)
        assert file.names() == set(content)
    return content


def assert_same(found, expected):
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(found[key], value)


def test_statistics_come_back_as_they_were(tmp_path):
    content = read(write(tmp_path / "new" / "folder" / "kept.sqlite", "b", "a/1", "ünï 'x'; --"))
    assert list(content) == ["a/1", "b", "ünï 'x'; --"]
    for number, name in enumerate(["b", "a/1", "ünï 'x'; --"]):
        assert_same(content[name], statistics(number))


def test_a_new_file_is_empty_and_silent(tmp_path, caplog):
    assert read(tmp_path / "kept.sqlite") == {}
    assert caplog.records == []


def test_a_second_process_finds_what_the_first_left(tmp_path, caplog):
    path = write(tmp_path / "kept.sqlite", "a")
    with StatisticsFile(path, "model") as file:
        file.add("b", statistics(7))
    assert set(read(path)) == {"a", "b"}
    assert caplog.records == []


def test_an_image_that_is_added_again_is_replaced(tmp_path):
    content = read(write(tmp_path / "kept.sqlite", "a", "b", "a"))
    assert list(content) == ["a", "b"]
    assert_same(content["a"], statistics(2))


def test_another_fingerprint_starts_anew_and_says_so(tmp_path, caplog):
    path = write(tmp_path / "kept.sqlite", "a", "b")
    assert read(path, "other model") == {}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(path) in caplog.text and "started anew" in caplog.text
    caplog.clear()
    write(path, "c", fingerprint="other model")
    assert set(read(path, "other model")) == {"c"}
    assert caplog.records == []


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: data[:100], lambda data: data[:-1024] + b"\0" * 1024],
    ids=["half", "head", "last page"],
)
def test_a_damaged_file_is_started_anew_and_the_warning_names_it(tmp_path, caplog, damage):
    path = write(tmp_path / "kept.sqlite", *"abcdefgh")
    path.write_bytes(damage(path.read_bytes()))
    assert set(read(write(path, "new"))) == {"new"}
    assert str(path) in caplog.text and "started anew" in caplog.text


def test_a_damaged_image_counts_as_a_damaged_file(tmp_path, caplog):
    path = write(tmp_path / "kept.sqlite", "a", "b")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE images SET statistics = substr(statistics, 1, 300) WHERE name = 'b'")
    assert set(read(write(path, "new"))) == {"new"}
    assert str(path) in caplog.text and "started anew" in caplog.text


def test_an_empty_file_is_a_new_one(tmp_path):
    path = tmp_path / "kept.sqlite"
    path.touch()
    assert set(read(write(path, "new"))) == {"new"}


def write_database(path):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE images (name TEXT)")


@pytest.mark.parametrize(
    "write_other",
    [
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
        lambda path: path.write_text("the only copy of my notes"),
        lambda path: path.write_bytes(b"\0" * 5000),
        write_database,
    ],
    ids=["random", "text", "zeros", "another database"],
)
def test_a_file_of_another_program_is_left_alone(tmp_path, write_other):
    path = tmp_path / "kept.sqlite"
    write_other(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="kept.sqlite"):
        StatisticsFile(path, "model")
    assert path.read_bytes() == before


def test_a_file_in_use_is_left_alone(tmp_path, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path: connect(path, timeout=0.01))
    path = write(tmp_path / "kept.sqlite", "a")
    with StatisticsFile(path, "model") as file:
        for fingerprint in ("model", "other model"):
            with pytest.raises(ValueError, match="kept.sqlite"):
                StatisticsFile(path, fingerprint)
        file.add("b", statistics())
    assert set(read(path)) == {"a", "b"}


def test_what_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "folder.sqlite").mkdir()
    (tmp_path / "link.sqlite").symlink_to(tmp_path / "absent" / "kept.sqlite")
    for name in ("folder.sqlite", "link.sqlite"):
        with pytest.raises(ValueError, match=name):
            StatisticsFile(tmp_path / name, "model")


def num_images(path):
    """How many images a file has that another process writes, and has locked."""
    try:
        with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
            return connection.execute("SELECT count(*) FROM images").fetchone()[0]
    except sqlite3.DatabaseError:  # not there yet, or half written
        return 0


def kill_while_adding(path, first, num_added):
    """Starts a process that adds images from `first` on, and kills it after `num_added` or some more."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path), str(first)])
    deadline = time.monotonic() + 60
    try:
        while num_images(path) < first + num_added:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.003)
    finally:
        process.kill()  # SIGKILL
    assert process.wait() == -signal.SIGKILL


def test_a_killed_process_leaves_whole_images_only(tmp_path, caplog):
    path, first = tmp_path / "kept.sqlite", 0
    for num_added in (3, 1, 8):
        kill_while_adding(path, first, num_added)
        content = read(path)
        assert set(content) == {str(number) for number in range(len(content))}
        assert len(content) >= first + num_added - 1  # the last one seen may not have been complete
        first = len(content)
    for name, arrays in content.items():
        np.testing.assert_array_equal(arrays["first"], np.full(20_000, int(name)))
        np.testing.assert_array_equal(arrays["second"], np.random.default_rng(int(name)).random(5_000))
    assert caplog.records == []

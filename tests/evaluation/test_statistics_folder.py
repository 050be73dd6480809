import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from transformers_sem.evaluation.statistics_folder import StatisticsFolder


WRITER = """
import sys
from pathlib import Path

import numpy as np

from transformers_sem.evaluation.statistics_folder import StatisticsFolder

folder = StatisticsFolder(Path(sys.argv[1]), "model")
for number in range(int(sys.argv[2]), 1_000_000):
    folder.add(str(number), {"first": np.full(20_000, number), "second": np.random.default_rng(number).random(5_000)})
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
    folder = StatisticsFolder(path, fingerprint)
    for number, name in enumerate(names):
        folder.add(name, statistics(number))
    return folder


def read(path, fingerprint="model"):
    folder = StatisticsFolder(path, fingerprint)
    return {name: folder.read(name) for name in folder.names()}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(found[key], value)


def test_statistics_are_read_as_they_were_written(tmp_path):
    write(tmp_path / "new" / "folder", "b", "a")
    content = read(tmp_path / "new" / "folder")
    assert set(content) == {"a", "b"}
    for number, name in enumerate(["b", "a"]):
        assert_same(content[name], statistics(number))


def test_tensors_are_written_as_arrays(tmp_path):
    folder = StatisticsFolder(tmp_path, "model")
    folder.add("a", {"sum": torch.tensor(0.1, dtype=torch.float64), "counts": torch.arange(3)})
    assert_same(folder.read("a"), {"sum": np.array(0.1), "counts": np.arange(3)})


def test_a_new_folder_is_empty_and_gives_no_warning(tmp_path, caplog):
    assert read(tmp_path / "statistics") == {}
    assert StatisticsFolder(tmp_path / "statistics", "model").read("absent") is None
    assert caplog.records == []


def test_an_image_that_is_added_again_is_replaced(tmp_path):
    write(tmp_path, "a", "b", "a")
    content = read(tmp_path)
    assert set(content) == {"a", "b"}
    assert_same(content["a"], statistics(2))


def test_statistics_of_another_fingerprint_are_removed_with_a_warning(tmp_path, caplog):
    write(tmp_path, "a", "b")
    (tmp_path / "notes").mkdir()
    assert read(tmp_path, "other model") == {}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(tmp_path) in caplog.text and "another model or other settings" in caplog.text
    caplog.clear()
    write(tmp_path, "c", fingerprint="other model")
    assert set(read(tmp_path, "other model")) == {"c"}
    assert caplog.records == []
    assert (tmp_path / "notes").is_dir()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:100],
        lambda data: b"",
        lambda data: b"\0" * len(data),
        lambda data: data[:60] + b"\0" * 40 + data[100:],
    ],
    ids=["half", "head", "empty", "zeros", "content"],
)
def test_a_damaged_image_is_absent_and_the_warning_names_it(tmp_path, caplog, damage):
    folder = write(tmp_path, "a", "b")
    path = folder.folder / "a.npz"
    path.write_bytes(damage(path.read_bytes()))
    assert folder.read("a") is None
    assert str(path) in caplog.text and "evaluated again" in caplog.text
    assert_same(folder.read("b"), statistics(1))


def test_a_pickle_is_never_loaded(tmp_path, caplog):
    folder = write(tmp_path, "a")
    np.savez(folder.folder / "a.npz", counts=np.array([{"code": print}], dtype=object))
    assert folder.read("a") is None
    assert "a.npz is damaged" in caplog.text


def test_a_file_in_the_place_of_the_folder_is_kept(tmp_path):
    path = tmp_path / "statistics"
    path.write_text("the only copy of my notes")
    with pytest.raises(ValueError, match="statistics is a file"):
        StatisticsFolder(path, "model")
    assert path.read_text() == "the only copy of my notes"


@pytest.mark.slow
def test_a_killed_process_leaves_whole_images_only(tmp_path, caplog):
    for num_wanted in (3, 4, 9):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(num_wanted - 3)])
        deadline = time.monotonic() + 60
        try:
            while len(StatisticsFolder(tmp_path, "model").names()) < num_wanted:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.003)
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL
        content = read(tmp_path)
        assert len(content) >= num_wanted and None not in content.values()
        for name, arrays in content.items():
            np.testing.assert_array_equal(arrays["first"], np.full(20_000, int(name)))
            np.testing.assert_array_equal(arrays["second"], np.random.default_rng(int(name)).random(5_000))
    assert caplog.records == []

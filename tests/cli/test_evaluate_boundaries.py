"""The command `evaluate-boundaries`."""

import json
import shutil

import numpy as np
import pytest

from transformers_sem.evaluation.boundary import boundary_counts, boundary_scores
from transformers_sem.utils.environment import lock_report

from .commands import error_line, run, save_image


def make_boundary_pair(seed):
    """8-bit levels of a line across noise, and ids of two regions."""
    levels = np.random.default_rng(seed).integers(0, 50, (20, 30), dtype=np.uint8)
    levels[:, 13 + seed] = 200
    ids = np.zeros((20, 30), dtype=np.uint8)
    ids[:, 15:] = 9
    return levels, ids


@pytest.fixture
def boundary_folders(tmp_path):
    """Arguments of the command for three images of predictions and labels."""
    for seed, name in enumerate(["a", "b", "my photo 1"]):
        for folder, values in zip(("predictions", "labels"), make_boundary_pair(seed), strict=True):
            save_image(tmp_path / folder / f"{name}.png", values)
    return ["--predictions", tmp_path / "predictions", "--labels", tmp_path / "labels", "--processes", 1]


def test_boundaries_on_disk_are_scored(boundary_folders, tmp_path):
    output = tmp_path / "new" / "boundaries.json"
    (tmp_path / "ids.txt").write_text("my photo 1\na\n")
    for ids, seeds in (([], range(3)), (["--ids", tmp_path / "ids.txt"], (0, 2))):
        arguments = [*boundary_folders, "--max-distance", 0.03, "--output", output, *ids]
        result = run("evaluate-boundaries", *arguments)
        assert result.code == 0, result.errors
        counts = [boundary_counts(*make_boundary_pair(seed), 0.03) for seed in seeds]
        report = json.loads(output.read_text())
        assert report["scores"] == boundary_scores(counts)
        assert (report["num_images"], report["max_distance"]) == (len(seeds), 0.03)
        assert "transformers-sem evaluate-boundaries --predictions" in report["command"]
        assert "commit" in report["environment"]
        assert f"{report['scores']['ods']:.4f}" in result.output and str(output) in result.output


def test_one_command_writes_a_report_of_boundaries_at_a_time(boundary_folders, tmp_path):
    arguments = [*boundary_folders, "--max-distance", 0.03, "--output", tmp_path / "boundaries.json"]
    with lock_report(tmp_path / "boundaries.json"):
        message = error_line(run("evaluate-boundaries", *arguments))
    assert "One command writes a report at a time" in message
    assert not (tmp_path / "boundaries_counts").exists()
    assert run("evaluate-boundaries", *arguments).code == 0


@pytest.mark.parametrize(
    ("damage", "extra", "words"),
    [
        (lambda folder: shutil.rmtree(folder / "labels"), [], ["no folder", "labels"]),
        (lambda folder: (folder / "labels" / "b.png").unlink(), [], ["labels lacks 1 of 3", "'b'"]),
        (lambda folder: (folder / "predictions" / "b.png").write_text("no picture"), [], ["predictions/b.png"]),
        (
            lambda folder: save_image(folder / "labels" / "b.png", np.zeros((9, 30), np.uint8)),
            [],
            ["b.png", "(9, 30)"],
        ),
        (lambda folder: None, ["--max-distance", "0"], ["max_distance", "0.0"]),
        (lambda folder: None, ["--ids", "pascal_context"], ["predictions lacks 2498 of 2498"]),
        (lambda folder: None, ["--ids", "absent.txt"], ["absent.txt"]),
    ],
    ids=["no folder", "no label", "no picture", "sizes", "distance", "protocol", "list"],
)
def test_boundaries_that_cannot_be_scored_end_in_one_line(boundary_folders, tmp_path, damage, extra, words):
    damage(tmp_path)
    arguments = [*boundary_folders, "--max-distance", 0.03, "--output", tmp_path / "boundaries.json", *extra]
    message = error_line(run("evaluate-boundaries", *arguments))
    assert [word for word in words if word not in message] == []
    assert not (tmp_path / "boundaries.json").exists()

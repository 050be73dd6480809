"""The pack for a machine with a GPU: frames keep their values, and a rehearsal leaves every result."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from transformers_sem.data.nyud_v2 import find_source, read_folder_frame
from transformers_sem.data.shrink import shrink_maps

from ..conftest import REPOSITORY
from ..data.nyud_v2_forms import write_tiny_folder


FOLDER = REPOSITORY / "scripts" / "gpu_pack"
TOLERANCE = {"depth": 0.0151, "semseg": 0, "boundary": 0}  # relative: half a level


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    for name in ("frames", "measure"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def write_source(root):
    return write_tiny_folder(root, {"train": ["0001", "0002", "0003"], "val": ["0010", "0011"]})


def test_frames_keep_their_values(scripts, tmp_path):
    import frames

    source = find_source(write_source(tmp_path / "NYUDv2"))
    frames.shrink(source.root, tmp_path / "small", {"train": 2}, num_processes=1)
    frames.restore(tmp_path / "small", tmp_path / "restored", {}, num_processes=1)
    restored = find_source(tmp_path / "restored")
    assert {split: len(found) for split, found in restored.frames.items()} == {"train": 2, "validation": 2}
    for split, found in restored.frames.items():
        for whole, small in zip(source.frames[split], found, strict=False):
            expected, maps = shrink_maps(read_folder_frame(whole), 2), read_folder_frame(small)
            for column, tolerance in TOLERANCE.items():
                np.testing.assert_allclose(maps[column].astype(float), expected[column].astype(float), rtol=tolerance)
            assert maps["normal"].shape == expected["normal"].shape


def test_the_last_of_several_trainings_decides_how_long_they_take(scripts):
    import measure

    looks = [(100.0, [10, 20, 30, 50]), (110.0, [30, 40, 40, 50])]
    assert measure.seconds_to_end(looks, max_steps=50) == pytest.approx(10)  # 20 steps at two a second
    assert measure.seconds_to_end([(0.0, [50, 50]), (9.0, [50, 50])], max_steps=50) == 0
    # those of an earlier try, which have not begun anew
    assert measure.seconds_to_end([(0.0, [5, 5, 5]), (9.0, [5, 5, 8])], max_steps=50) is None


def test_steps_of_trainings_that_have_begun(scripts, tmp_path):
    import measure

    for name, lines in {"sem": [10, 20], "mtl": []}.items():
        folder = tmp_path / "runs" / "0" / "seed0" / name
        folder.mkdir(parents=True)
        (folder / "history.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in lines))
    assert measure.read_steps(tmp_path, ["0", "1"]) == [20]


PLAN = {"models": ["baseline", "sem"], "seeds": ["0", "1"], "rows": ["max_steps=20"]}
TRAINING = """
import json, sys, time
from pathlib import Path
for model in sys.argv[3:]:
    path = Path(sys.argv[1], model, "history.jsonl")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"step": 20}))
time.sleep(float(sys.argv[2]))
sys.exit(sys.argv[2] == "0.1")
"""


@pytest.mark.parametrize(
    ("seconds", "statuses", "succeeds"),
    [(["2", "4"], [0, 0], True), (["0.1", "4"], [1, 0], True), (["0.1", "0.1"], [1, 1], False)],
)
def test_seeds_end_one_after_another_and_none_is_left(scripts, tmp_path, monkeypatch, seconds, statuses, succeeds):
    import measure

    monkeypatch.setattr(measure, "SECONDS_TO_LOOK", 0)
    pack = measure.Pack(tmp_path / "output", measure.Clock(time.time(), minutes=5))

    def start_seed(pack, plan, folder, seed, environment):
        command = [
            sys.executable,
            "-c",
            TRAINING,
            folder / "runs" / seed / f"seed{seed}",
            seconds[int(seed)],
            *plan["models"],
        ]
        return pack.start(f"rows_seed{seed}", command)

    monkeypatch.setattr(measure, "start_seed", start_seed)
    assert measure.run_rows(pack, PLAN, tmp_path, {}) == succeeds
    assert [process.poll() is None for process in pack.started] == [False, False]
    assert [outcome["status"] for outcome in pack.outcomes] == statuses


def test_what_a_stopped_command_started_does_not_stay(scripts, tmp_path):
    import measure

    pack = measure.Pack(tmp_path / "output", measure.Clock(time.time(), minutes=5))
    code = "import subprocess; subprocess.run(['sleep', '60'], start_new_session=True)"
    process = pack.start("rows_seed0", [sys.executable, "-c", code])
    while not (children := measure.find_children(process)):
        time.sleep(0.05)
    assert pack.stop([process]) == [measure.GIVEN_UP]
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_histories_are_kept_whatever_happens(scripts, tmp_path, monkeypatch):
    import measure

    def run_rows(pack, plan, folder, environment):
        for seed in plan["seeds"]:
            path = folder / "runs" / seed / f"seed{seed}" / "sem" / "history.jsonl"
            path.parent.mkdir(parents=True)
            path.write_text("{}")
        raise OSError("the disk is full")

    monkeypatch.setattr(measure, "run_rows", run_rows)
    pack = measure.Pack(tmp_path / "output", measure.Clock(time.time(), minutes=5))
    with pytest.raises(OSError, match="full"):
        measure.train_rows(pack, PLAN, tmp_path)
    assert {path.name for path in pack.output.glob("*.jsonl")} == {"seed0_sem.jsonl", "seed1_sem.jsonl"}


@pytest.mark.parametrize("first_use", ["pass", "import sys; sys.exit(1)"])
def test_a_service_that_does_not_quit_is_left_and_one_that_does_not_work_is_not_used(
    scripts, tmp_path, monkeypatch, first_use
):
    import measure

    control = tmp_path / "nvidia-cuda-mps-control"
    control.write_text('#!/bin/sh\n[ "$1" = -d ] || exec sleep 60\n')
    control.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(measure, "SECONDS_TO_QUIT", 0.1)
    monkeypatch.setattr(measure, "USE_GPU", first_use)
    with measure.shared_gpu(tmp_path) as environment:
        expected = str(tmp_path / "mps") if first_use == "pass" else None
        assert environment.get("CUDA_MPS_PIPE_DIRECTORY") == expected


@pytest.mark.slow
def test_a_rehearsal_leaves_every_result(tmp_path):
    pack, output = tmp_path / "repository" / ".gpu_pack", tmp_path / "output"
    for name in ("src", "scripts", "tests", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        source, target = REPOSITORY / name, tmp_path / "repository" / name
        shutil.copytree(source, target, symlinks=True) if source.is_dir() else shutil.copy(source, target)
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import frames; "
        "frames.shrink(Path(sys.argv[2]), Path(sys.argv[3]), {}, 1)"
    )
    data = write_source(tmp_path / "NYUDv2")
    subprocess.run([sys.executable, "-c", code, FOLDER, data, pack / "frames"], check=True)
    shutil.copy(FOLDER / "run.sh", pack)
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", pack / "run.sh", output, "--rehearse", "--minutes", "8"]
    subprocess.run(command, env=environment, check=True, timeout=500)
    outcomes = {entry["step"]: entry["status"] for entry in json.loads((output / "steps.json").read_text())}
    assert {"tests", "prepare", "lite0", "rows_seed0"} <= set(outcomes)
    assert outcomes["prepare"] == outcomes["rows_seed0"] == 0
    rows = {path.stem: json.loads(path.read_text()) for path in (output / "rows" / "seed0").iterdir()}
    assert set(rows) == {"baseline", "sem"}
    assert all("semseg/miou" in row["scores"] and row["history"] for row in rows.values())
    entries = [json.loads(line) for line in (output / "speed" / "lite0" / "modes.jsonl").read_text().splitlines()]
    assert {entry["model"] for entry in entries} == {"SEM", "MTL", "encoder"}

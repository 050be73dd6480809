"""Measure SEM on this machine within a time limit: tests, speed in every mode, and rows of Table 2 on NYU-Depth v2.

    bash .gpu_pack/run.sh OUTPUT [--rehearse] [--minutes 9]

Every result is in OUTPUT the moment it is known: `tests.xml`, `speed/*.jsonl`, `rows/seed*/*.json`, `table2.md`, `steps.json` and
the logs. `--rehearse` does the same on a CPU with tiny numbers.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import frames
import torch


REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS_TO_STOP = 15
CLI = [sys.executable, "-m", "transformers_sem"]
VIT_SMALL = "vit_small_patch16_384.augreg_in21k_ft_in1k"
MODELS = ["baseline", "inter", "intra", "sem"]
FULL = {
    "seeds": ["0", "1", "2"],
    "jobs": 12,
    "rows": ["mixed_precision=bf16", "input_size=[224, 288]", "batch_size=16", "max_steps=1000", "save_every=1000"],
    "frames": {},
    "speed": {  # {name: (recipe, settings, seconds)}
        "vit_large_batch4": ("vit_large_nyud_v2", ["batch_size=4"], 60),
        "vit_large_batch1": ("vit_large_nyud_v2", ["batch_size=1"], 25),
        "vit_base": ("vit_base_nyud_v2", ["batch_size=1"], 20),
        "vit_small": ("vit_base_nyud_v2", ["batch_size=1", f"model.backbone_config.model_name={VIT_SMALL}"], 20),
        "lite0": ("efficientnet_lite0_nyud_v2", ["batch_size=1", "input_size=[224, 288]"], 20),
    },
}
REHEARSAL = {
    "seeds": ["0"],
    "jobs": 2,
    "rows": ["input_size=[64, 96]", "batch_size=2", "max_steps=2", "save_every=2", "num_evaluation_images=2"],
    "frames": {"train": 8, "validation": 2},
    "speed": {"lite0": ("efficientnet_lite0_nyud_v2", ["batch_size=1", "input_size=[64, 96]"], 20)},
}


class Clock:
    """Counts the seconds from the start of the pack to its end."""

    def __init__(self, start: float, minutes: float) -> None:
        self.start, self.end = start, start + 60 * minutes

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.time() - self.start

    @property
    def left(self) -> float:
        """Seconds until every step has to have stopped."""
        return self.end - time.time() - SECONDS_TO_STOP


class Pack:
    """The steps, each a command with a time limit, whose outcome is written when it ends."""

    def __init__(self, output: Path, clock: Clock) -> None:
        self.output, self.clock = output, clock
        self.outcomes: list[dict] = []
        output.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, command: list[str], limit: float, **environment: str) -> None:
        """Runs a command for at most `limit` seconds, and never past the end of the clock."""
        started, limit = self.clock.spent, min(limit, self.clock.left)
        with (self.output / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
            try:
                status = process.wait(max(limit, 0))
            except subprocess.TimeoutExpired:
                status = "stopped at its time limit"
            stop(process)
        self.outcomes.append(
            {"step": name, "status": status, "started": started, "seconds": self.clock.spent - started}
        )
        (self.output / "steps.json").write_text(json.dumps(self.outcomes, indent=2) + "\n")
        print(f"{self.clock.spent:6.0f} s  {name}: {status}", flush=True)


def stop(process: subprocess.Popen) -> None:
    """Asks a process group to end, and kills what is left of it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_STOP - 5)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def shared_gpu(folder: Path):
    """Lets kernels of several processes run at the same time, where the machine has CUDA's multi-process service (MPS)."""
    control = shutil.which("nvidia-cuda-mps-control") or "/usr/local/nvidia/bin/nvidia-cuda-mps-control"
    if not torch.cuda.is_available() or not Path(control).is_file():
        yield {}
        return
    pipes = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "mps"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "mps_log")}
    for path in pipes.values():
        Path(path).mkdir()
    subprocess.run([control, "-d"], env={**os.environ, **pipes}, check=False)
    try:
        yield pipes
    finally:
        subprocess.run([control], input="quit\n", text=True, env={**os.environ, **pipes}, timeout=30, check=False)


def start_preparing(pack_dir: Path, folder: Path, limits: dict[str, int], log: Path) -> subprocess.Popen:
    """Unpacks the frames, and starts to turn them into rows."""
    processes = max(1, (os.cpu_count() or 1) - 4)
    frames.restore(pack_dir / "frames", folder / "NYUDv2", limits, processes)
    command = [*CLI, "prepare", "nyud_v2", folder / "NYUDv2", "--output", folder / "nyud_v2", "--processes", processes]
    return subprocess.Popen(list(map(str, command)), stdout=log.open("w"), stderr=subprocess.STDOUT)


def main() -> None:
    """Runs the steps in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--start", type=float, default=time.time())
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--steps", nargs="+", default=["tests", "speed", "rows"])
    parsed = parser.parse_args()
    plan = REHEARSAL if parsed.rehearse else FULL
    output = parsed.output.resolve()
    pack = Pack(output, Clock(parsed.start, parsed.minutes))
    with TemporaryDirectory() as name:
        folder = Path(name)
        preparing = start_preparing(parsed.pack, folder, plan["frames"], output / "prepare.log")
        if "tests" in parsed.steps:
            command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "tests/test_gpu.py", "-n", "6"]
            pack.run("tests", [*command, "-p", "no:cacheprovider", f"--junitxml={output}/tests.xml"], 75)
        preparing.wait()
        if "speed" in parsed.steps:
            for key, (recipe, settings, limit) in plan["speed"].items():
                command = [
                    *CLI,
                    "benchmark",
                    "modes",
                    "--config",
                    recipe,
                    *settings,
                    f"output_dir={output}/speed/{key}",
                ]
                pack.run(f"speed_{key}", command, limit)
        if "rows" in parsed.steps:
            command = [
                *CLI,
                "ablation",
                "table2",
                "--config",
                "efficientnet_lite0_nyud_v2",
                "--output",
                str(folder / "runs"),
            ]
            command += ["--results", str(output / "rows"), "--models", *MODELS, "--seeds", *plan["seeds"]]
            command += ["--jobs", str(plan["jobs"]), f"data_dir={folder}/nyud_v2", "trackers=[]", *plan["rows"]]
            with shared_gpu(folder) as environment:
                pack.run("rows", command, pack.clock.left, **environment)
            for path in (folder / "runs").glob("table2.*"):
                shutil.copy(path, output)
            for path in (folder / "runs").glob("seed*/*/history.jsonl"):  # of trainings that did not end, too
                shutil.copy(path, output / f"{path.parent.parent.name}_{path.parent.name}.jsonl")
    print(f"{pack.clock.spent:6.0f} s  Written: {output}/")


if __name__ == "__main__":
    main()

"""Measure SEM on this machine within a time limit: tests, speed in every mode, and rows of Table 2 on NYU-Depth v2.

    bash .gpu_pack/run.sh OUTPUT [--rehearse] [--minutes 9]

Every result is in OUTPUT the moment it is known: `tests.xml`, `speed/*/modes.jsonl`, `rows/seed*/*.json`,
`steps.json` and the logs. `--rehearse` does the same on a CPU with tiny numbers.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import frames
import psutil
import torch

from transformers_sem.ablation.launch import stop_groups


REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS_TO_STOP = 15
SECONDS_TO_QUIT = 4  # of these, for the service that shares the GPU
SECONDS_TO_SHARE = 30  # for the first process on a shared GPU
SECONDS_TO_TRAIN = 60  # with less left, nothing is trained again
GIVEN_UP = "stopped for lack of time"
SECONDS_TO_LOOK, SECONDS_TO_EVALUATE = 20, 25  # evaluation of the trainings of one seed
RECIPE = "efficientnet_lite0_nyud_v2"
FIT_CONSTANT = """
import sys
from accelerate import Accelerator
from transformers_sem.data.benchmarks import get_benchmark
from transformers_sem.evaluation.constant_predictor import fit_constant
from transformers_sem.training.config import TrainingConfig, label_fields
benchmark = get_benchmark("nyud_v2", sys.argv[1])
fit_constant(benchmark.load(sys.argv[1])["train"], label_fields(TrainingConfig(), benchmark)["task_num_labels"], Accelerator(cpu=True))
"""
USE_GPU = "import torch; torch.ones(1, device='cuda')"  # it fails where a training would quietly take the CPU
CLI = [sys.executable, "-m", "transformers_sem"]
VIT_SMALL = "vit_small_patch16_384.augreg_in21k_ft_in1k"
FULL = {
    "models": ["baseline", "inter", "intra", "sem"],
    "seeds": ["0", "1", "2"],
    "rows": [
        "mixed_precision=bf16",
        "input_size=[224, 288]",
        "batch_size=16",
        "max_steps=400",
        "save_every=400",
        "snapshot_every=400",  # each takes as long as ten steps
        "num_workers=2",  # with one, steps of four trainings on an H100 took 0.4 s each
        "log_every=5",
    ],
    "frames": {},
    "speed": {  # {name: (recipe, settings, seconds)}
        "vit_large_batch4": ("vit_large_nyud_v2", ["batch_size=4"], 50),
        "vit_large_batch1": ("vit_large_nyud_v2", ["batch_size=1"], 40),
        "vit_base": ("vit_base_nyud_v2", ["batch_size=1"], 25),
        "vit_small": ("vit_base_nyud_v2", ["batch_size=1", f"model.backbone_config.model_name={VIT_SMALL}"], 25),
        "lite0": (RECIPE, ["batch_size=1", "input_size=[224, 288]"], 25),
    },
}
REHEARSAL = {
    "models": ["baseline", "sem"],
    "seeds": ["0"],
    "rows": [
        "input_size=[64, 96]",
        "batch_size=2",
        "max_steps=2",
        "save_every=2",
        "log_every=1",
        "num_evaluation_images=2",
    ],
    "frames": {"train": 8, "validation": 2},
    "speed": {"lite0": (RECIPE, ["batch_size=1", "input_size=[64, 96]"], 20)},
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
        self.started: dict[subprocess.Popen, tuple[str, float]] = {}
        output.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: list, **environment: str) -> subprocess.Popen:
        """Starts a command, whose output is added to a log: a step that is tried again keeps that of the first try."""
        with (self.output / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                list(map(str, command)),
                cwd=REPOSITORY,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self.started[process] = name, self.clock.spent
        return process

    def end(self, process: subprocess.Popen, limit: float) -> int | str:
        """Waits at most `limit` seconds for a command, and never past the end of the clock; notes and returns its status."""
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(min(limit, self.clock.left), 0))
        return self.stop([process])[0]

    def stop(self, processes: list[subprocess.Popen]) -> list[int | str]:
        """Asks commands to end, kills what is left of them and of what running ones started, and notes and returns their statuses."""
        statuses = [GIVEN_UP if process.poll() is None else process.returncode for process in processes]
        started = [child for process in processes for child in find_children(process)]
        stop_groups(processes, SECONDS_TO_STOP - 5)
        for child in started:  # a training has a process group of its own
            with suppress(psutil.NoSuchProcess):
                child.kill()
        for process, status in zip(processes, statuses, strict=True):
            self.note(process, status)
        return statuses

    def note(self, process: subprocess.Popen, status: int | str) -> None:
        """Writes the outcome of a command."""
        name, started = self.started[process]
        self.outcomes.append(
            {"step": name, "status": status, "started": started, "seconds": self.clock.spent - started}
        )
        (self.output / "steps.json").write_text(json.dumps(self.outcomes, indent=2) + "\n")
        print(f"{self.clock.spent:6.0f} s  {name}: {status}", flush=True)


def find_children(process: subprocess.Popen) -> list[psutil.Process]:
    """Returns the processes that a command has started, and those that they have."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


@contextmanager
def shared_gpu(folder: Path):
    """Lets kernels of several processes run at the same time, where the machine has CUDA's multi-process service (MPS).

    Yields:
        `dict[str, str]`: Environment of the processes; empty where the service is not there or does not work.
    """
    control = shutil.which("nvidia-cuda-mps-control") or "/usr/local/nvidia/bin/nvidia-cuda-mps-control"
    if not torch.cuda.is_available() or not Path(control).is_file():
        yield {}
        return
    pipes = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "mps"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "mps_log")}
    for path in pipes.values():
        Path(path).mkdir()
    environment = {**os.environ, **pipes}
    works = succeeds([control, "-d"], environment) and succeeds([sys.executable, "-c", USE_GPU], environment)
    try:
        yield pipes if works else {}
    finally:
        with suppress(subprocess.TimeoutExpired):  # then it ends with the machine
            subprocess.run([control], input="quit\n", text=True, env=environment, timeout=SECONDS_TO_QUIT, check=False)


def succeeds(command: list[str], environment: dict[str, str]) -> bool:
    """Runs a short command and returns whether it succeeds in time."""
    with suppress(subprocess.TimeoutExpired):
        run = subprocess.run(
            command, env=environment, stdout=subprocess.DEVNULL, timeout=SECONDS_TO_SHARE, check=False
        )
        return run.returncode == 0
    return False


def start_preparing(pack: Pack, pack_dir: Path, folder: Path, limits: dict[str, int]) -> subprocess.Popen:
    """Unpacks the frames, and starts to turn them into rows and to fit the constant predictor, which trainings start from."""
    processes = max(1, (os.cpu_count() or 1) - 4)
    frames.restore(pack_dir / "frames", folder / "NYUDv2", limits, processes)
    prepare = [*CLI, "prepare", "nyud_v2", folder / "NYUDv2", "--output", folder / "nyud_v2", "--processes", processes]
    fit = [sys.executable, "-c", FIT_CONSTANT, folder / "nyud_v2"]
    commands = (shlex.join(map(str, command)) for command in (prepare, fit))
    return pack.start("prepare", ["bash", "-c", " && ".join(commands)])


def start_seed(pack: Pack, plan: dict, folder: Path, seed: str, environment: dict[str, str]) -> subprocess.Popen:
    """Starts all trainings of a seed side by side."""
    command = [*CLI, "ablation", "table2", "--config", RECIPE, "--output", folder / "runs" / seed, "--seeds", seed]
    command += ["--results", pack.output / "rows", "--models", *plan["models"]]
    command += ["--jobs", len(plan["models"])]
    environment = {"OMP_NUM_THREADS": "1", **environment}  # there are as many trainings as cores
    return pack.start(
        f"rows_seed{seed}", [*command, f"data_dir={folder}/nyud_v2", "trackers=[]", *plan["rows"]], **environment
    )


def read_steps(folder: Path, seeds: Iterable[str]) -> list[int]:
    """Returns the last step of every training of some seeds that has begun."""
    histories = [path for seed in seeds for path in sorted(folder.glob(f"runs/{seed}/seed{seed}/*/history.jsonl"))]
    lines = [path.read_text().splitlines() for path in histories]
    return [json.loads(entries[-1])["step"] for entries in lines if entries]


def seconds_to_end(looks: Iterable[tuple[float, list[int]]], max_steps: int) -> float | None:
    """Returns how long several trainings on one GPU still take, from two looks at their steps; `None` while most stand still."""
    (before, first), (now, second) = looks
    rates = [(b - a) / (now - before) for a, b in zip(first, second, strict=True) if b < max_steps]
    if not rates:
        return 0.0
    return (max_steps - min(second)) / median(rates) if median(rates) > 0 else None


def run_rows(pack: Pack, plan: dict, folder: Path, environment: dict[str, str]) -> bool:
    """Trains all seeds side by side, and leaves no training behind.

    Returns:
        `bool`: whether all trainings of a seed ended without an error.
    """
    running = {seed: start_seed(pack, plan, folder, seed, environment) for seed in plan["seeds"]}
    try:
        return watch_rows(pack, plan, folder, running)
    finally:
        pack.stop([*running.values()])


def watch_rows(pack: Pack, plan: dict, folder: Path, running: dict[str, subprocess.Popen]) -> bool:
    """Waits for the trainings of all seeds, and gives up the last one whenever the rest would not end in time.

    Those that have ended are taken out of `running`.

    Returns:
        `bool`: whether all trainings of a seed ended without an error.
    """
    max_steps = next(int(text.split("=")[1]) for text in plan["rows"] if text.startswith("max_steps="))
    looks = deque(maxlen=2)  # (time, steps) of the same trainings
    succeeded = False
    while running and pack.clock.left > 0:
        time.sleep(1)
        ended = [seed for seed, process in running.items() if process.poll() is not None]
        if ended:
            looks.clear()
        succeeded |= 0 in pack.stop([running.pop(seed) for seed in ended])
        steps = read_steps(folder, running)
        if not running or len(steps) < len(plan["models"]) * len(running):  # some have not begun
            continue
        if not looks or time.time() > looks[-1][0] + SECONDS_TO_LOOK:
            looks.append((time.time(), steps))
        if len(looks) < 2:
            continue
        if (training := seconds_to_end(looks, max_steps)) is not None:
            needed = training + SECONDS_TO_EVALUATE * len(running)
            state = f"steps {steps}, {needed:.0f} s to go, {pack.clock.left:.0f} s left"
            print(f"{pack.clock.spent:6.0f} s  {state}", flush=True)
            if needed > pack.clock.left and len(running) > 1:
                pack.stop([running.popitem()[1]])
        looks.clear()
    return succeeded


def run_tests(pack: Pack) -> None:
    """Runs the tests that need a GPU."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-v",
        "tests/test_gpu.py",
        "tests/test_standard_pipelines.py",
    ]
    command += ["-n", str(min(6, os.cpu_count() or 1))]
    pack.end(pack.start("tests", [*command, "-p", "no:cacheprovider", f"--junitxml={pack.output}/tests.xml"]), 120)


def measure_speed(pack: Pack, name: str, recipe: str, settings: list[str], limit: float) -> None:
    """Times one model in every mode."""
    command = [*CLI, "benchmark", "modes", "--config", recipe, *settings, f"output_dir={pack.output}/speed/{name}"]
    pack.end(pack.start(name, command), limit)


def train_rows(pack: Pack, plan: dict, folder: Path) -> None:
    """Trains the rows of Table 2 on a shared GPU, and on one that takes turns if sharing fails."""
    try:
        with shared_gpu(folder) as environment:
            succeeded = run_rows(pack, plan, folder, environment)
        if not succeeded and environment and pack.clock.left > SECONDS_TO_TRAIN:
            run_rows(pack, plan, folder, {})
    finally:
        for path in (folder / "runs").glob("*/seed*/*/history.jsonl"):  # of trainings that did not end, too
            shutil.copy(path, pack.output / f"{path.parent.parent.name}_{path.parent.name}.jsonl")


def main() -> None:
    """Runs the steps in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--pack", type=Path, required=True, help="folder that build.py wrote")
    parser.add_argument("--start", type=float, default=time.time(), help="seconds since 1970 (default: now)")
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit (default: 9)")
    parser.add_argument("--rehearse", action="store_true", help="tiny numbers, on a CPU")
    parser.add_argument("--steps", nargs="+", choices=["tests", *FULL["speed"], "rows"], help="default: all")
    parsed = parser.parse_args()
    plan = REHEARSAL if parsed.rehearse else FULL
    output = parsed.output.resolve()
    pack = Pack(output, Clock(parsed.start, parsed.minutes))
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        preparing = start_preparing(pack, parsed.pack, folder, plan["frames"])
        steps = parsed.steps or ["tests", *plan["speed"], "rows"]
        if "tests" in steps:
            run_tests(pack)
        is_prepared = pack.end(preparing, pack.clock.left) == 0  # before anything is timed
        for step in steps:
            if step in plan["speed"]:
                measure_speed(pack, step, *plan["speed"][step])
        if "rows" in steps and is_prepared:
            train_rows(pack, plan, folder)
    print(f"{pack.clock.spent:6.0f} s  Written: {output}/")


if __name__ == "__main__":
    main()

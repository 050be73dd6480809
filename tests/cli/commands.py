"""Running the commands: in this process, or in others where they are killed or form ranks; a tiny model for all of them."""

import contextlib
import io
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections import namedtuple
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from transformers_sem.cli.main import main


SETTINGS = [
    "dataset_kwargs={num_train: 8, num_validation: 4, height: 32, width: 64}",
    "model={backbone_config: {model_name: test_convnext, out_indices: [1, 2, 3, 4], model_kwargs: {depths: [1, 1, 1, 1],"
    " dims: [8, 12, 16, 24]}}, hidden_size: 16, mlp_ratio: 2.0,"
    " num_attention_heads: 2, decoder_hidden_sizes: [16, 16, 8, 8], decoder_num_attention_heads: [2, 2, 1, 1],"
    " num_bases: 4, num_em_iterations: 2}",
    "input_size=[32, 64]",
    "batch_size=2",
    "max_steps=6",
    "save_every=2",
    "log_every=2",
    "snapshot_every=3",
    "num_snapshot_images=2",
    "keep_checkpoints=1",
    "num_workers=0",
]
TASKS = ["semseg", "depth", "normal", "boundary", "parsing", "saliency"]
MAIN_SCORES = [
    "semseg/miou",
    "depth/rmse",
    "normal/mean_error",
    "boundary/odsf",
    "parsing/miou",
    "saliency/maxf",
]

Result = namedtuple("Result", ["code", "output", "errors"])

# Importing the libraries takes seconds; the server of this context does it once and forks every process from there.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["transformers_sem.evaluation.evaluator"])


def run(command, *arguments):
    """Runs a command in this process."""
    arguments = [command, *map(str, arguments)]
    output, errors = io.StringIO(), io.StringIO()
    # pytest captures log records, which a process of its own would print
    handler = logging.StreamHandler(errors)
    handler.setLevel(logging.WARNING)
    code = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        patch.setattr(sys, "argv", ["transformers-sem", *arguments])
        logging.getLogger().addHandler(handler)
        handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            main(arguments)
        except SystemExit as error:
            code = error.code or 0
            if isinstance(code, str):  # as the interpreter does
                errors.write(f"{code}\n")
                code = 1
        finally:
            logging.getLogger().removeHandler(handler)
            for signum, before in handlers.items():
                signal.signal(signum, before)
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
    return Result(code, output.getvalue(), errors.getvalue())


def play(arguments, folder, environment):
    """Runs in another process what `transformers-sem` runs, and writes what it prints to files."""
    for stream in (sys.stdout, sys.stderr):
        file = os.open(Path(folder) / f"{stream.fileno()}.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(file, stream.fileno())
    os.environ.update(environment)
    sys.argv = ["transformers-sem", *arguments]
    main()


def start(command, arguments, folder, environment=None):
    """Starts a command in another process."""
    folder.mkdir(parents=True)
    arguments = [command, *map(str, arguments)]
    process = CONTEXT.Process(target=play, args=(arguments, folder, environment or {}))
    process.start()
    return process


def result_of(process, folder):
    process.join(timeout=240)
    return Result(process.exitcode, (folder / "1.txt").read_text(), (folder / "2.txt").read_text())


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start_ranks(command, arguments, folder, num_ranks=2):
    """Starts the processes that `torchrun --nproc_per_node 2` starts."""
    shared = {"WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks, "MASTER_ADDR": "localhost"}
    shared["MASTER_PORT"] = free_port()
    ranks = []
    for rank in range(num_ranks):
        environment = {key: str(value) for key, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        ranks.append(start(command, arguments, folder / str(rank), environment))
    return ranks


def run_ranks(command, arguments, folder, num_ranks=2):
    ranks = start_ranks(command, arguments, folder, num_ranks)
    return [result_of(process, folder / str(rank)) for rank, process in enumerate(ranks)]


def wait_for(path, process):
    while not path.exists():
        assert process.is_alive()
        time.sleep(0.005)


def is_alive(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def stop(processes):
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def stop_after(processes, seconds):
    """Waits for the end of processes, kills those that are alive after some seconds, and returns these."""
    deadline = time.monotonic() + seconds
    while (alive := [process for process in processes if is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    stop(alive)
    return alive


def error_line(result):
    """The line that a command prints when it refuses to start."""
    assert "Traceback" not in result.errors
    assert result.code == 1
    lines = [line for line in result.errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def read_report(path):
    report = json.loads(path.read_text())
    return report["scores"], report["constant_scores"], report["num_images"]


def read_table(path):
    return pq.read_table(path).to_pylist()


def save_image(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path

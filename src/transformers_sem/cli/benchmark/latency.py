"""Latency of one image in torch and in ONNX Runtime, on the CPU."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from tqdm.auto import tqdm

from ...modeling_sem import SEMForMultiTaskDensePrediction
from ...training.config import TrainingConfig, model_config, network_size
from ...utils.environment import environment
from ...utils.errors import describe_error
from ...utils.extras import require
from .timing import seconds


NUM_ROUNDS = 9
COMPILE_SECONDS = 300


def build_graphs(model: SEMForMultiTaskDensePrediction, image: torch.Tensor, folder: Path) -> dict[str, Callable]:
    """Exports the model for the size of one image, and returns its graphs with as many threads as torch has."""
    from ...export.folder import PRECISIONS, write_graphs
    from ...export.graph import Graph
    from ...export.precision import is_convolutional

    images = [image.numpy()] if is_convolutional(model) else None
    paths = write_graphs(model, folder, tuple(image.shape[-2:]), PRECISIONS, images, external_data=True)
    return {f"ONNX Runtime {name}": Graph(path, model.config, torch.get_num_threads()) for name, path in paths.items()}


@contextmanager
def time_limit(num_seconds: int) -> Iterator[None]:
    """Context that raises `TimeoutError` in the main thread when it takes longer. Windows has no such timer, and no limit."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_) -> None:
        raise TimeoutError(f"it takes more than {num_seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(num_seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@torch.no_grad()
def compile_model(model: SEMForMultiTaskDensePrediction, image: torch.Tensor) -> dict[str, Callable]:
    """Returns the compiled model by its name in the table. Where compiling fails or takes too long, prints why and returns none."""
    compiled = torch.compile(model)
    try:
        with time_limit(COMPILE_SECONDS):
            compiled(image)
    except Exception as error:  # the compiler wraps errors, also that of the time limit, in its own of several lines
        print(f"torch compiled is left out: {describe_error(error) or type(error).__name__}")
        return {}
    return {"torch compiled": compiled}


@torch.no_grad()
def time_in_turns(passes: dict[str, Callable], image: torch.Tensor) -> dict[str, list[float]]:
    """Returns the seconds of `NUM_ROUNDS` calls of each, after one that is not counted."""
    for run in passes.values():
        run(image)
    taken = {name: [] for name in passes}
    for _ in tqdm(range(NUM_ROUNDS), desc="rounds"):
        for name, run in passes.items():
            taken[name].append(seconds(run, image))
    return taken


def measure_latency(config: TrainingConfig) -> None:
    """Prints the median latency of torch, eager and compiled, and of the graphs."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "onnx")
    benchmark = config.get_benchmark()
    model = SEMForMultiTaskDensePrediction(model_config(config, benchmark)).eval()
    height, width = network_size(config)
    image = torch.randn(1, model.config.backbone_config.num_channels, height, width)
    passes = {"torch eager": model, **compile_model(model, image)}
    with TemporaryDirectory() as folder:
        taken = time_in_turns({**passes, **build_graphs(model, image, Path(folder))}, image)
    print(
        f"one image of {height} x {width}, {len(model.config.tasks)} tasks, {environment()['hardware']}, median of {NUM_ROUNDS}"
    )
    for name, times in taken.items():
        ratio = np.median(taken["torch eager"]) / np.median(times)
        print(f"{name:20}{1e3 * np.median(times):>10.1f} ms{ratio:>8.2f} times as fast as eager")

"""Speed and memory of the forward pass and of the training step, in every mode of the device."""

import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from ...hub.card import encoder_name
from ...training.accelerator import compiles_training
from ...training.config import TrainingConfig, network_size
from ...training.plan import random_batch
from ...utils.environment import environment
from ...utils.memory import peak_memory
from .timing import seconds
from .training_step import build_models


NUM_ROUNDS = 5
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
EAGER, GRAPH, CHANNELS_LAST, FLASH, COMPILED = MODES = (
    "eager",
    "CUDA graph",
    "channels last",
    "flash attention",
    "compiled",
)


def build_pass(
    module: torch.nn.Module, loss_of: Callable, batch: dict, precision: str, *, is_training: bool
) -> Callable:
    """Returns a function that runs one forward pass or one training step."""
    device = batch["pixel_values"].device.type
    optimizer = torch.optim.Adam(module.parameters(), 1e-5, fused=True) if is_training else None
    # without the cache of converted weights, a pass can be recorded as a CUDA graph
    autocast = torch.autocast(device, PRECISIONS[precision], enabled=precision != "fp32", cache_enabled=is_training)

    def forward() -> None:
        with torch.no_grad(), autocast:
            module(batch["pixel_values"])

    def learn() -> None:
        with autocast:
            loss = loss_of(module, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()

    return learn if is_training else forward


def record_graph(run: Callable) -> Callable:
    """Records a pass as a CUDA graph and returns its replay."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # as torch asks for: warm up on the stream of the recording
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return graph.replay


def measure_mode(
    side: tuple[torch.nn.Module, Callable], batch: dict, mode: str, precision: str, *, is_training: bool
) -> dict[str, float]:
    """Returns the time of the first and of later passes in milliseconds, and the peak memory on a GPU in gigabytes.

    The memory is that of the model and of its passes, without what other models hold. It is `None` on other devices.
    """
    module, loss_of = side
    device = batch["pixel_values"].device
    memory_format = torch.channels_last if mode == CHANNELS_LAST else torch.contiguous_format
    module.to(device, memory_format=memory_format).train(is_training)
    batch = {**batch, "pixel_values": batch["pixel_values"].contiguous(memory_format=memory_format)}
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    module.zero_grad()  # gradients that a pass left behind which failed
    others = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        tensors = [*module.parameters(), *module.buffers()]
        others = torch.cuda.memory_allocated() - sum(tensor.nbytes for tensor in tensors)
    called = module
    if mode == COMPILED:
        torch.compiler.reset()  # otherwise those after the eighth, of all models, would run eagerly
        called = torch.compile(module)
    run = build_pass(called, loss_of, batch, precision, is_training=is_training)
    kernels = [SDPBackend.FLASH_ATTENTION] if mode == FLASH else [*SDPBackend.__members__.values()]
    with sdpa_kernel(kernels):
        first = seconds(lambda: (run(), wait()))
        if mode == GRAPH:
            run = record_graph(run)
        run()
        wait()
        taken = [seconds(lambda: (run(), wait())) for _ in range(NUM_ROUNDS)]
    return {
        "first_milliseconds": 1e3 * first,
        "milliseconds": 1e3 * float(np.median(taken)),
        "memory_gigabytes": (peak_memory(device) - others) / 1e9 if device.type == "cuda" else None,
    }


def format_memory(gigabytes: float | None) -> str:
    """Formats the memory of a mode; nothing where it is unknown."""
    return "" if gigabytes is None else f"{gigabytes:8.2f} GB"


def plan_modes(has_cuda: bool) -> Iterator[tuple[str, str, str, bool]]:
    """Yields model, mode, precision and whether it trains; first forward passes, last what takes long to compile."""
    precisions = ["bf16", "fp32"] if has_cuda else ["fp32"]
    plans = product(MODES, precisions, (False, True), ("SEM", "MTL", "encoder"))
    for mode, precision, is_training, model in sorted(plans, key=lambda plan: (plan[0] == COMPILED, plan[2])):
        if mode in (FLASH, GRAPH) and not has_cuda:
            continue
        if mode == FLASH and precision == "fp32":  # it has no such kernel
            continue
        if mode == GRAPH and is_training:  # clipping waits for the device
            continue
        if mode == COMPILED and is_training and not compiles_training():
            continue
        yield model, mode, precision, is_training


def measure_modes(config: TrainingConfig) -> None:
    """Times every mode, and writes each result to `output_dir`/modes.jsonl the moment it is there."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    with torch.device(device):  # which draws the weights of a large model much faster than a CPU
        sides = build_models(config)
    batch = send_to_device(random_batch(config, sides["SEM"][0].config, config.batch_size), device)
    path = Path(config.output_dir) / "modes.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "encoder": encoder_name(sides["SEM"][0].config),
        "input": list(network_size(config)),
        "batch_size": config.batch_size,
    }
    for model, mode, precision, is_training in tqdm(list(plan_modes(device.type == "cuda")), desc="modes"):
        entry = {
            **facts,
            "model": model,
            "pass": "training step" if is_training else "forward",
            "precision": precision,
            "mode": mode,
        }
        try:
            entry |= measure_mode(sides[model], batch, mode, precision, is_training=is_training)
        except RuntimeError as error:  # the device lacks the mode or the memory
            entry["error"] = str(error).splitlines()[0]
        entry["images_per_second"] = entry.get("milliseconds") and 1e3 * config.batch_size / entry["milliseconds"]
        entry["environment"] = environment()
        with path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        tqdm.write(
            f"{model:8}{entry['pass']:15}{precision:6}{mode:23}"
            + (entry.get("error") or f"{entry['milliseconds']:9.1f} ms{format_memory(entry['memory_gigabytes'])}")
        )
    print(f"Written: {path}")

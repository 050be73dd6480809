"""Measure what SEM costs.

    python scripts/benchmark.py cost [--config scripts/configs/vit_large_nyud_v2.yaml]
    python scripts/benchmark.py boundary
    python scripts/benchmark.py metrics [--config scripts/configs/swin_tiny_nyud_v2.yaml]

`cost` counts parameters and multiply-accumulates of one image, encoder and everything that SEM adds, attention counted the
same way on both sides. It needs no memory to speak of: the model is built without weights.
`boundary` times the boundary measure on made-up images of 480 x 640, stage by stage, and on one process and two.
`metrics` times all other metrics of one image against the forward pass of a model with random weights, on the CPU.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from transformers_sem import TASKS, SEMConfig, SEMForMultiTaskDensePrediction
from transformers_sem import boundary as measure
from transformers_sem.boundary_files import process_pool
from transformers_sem.data import get_benchmark
from transformers_sem.data.transforms import row_to_tensors
from transformers_sem.training.configuration import TrainingConfig, plain_errors


NYUD_MAX_DISTANCE = 0.011


def count_multiply_accumulates(function, *inputs: torch.Tensor) -> float:
    """In billions; torch counts a multiplication and an addition as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*inputs)
    return counter.get_total_flops() / 2e9


def cost(config: TrainingConfig) -> None:
    """Prints a table of encoder, the rest, and both."""
    with torch.device("meta"):
        model = SEMForMultiTaskDensePrediction(SEMConfig(**config.model)).eval()
        image = torch.empty(1, 3, *config.input_size)
    model.set_attn_implementation("eager")  # torch counts fused attention in another way
    encoder = model.sem.backbone
    for module in encoder.modules():
        if hasattr(module, "fused_attn"):  # timm's switch for the same
            module.fused_attn = False
    parameters = encoder.num_parameters() / 1e6, model.num_parameters() / 1e6
    operations = count_multiply_accumulates(encoder, image), count_multiply_accumulates(model, image)
    height, width = config.input_size
    print(f"torch {torch.__version__}, one image of {height} x {width}, tasks {', '.join(model.config.tasks)}")
    print(f"{'':12}{'M parameters':>14}{'GMAC':>10}")
    for name, count, cost in zip(("encoder", "all"), parameters, operations, strict=True):
        print(f"{name:12}{count:>14.1f}{cost:>10.1f}")
    print(f"what SEM adds costs {operations[1] / operations[0] - 1:.3f} of the encoder's multiply-accumulates")


def made_up_image(seed: int, height: int = 480, width: int = 640) -> tuple[np.ndarray, np.ndarray]:
    """A map of 40 regions, and a prediction of their boundaries as a network would make it: blurred, shifted and noisy."""
    random = np.random.default_rng(seed)
    pixels = np.stack(np.indices((height, width)), axis=-1).reshape(-1, 2)
    regions = cKDTree(random.uniform(0, (height, width), (40, 2))).query(pixels)[1].reshape(height, width)
    boundaries = measure.find_boundaries(np.roll(regions, random.integers(-3, 4, 2), axis=(0, 1)), regions >= 0)
    strength = (
        4 * gaussian_filter(boundaries.astype(float), 2) + 2 * gaussian_filter(random.random((height, width)), 2) - 0.9
    )
    return strength.clip(0, 1), regions


def seconds(function: Callable, *inputs) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function(*inputs)
    return time.perf_counter() - start


def peak_megabytes(_: int) -> float:
    """Of the process that runs this, on Linux; `getrusage` would count what its parent had before it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), float("nan"))


def time_pool(num_processes: int, images: list) -> tuple[float, float]:
    """Seconds for all images, and the peak memory of a process, start of the processes not counted."""
    predictions, labels = zip(*images, strict=True)
    distances = [NYUD_MAX_DISTANCE] * len(images)
    with process_pool(num_processes) as pool:
        list(pool.map(measure.boundary_counts, predictions[:num_processes], labels, distances))
        taken = seconds(lambda: list(pool.map(measure.boundary_counts, predictions, labels, distances)))
        return taken, max(pool.map(peak_megabytes, range(8 * num_processes)))


def boundary(config: TrainingConfig) -> None:
    """Prints seconds per image, in all and by stage, and what a second process brings."""
    images = [made_up_image(seed) for seed in tqdm(range(16), desc="images")]
    totals, stages = [], []
    for prediction, label in tqdm(images, desc="one process"):
        totals.append(seconds(measure.boundary_counts, prediction, label, NYUD_MAX_DISTANCE))
        levels = measure.to_levels(prediction)
        words = measure.threshold_words(measure.suppress_non_maxima(levels))
        stages.append(
            (
                seconds(measure.suppress_non_maxima, levels),
                seconds(lambda words=words: [measure.thin(word) for word in words]),
            )
        )
    suppression, thinning = np.mean(stages, axis=0)
    mean = np.mean(totals)
    print(f"16 images of 480 x 640, 101 thresholds, max_distance {NYUD_MAX_DISTANCE}, one process:")
    print(
        f"{mean:.3f} s per image, at most {max(totals):.3f} s: non-maximum suppression {suppression:.3f} s, thinning"
    )
    print(f"{thinning:.3f} s, the rest, most of it matching, {mean - suppression - thinning:.3f} s")
    (one, memory), (two, _) = time_pool(1, images), time_pool(2, images)
    print(
        f"a pool of one process {one:.1f} s, of two {two:.1f} s: {one / two:.2f} times as fast; {memory:.0f} MB each at most"
    )


def metrics(config: TrainingConfig) -> None:
    """Prints the time of the quick metrics of all tasks, and its share of a forward pass."""
    height, width = config.input_size
    rows = get_benchmark("scenes").load(height=height, width=width, num_train=1, num_validation=1)["validation"]
    specs = {task: spec for task, spec in TASKS.items() if spec.metric and not spec.metric.is_slow}
    _, labels = row_to_tensors(rows[0], specs)
    labels = {task: label.as_subclass(torch.Tensor) for task, label in labels.items()}
    maps = {task: spec.post_process(torch.randn(1, spec.num_labels, height, width))[0] for task, spec in specs.items()}
    model = SEMForMultiTaskDensePrediction(SEMConfig(**config.model)).eval()
    image = torch.randn(1, 3, height, width)
    with torch.no_grad():
        forward = min(seconds(model, image) for _ in tqdm(range(5), desc="forward passes"))
    print(f"one image of {height} x {width}, {torch.get_num_threads()} threads; forward pass {forward:.3f} s")
    total = 0.0
    for task, spec in specs.items():
        taken = min(seconds(spec.metric.statistics, maps[task], labels[task], spec.num_labels) for _ in range(10))
        total += taken
        print(f"{task:12}{taken:8.4f} s, {taken / forward:7.2%} of the forward pass")
    print(f"{'all':12}{total:8.4f} s, {total / forward:7.2%} of the forward pass")


MEASUREMENTS = {
    function.__name__: (function, config)
    for function, config in (
        (cost, "scripts/configs/vit_large_nyud_v2.yaml"),
        (boundary, "scripts/configs/vit_large_nyud_v2.yaml"),
        (metrics, "scripts/configs/swin_tiny_nyud_v2.yaml"),
    )
}


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", choices=MEASUREMENTS)
    parser.add_argument("--config", help="settings of a training run (default: those above)")
    arguments = parser.parse_args()
    function, config = MEASUREMENTS[arguments.measurement]
    with plain_errors():
        function(TrainingConfig.load(arguments.config or config))


if __name__ == "__main__":
    main()

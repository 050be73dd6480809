"""Measure what SEM costs.

    python scripts/benchmark.py cost [--config scripts/configs/vit_large_nyud_v2.yaml]
    python scripts/benchmark.py boundary
    python scripts/benchmark.py metrics [--config scripts/configs/swin_tiny_nyud_v2.yaml]
    python scripts/benchmark.py data [--config scripts/configs/vit_base_nyud_v2.yaml]
    python scripts/benchmark.py train [--config scripts/configs/swin_tiny_nyud_v2.yaml] [key=value ...]

`cost` counts parameters and multiply-accumulates of one image, encoder and everything that SEM adds, attention counted the
same way on both sides. It needs no memory to speak of: the model is built without weights.
`boundary` times the boundary measure on made-up images of 480 x 640, stage by stage, and on one process and two.
`metrics` times all other metrics of one image against the forward pass of a model with random weights, on the CPU.
`data` times the training loader over prepared NYU-Depth v2 against the same loader over its files, read with PIL and numpy,
on made-up frames; and says how much of the training steps on a GPU this would feed.
`train` times the training step of SEM against those of the MTL baseline and of the bare encoder, in turns on one made-up
batch, on the GPU where there is one. Settings such as batch_size=2 or mixed_precision=bf16 replace those of the configuration.
"""

import argparse
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from tqdm.auto import tqdm

from transformers_sem import TASKS, SEMConfig, SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.ablation.cost import build_without_weights, count_multiply_accumulates
from transformers_sem.data import nyud_v2
from transformers_sem.data.benchmarks import get_benchmark
from transformers_sem.data.prepare import prepare
from transformers_sem.data.row_format import encode_row
from transformers_sem.data.scenes import render_scene
from transformers_sem.data.sources import Frame
from transformers_sem.data.transforms import TrainingAugmentation, TransformedDataset, row_to_tensors
from transformers_sem.evaluation import boundary as measure
from transformers_sem.evaluation.metrics import METRICS
from transformers_sem.training.config import TrainingConfig, network_size
from transformers_sem.training.data_order import build_train_loader
from transformers_sem.training.plan import random_batch
from transformers_sem.utils.environment import environment
from transformers_sem.utils.errors import plain_errors
from transformers_sem.utils.processes import process_pool


NYUD_MAX_DISTANCE = 0.011
NUM_FRAMES, NUM_ROWS, NUM_ROUNDS = 24, 48, 7
# What a training step sustains: 40 % of the 312e12 that an A100 can do in bf16. An assumption, not a measurement.
ASSUMED_FLOPS_PER_SECOND = 125e12


def cost(config: TrainingConfig) -> None:
    """Prints a table of encoder, the rest, and both."""
    model, image = build_without_weights(SEMConfig(**config.model), network_size(config))
    encoder = model.sem.backbone
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
    specs = {task: spec for task, spec in TASKS.items() if not METRICS[task].is_slow}
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
        taken = min(seconds(METRICS[task].statistics, maps[task], labels[task], spec.num_labels) for _ in range(10))
        total += taken
        print(f"{task:12}{taken:8.4f} s, {taken / forward:7.2%} of the forward pass")
    print(f"{'all':12}{total:8.4f} s, {total / forward:7.2%} of the forward pass")


def write_frame(root: Path, seed: int, height: int, width: int) -> None:
    """Renders a room, and writes it as a frame of the folder `NYUDv2`, whose classes are 1..40."""
    scene = render_scene(seed, height, width)
    for column in nyud_v2.CLASS_NAMES:
        scene[column] += 1
    pictures = encode_row({column: scene[column] for column in nyud_v2.FILES})
    for column, patterns in nyud_v2.FILES.items():
        path = root / patterns[0].format(seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, scene[column])
        else:
            pictures[column].save(path)


def write_frames(root: Path, num_frames: int, height: int = 425, width: int = 560) -> Path:
    """Writes a folder `NYUDv2` of made-up frames to train on, and one to validate."""
    for seed in tqdm(range(num_frames + 1), desc="frames"):
        write_frame(root, seed, height, width)
    seeds = {"train": range(num_frames), "validation": [num_frames]}
    for split, path in nyud_v2.LISTS.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text("\n".join(map(str, seeds[split])))
    return root


def read_raw(column: str, path: str) -> Image.Image | np.ndarray:
    """Decodes a file for `row_to_tensors`; unchecked, unlike what prepares the data."""
    if path.endswith(".npy"):
        metres = np.load(path)
        return np.where(metres > 0, metres, np.nan)
    with Image.open(path) as picture:
        picture.load()
    # in 8 bits, 0 - 1 is 255, unlabelled
    return np.asarray(picture) - np.uint8(1) if column in nyud_v2.CLASS_NAMES else picture


class RawRows:
    """Rows of a folder `NYUDv2`, each read from its files."""

    def __init__(self, frames: list[Frame]) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {column: read_raw(column, self.frames[index][column]) for column in nyud_v2.FILES}


def both_rows(root: Path, output: Path) -> tuple[datasets.Dataset, RawRows]:
    """Prepares a folder `NYUDv2`; returns its training rows as prepared, and as files."""
    source = nyud_v2.find_source(root)
    prepare(source, output, num_processes=1)
    return get_benchmark("nyud_v2").load(str(output))["train"], RawRows(source.frames["train"])


def transform(rows: datasets.Dataset | RawRows, config: TrainingConfig) -> TransformedDataset:
    """What a training run makes of rows."""
    size = dict(zip(("height", "width"), config.input_size, strict=True))
    processor = SEMImageProcessor(size=size, pad_size=size, do_resize=False, do_pad=True)
    augmentation = TrainingAugmentation(tuple(config.input_size), zoom=tuple(config.zoom))
    tasks = [column for column in nyud_v2.FILES if column in TASKS]
    return TransformedDataset(rows, tasks, processor, augmentation)


def compare(sides: list[Callable[[], None]], num_rows: int, name: str) -> float:
    """Prints rows per second of the prepared and the raw side, in turns, medians; returns that of the prepared side."""
    for side in sides:
        side()  # the files come to memory, the workers start
    rates = []
    for index in tqdm(range(NUM_ROUNDS), desc=name):
        order = (0, 1) if index % 2 else (1, 0)
        taken = {side: seconds(sides[side]) for side in order}
        rates.append((num_rows / taken[0], num_rows / taken[1]))
    prepared, raw = np.transpose(rates)
    ratios = prepared / raw
    print(
        f"{name:20}{np.median(prepared):>10.1f}{np.median(raw):>10.1f}{np.median(ratios):>8.2f}  "
        f"({ratios.min():.2f} to {ratios.max():.2f})"
    )
    return float(np.median(prepared))


def compare_loading(sides: list[TransformedDataset], config: TrainingConfig, num_workers: int) -> float:
    """`compare` of training loaders, whose workers stay between passes."""
    loaders = [
        build_train_loader(
            side,
            batch_size=config.batch_size,
            first_sample=0,
            num_samples=NUM_ROWS,
            seed=config.seed,
            num_workers=num_workers,
        )
        for side in sides
    ]
    passes = [lambda loader=loader: deque(loader, maxlen=0) for loader in loaders]
    return compare(passes, NUM_ROWS, f"loader, workers {num_workers}")


def print_share(config: TrainingConfig, rate: float) -> None:
    """Prints which part of a training step on a GPU two workers feed."""
    operations = count_multiply_accumulates(*build_without_weights(SEMConfig(**config.model), network_size(config)))
    teraflops = 3 * 2 * operations / 1e3  # a backward pass costs two forward passes
    sustained = ASSUMED_FLOPS_PER_SECOND / 1e12
    needed = sustained / teraflops
    print(f"training {Path(config.output_dir).name}: 3 x 2 x {operations:.1f} GMAC = {teraflops:.3f} TFLOP for a row")
    print(f"a GPU that sustains {sustained:.0f} TFLOP/s (assumed, not measured: 40 % of an A100's 312 in bf16)")
    print(
        f"needs {needed:.0f} rows/s; 2 workers give {rate:.1f}, {rate / needed:.1%} of it; "
        f"{math.ceil(2 * needed / rate)} workers, a core each, would feed it"
    )


def data(config: TrainingConfig) -> None:
    """Prints rows per second of prepared and of raw data, and the part of a training step on a GPU that they feed."""
    with TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        rows = both_rows(write_frames(Path(folder) / "NYUDv2", NUM_FRAMES), Path(folder) / "prepared")
        height, width = config.input_size
        print(
            f"{NUM_FRAMES} made-up frames, crops of {height} x {width}, batches of {config.batch_size}, {NUM_ROUNDS} rounds"
        )
        print(f"{'rows/s':20}{'prepared':>10}{'raw':>10}{'ratio':>8}")
        compare(
            [lambda side=side: [side[index] for index in range(len(side))] for side in rows],
            NUM_FRAMES,
            "decoding alone",
        )
        sides = [transform(side, config) for side in rows]
        compare_loading(sides, config, num_workers=1)
        print_share(config, compare_loading(sides, config, num_workers=2))


def encoder_loss(encoder: torch.nn.Module, batch: dict) -> torch.Tensor:
    """Something to differentiate by all that the encoder computes."""
    return sum(feature_map.float().square().mean() for feature_map in encoder(batch["pixel_values"]).feature_maps)


def model_loss(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    """What a training run differentiates."""
    return model(**batch).loss


def build_step(
    config: TrainingConfig, model: torch.nn.Module, loss_of: Callable, batch: dict, accelerator: Accelerator
) -> Callable[[], float]:
    """A training step on always the same batch: forward, backward, clip, Adam; it returns when the device is done."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model, optimizer = accelerator.prepare(
        model.train(), torch.optim.Adam(parameters, config.learning_rate, weight_decay=config.weight_decay)
    )

    def step() -> float:
        loss = loss_of(model, batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()  # waits for all that a GPU still has to do

    return step


def train(config: TrainingConfig) -> None:
    """Prints images per second of the training steps, and how many times as long as the others SEM's takes."""
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=config.mixed_precision)
    model, baseline = (
        SEMForMultiTaskDensePrediction(SEMConfig(**{**config.model, **changes}))
        for changes in ({}, {"use_decoder": False})
    )
    batch = send_to_device(random_batch(config, model.config, config.batch_size), accelerator.device)
    encoder = SEMForMultiTaskDensePrediction(SEMConfig(**config.model)).sem.backbone
    sides = {
        "SEM": build_step(config, model, model_loss, batch, accelerator),
        "MTL": build_step(config, baseline, model_loss, batch, accelerator),
        "encoder": build_step(config, encoder, encoder_loss, batch, accelerator),
    }
    for step in sides.values():
        step()  # kernels are chosen, the optimiser makes its buffers
    taken = {name: [] for name in sides}
    for index in tqdm(range(NUM_ROUNDS), desc="rounds"):
        names = [*sides][index % len(sides) :] + [*sides][: index % len(sides)]
        for name in names:
            taken[name].append(seconds(sides[name]))
    size = " x ".join(map(str, network_size(config)))
    hardware = environment()["hardware"]
    print(
        f"batches of {config.batch_size} at {size}, precision {config.mixed_precision}, {NUM_ROUNDS} rounds, {hardware}"
    )
    print(f"{'step':10}{'images/s':>10}   SEM takes")
    for name in sides:
        ratios = np.divide(taken["SEM"], taken[name])
        print(
            f"{name:10}{config.batch_size / np.median(taken[name]):>10.2f}{np.median(ratios):>8.2f} times as long "
            f"({ratios.min():.2f} to {ratios.max():.2f})"
        )


MEASUREMENTS = {
    function.__name__: (function, config)
    for function, config in (
        (cost, "scripts/configs/vit_large_nyud_v2.yaml"),
        (boundary, "scripts/configs/vit_large_nyud_v2.yaml"),
        (metrics, "scripts/configs/swin_tiny_nyud_v2.yaml"),
        (data, "scripts/configs/vit_base_nyud_v2.yaml"),
        (train, "scripts/configs/swin_tiny_nyud_v2.yaml"),
    )
}


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", choices=MEASUREMENTS)
    parser.add_argument("--config", help="settings of a training run (default: those above)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, for example batch_size=2")
    arguments = parser.parse_intermixed_args()
    function, config = MEASUREMENTS[arguments.measurement]
    with plain_errors():
        function(TrainingConfig.load(arguments.config or config, arguments.overrides))


if __name__ == "__main__":
    main()

"""Rate of the training loader over prepared rows and over original files."""

import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ...ablation.cost import build_without_weights, count_multiply_accumulates
from ...data import nyud_v2
from ...data.benchmarks import get_benchmark
from ...data.prepare import prepare
from ...data.row_format import encode_row
from ...data.scenes import render_scene
from ...data.sources import Frame
from ...data.transforms import TrainingAugmentation, TransformedDataset
from ...image_processing_sem import SEMImageProcessor
from ...tasks import TASKS
from ...training.config import TrainingConfig, model_config, network_size
from ...training.data_order import build_train_loader
from .timing import seconds


NUM_FRAMES, NUM_ROWS, NUM_ROUNDS = 24, 48, 7
# Sustained rate of a training step: 40 % of the 312e12 that an A100 reaches in bf16. An assumption, not a measurement.
ASSUMED_FLOPS_PER_SECOND = 125e12


def write_frame(root: Path, seed: int, height: int, width: int) -> None:
    """Renders a room and writes it in the form of the folder `NYUDv2`, whose classes are 1..40."""
    scene = render_scene(seed, height, width)
    for column in nyud_v2.CLASS_NAMES:
        scene[column] += 1
    images = encode_row({column: scene[column] for column in nyud_v2.FILES})
    for column, patterns in nyud_v2.FILES.items():
        path = root / patterns[0].format(seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, scene[column])
        else:
            images[column].save(path)


def write_frames(root: Path, num_frames: int, height: int = 425, width: int = 560) -> Path:
    """Writes a folder `NYUDv2` of rendered rooms for training, and one for validation."""
    for seed in tqdm(range(num_frames + 1), desc="frames"):
        write_frame(root, seed, height, width)
    seeds = {"train": range(num_frames), "validation": [num_frames]}
    for split, path in nyud_v2.LISTS.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text("\n".join(map(str, seeds[split])))
    return root


def read_raw(column: str, path: str) -> Image.Image | np.ndarray:
    """Decodes a file for `row_to_tensors`, without the checks of `transformers-sem prepare`."""
    if path.endswith(".npy"):
        metres = np.load(path)
        return np.where(metres > 0, metres, np.nan)
    with Image.open(path) as image:
        image.load()
    # in 8 bits, 0 - 1 is 255, unlabeled
    return np.asarray(image) - np.uint8(1) if column in nyud_v2.CLASS_NAMES else image


class RawRows:
    """The rows of a folder `NYUDv2`, each read from its files."""

    def __init__(self, frames: list[Frame]) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {column: read_raw(column, self.frames[index][column]) for column in nyud_v2.FILES}


def both_rows(root: Path, output: Path) -> tuple[datasets.Dataset, RawRows]:
    """Prepares a folder `NYUDv2`; returns its training rows, prepared and from their files."""
    source = nyud_v2.find_source(root)
    prepare(source, output, num_processes=1)
    return get_benchmark("nyud_v2").load(str(output))["train"], RawRows(source.frames["train"])


def transform_rows(rows: datasets.Dataset | RawRows, config: TrainingConfig) -> TransformedDataset:
    """Returns the dataset that a training run makes of the rows."""
    size = dict(zip(("height", "width"), config.input_size, strict=True))
    processor = SEMImageProcessor(size=size, pad_size=size, do_resize=False, do_pad=True)
    augmentation = TrainingAugmentation(tuple(config.input_size), zoom=tuple(config.zoom))
    tasks = [column for column in nyud_v2.FILES if column in TASKS]
    return TransformedDataset(rows, tasks, processor, augmentation)


def compare(sides: list[Callable[[], None]], num_rows: int, name: str) -> float:
    """Runs both sides in turns, and prints the median rows per second of each.

    Args:
        sides (`list[Callable]`): One pass over the prepared rows, and one over the files.
        num_rows (`int`): Rows of a pass.
        name (`str`): First column of the printed line.

    Returns:
        `float`: the rate of the prepared rows.
    """
    for side in sides:
        side()  # warm up: files are read into memory, workers start
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
    """Compares two training loaders, whose workers live from pass to pass."""
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
    """Prints which part of the rate of training on a GPU two workers reach."""
    benchmark = get_benchmark(config.dataset, config.data_dir, config.dataset_kwargs)
    operations = count_multiply_accumulates(
        *build_without_weights(model_config(config, benchmark), network_size(config))
    )
    teraflops = 3 * 2 * operations / 1e3  # a backward pass costs two forward passes
    sustained = ASSUMED_FLOPS_PER_SECOND / 1e12
    needed = sustained / teraflops
    print(f"training {Path(config.output_dir).name}: 3 x 2 x {operations:.1f} GMAC = {teraflops:.3f} TFLOP for a row")
    print(f"a GPU that sustains {sustained:.0f} TFLOP/s (assumed, not measured: 40 % of an A100's 312 in bf16)")
    print(
        f"needs {needed:.0f} rows/s; 2 workers give {rate:.1f}, {rate / needed:.1%} of it; "
        f"{math.ceil(2 * needed / rate)} workers, a core each, would feed it"
    )


def measure_loading(config: TrainingConfig) -> None:
    """Prints rows per second of prepared and of raw data, and the share of the rate that training on a GPU needs."""
    with TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        rows = both_rows(write_frames(Path(folder) / "NYUDv2", NUM_FRAMES), Path(folder) / "prepared")
        height, width = config.input_size
        print(
            f"{NUM_FRAMES} rendered images, crops of {height} x {width}, batches of {config.batch_size}, {NUM_ROUNDS} rounds"
        )
        print(f"{'rows/s':20}{'prepared':>10}{'raw':>10}{'ratio':>8}")
        compare(
            [lambda side=side: [side[index] for index in range(len(side))] for side in rows],
            NUM_FRAMES,
            "decoding alone",
        )
        sides = [transform_rows(side, config) for side in rows]
        compare_loading(sides, config, num_workers=1)
        print_share(config, compare_loading(sides, config, num_workers=2))

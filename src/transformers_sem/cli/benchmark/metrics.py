"""Time of the metrics."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from tqdm.auto import tqdm

from ...data.benchmarks import get_benchmark
from ...data.transforms import row_to_tensors
from ...evaluation import boundary as measure
from ...evaluation.metrics import METRICS
from ...modeling_sem import SEMForMultiTaskDensePrediction
from ...tasks import TASKS
from ...training.config import TrainingConfig, model_config
from ...utils.processes import process_pool
from .timing import peak_megabytes, seconds


NYUD_MAX_DISTANCE = 0.011
NUM_IMAGES = 16


def random_image(seed: int, height: int = 480, width: int = 640) -> tuple[np.ndarray, np.ndarray]:
    """Returns a boundary prediction and a map of 40 regions; the prediction is blurred, shifted and noisy."""
    random = np.random.default_rng(seed)
    pixels = np.stack(np.indices((height, width)), axis=-1).reshape(-1, 2)
    regions = cKDTree(random.uniform(0, (height, width), (40, 2))).query(pixels)[1].reshape(height, width)
    boundaries = measure.find_boundaries(np.roll(regions, random.integers(-3, 4, 2), axis=(0, 1)), regions >= 0)
    strength = (
        4 * gaussian_filter(boundaries.astype(float), 2) + 2 * gaussian_filter(random.random((height, width)), 2) - 0.9
    )
    return strength.clip(0, 1), regions


def time_pool(num_processes: int, images: list) -> tuple[float, float]:
    """Returns the seconds for all images without the start of the processes, and the peak memory of a process."""
    predictions, labels = zip(*images, strict=True)
    distances = [NYUD_MAX_DISTANCE] * len(images)
    with process_pool(num_processes) as pool:
        list(pool.map(measure.boundary_counts, predictions[:num_processes], labels, distances))
        taken = seconds(lambda: list(pool.map(measure.boundary_counts, predictions, labels, distances)))
        return taken, max(pool.map(peak_megabytes, range(8 * num_processes)))


def measure_boundaries(_: TrainingConfig) -> None:
    """Prints seconds per image, in total and by stage, and the gain from a second process."""
    images = [random_image(seed) for seed in tqdm(range(NUM_IMAGES), desc="images")]
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
    print(f"{NUM_IMAGES} images of 480 x 640, 101 thresholds, max_distance {NYUD_MAX_DISTANCE}, one process:")
    print(
        f"{mean:.3f} s per image, at most {max(totals):.3f} s: non-maximum suppression {suppression:.3f} s, thinning"
    )
    print(f"{thinning:.3f} s, the rest, most of it matching, {mean - suppression - thinning:.3f} s")
    (one, memory), (two, _) = time_pool(1, images), time_pool(2, images)
    print(
        f"a pool of one process {one:.1f} s, of two {two:.1f} s: {one / two:.2f} times as fast; {memory:.0f} MB each at most"
    )


def measure_metrics(config: TrainingConfig) -> None:
    """Prints the time of the fast metrics of all tasks, and its share of a forward pass."""
    height, width = config.input_size
    rows = get_benchmark("scenes").load(height=height, width=width, num_train=1, num_validation=1)["validation"]
    specs = {task: TASKS[task] for task, metric in METRICS.items() if not metric.is_slow}
    _, labels = row_to_tensors(rows[0], specs)
    maps = {task: spec.kind.predict(torch.randn(1, spec.num_labels, height, width))[0] for task, spec in specs.items()}
    benchmark = get_benchmark(config.dataset, config.data_dir, config.dataset_kwargs)
    model = SEMForMultiTaskDensePrediction(model_config(config, benchmark)).eval()
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

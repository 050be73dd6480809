"""Parameters and multiply-accumulates of a model."""

import torch

from ...ablation.cost import build_without_weights, count_multiply_accumulates
from ...data.benchmarks import get_benchmark
from ...training.config import TrainingConfig, model_config, network_size


def measure_cost(config: TrainingConfig) -> None:
    """Prints the cost of the encoder and of the whole model."""
    benchmark = get_benchmark(config.dataset, config.data_dir, config.dataset_kwargs)
    height, width = network_size(config)
    model, image = build_without_weights(model_config(config, benchmark), (height, width))
    encoder = model.sem.backbone
    parameters = encoder.num_parameters() / 1e6, model.num_parameters() / 1e6
    operations = count_multiply_accumulates(encoder, image), count_multiply_accumulates(model, image)
    print(f"torch {torch.__version__}, one image of {height} x {width}, tasks {', '.join(model.config.tasks)}")
    print(f"{'':12}{'M parameters':>14}{'GMAC':>10}")
    for name, count, cost in zip(("encoder", "all"), parameters, operations, strict=True):
        print(f"{name:12}{count:>14.1f}{cost:>10.1f}")
    print(f"what SEM adds costs {operations[1] / operations[0] - 1:.3f} of the encoder's multiply-accumulates")

"""Measure what SEM costs.

    python scripts/benchmark.py cost [--config scripts/configs/vit_large_nyud_v2.yaml]

`cost` counts parameters and multiply-accumulates of one image, encoder and everything that SEM adds, attention counted the
same way on both sides. It needs no memory to speak of: the model is built without weights.
"""

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode

from transformers_sem import SEMConfig, SEMForMultiTaskDensePrediction
from transformers_sem.training.configuration import TrainingConfig, plain_errors


def count_multiply_accumulates(function, *inputs: torch.Tensor) -> float:
    """In billions; torch counts a multiplication and an addition as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*inputs)
    return counter.get_total_flops() / 2e9


def report_cost(config: TrainingConfig) -> None:
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


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", choices=["cost"])
    parser.add_argument(
        "--config", default="scripts/configs/vit_large_nyud_v2.yaml", help="settings of a training run"
    )
    arguments = parser.parse_args()
    with plain_errors():
        report_cost(TrainingConfig.load(arguments.config))


if __name__ == "__main__":
    main()

"""Measure the speed and the cost of SEM.

    transformers-sem benchmark cost [--config vit_large_nyud_v2]
    transformers-sem benchmark boundaries
    transformers-sem benchmark metrics [--config swin_tiny_nyud_v2]
    transformers-sem benchmark data [--config vit_base_nyud_v2]
    transformers-sem benchmark train [--config swin_tiny_nyud_v2] [key=value ...]
    transformers-sem benchmark modes [--config vit_large_nyud_v2] output_dir=FOLDER [key=value ...]
    transformers-sem benchmark export [--config quickstart] [key=value ...]

`cost` counts parameters and multiply-accumulates for one image, of the encoder and of the whole model. Attention is counted in
the same way in both. The model is built without weights, so this needs little memory.
`boundaries` times the boundary measure on random images of 480 x 640, by stage, in one process and in two.
`metrics` times all other metrics of one image against the forward pass of a model with random weights, on the CPU.
`data` times the training loader over prepared NYU-Depth v2 against the same loader over the original files, on rendered images,
and compares its rate with the rate that training on a GPU needs.
`train` times the training step of SEM against those of the MTL baseline and of the bare encoder, in turns on one random batch, on
the GPU if there is one. Settings such as batch_size=2 or mixed_precision=bf16 replace those of the configuration.
`modes` times the forward pass and the training step of the encoder, MTL and SEM in every mode of the device: precision, memory
format, attention, compilation. It appends each result to FOLDER/modes.jsonl.
`export` times one image on the CPU in turns: in torch, eager and, where that takes less than five minutes, compiled, and in ONNX
Runtime in fp32, fp16 and int8. The weights are random.
"""

import argparse
from collections.abc import Sequence

from ...training.config import TrainingConfig
from ...utils.errors import plain_errors
from ..arguments import command_parser, find_recipe
from .cost import measure_cost
from .latency import measure_latency
from .loading import measure_loading
from .metrics import measure_boundaries, measure_metrics
from .modes import measure_modes
from .training_step import measure_training_step


MEASUREMENTS = {  # {measurement: (function, recipe)}
    "cost": (measure_cost, "vit_large_nyud_v2"),
    "boundaries": (measure_boundaries, "vit_large_nyud_v2"),
    "metrics": (measure_metrics, "swin_tiny_nyud_v2"),
    "data": (measure_loading, "vit_base_nyud_v2"),
    "train": (measure_training_step, "swin_tiny_nyud_v2"),
    "modes": (measure_modes, "vit_large_nyud_v2"),
    "export": (measure_latency, "quickstart"),
}


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    parser = command_parser("benchmark", __doc__)
    parser.add_argument("measurement", choices=MEASUREMENTS)
    parser.add_argument("--config", help="settings of a training run, a file or a recipe (default: those above)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, for example batch_size=2")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one measurement and prints its result."""
    parsed = build_parser().parse_intermixed_args(arguments)
    measure, recipe = MEASUREMENTS[parsed.measurement]
    with plain_errors():
        measure(TrainingConfig.load(find_recipe(parsed.config or recipe), parsed.overrides))

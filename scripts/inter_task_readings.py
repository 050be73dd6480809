"""Train readings of the inter-task module: what the paper leaves open, and what could be chosen otherwise.

    python scripts/inter_task_readings.py --results FOLDER --config FILE --output FOLDER [--readings NAME ...] [key=value ...]
    python scripts/inter_task_readings.py --results FOLDER

Each reading is the baseline with one inter-task module per decoder stage (the row "+ inter" of Table 2), with one thing changed. The
first command trains the readings one after another and leaves a row of each, `RESULTS/seed0/READING.json`; a reading that has a row
is skipped, and an interrupted one resumes. Both print how each row compares with the baseline of the same seed.
"""

import argparse
import json
import math
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformers_sem import modeling_sem
from transformers_sem.ablation.render import format_table, shared_settings
from transformers_sem.ablation.results import load_row, read_row, save_row
from transformers_sem.ablation.tables import MODELS, arrow, describe_origins
from transformers_sem.cli.arguments import find_recipe
from transformers_sem.evaluation.sums import main_scores, multi_task_gain
from transformers_sem.image_processing_sem import SEMImageProcessor
from transformers_sem.modeling_sem import (
    SEMDecoder,
    SEMForMultiTaskDensePrediction,
    SEMInterTaskModule,
    consensus,
    expectation_maximization,
    expectation_step,
)
from transformers_sem.training import run as training_run
from transformers_sem.training.config import TrainingConfig
from transformers_sem.training.optimizer import build_optimizer
from transformers_sem.utils.errors import plain_errors
from transformers_sem.utils.files import atomic_write


NUM_IMAGES = 16  # of the measures
MEASURES = {
    "entropy": "entropy of A",
    "explained": "variance explained",
    "agreement": "cosine of bases",
    "output": "output / input",
    "gradient": "gradient",
}


# ----------------------------------------------------------------------------------------------------------------------
# Modules


class GradientOfLastIteration(SEMInterTaskModule):
    """Gradients pass through the last M step, so each task's features get gradients of the others' losses."""

    num_with_gradient = 1

    def interact(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in the base class, with gradients through the last iterations."""
        without = self.num_iterations - self.num_with_gradient
        task_bases = expectation_maximization(states, self.initial_bases, without, self.temperature)
        with_gradient = expectation_maximization.__wrapped__  # without the decorator `torch.no_grad`
        task_bases = with_gradient(states, task_bases, self.num_with_gradient, self.temperature)
        responsibilities = expectation_step(states, task_bases, self.temperature)
        consensus_bases = consensus(task_bases)
        return responsibilities @ consensus_bases.unsqueeze(1), responsibilities, consensus_bases


class GradientOfAllIterations(GradientOfLastIteration):
    """Gradients pass through all iterations."""

    def __init__(self, *args):
        super().__init__(*args)
        self.num_with_gradient = self.num_iterations


class OwnBases(SEMInterTaskModule):
    """Each task is reconstructed from its own bases; the consensus is only in the initial bases."""

    def interact(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in the base class, without Eq. (10) in the reconstruction."""
        task_bases = expectation_maximization(states, self.initial_bases, self.num_iterations, self.temperature)
        responsibilities = expectation_step(states, task_bases, self.temperature)
        return responsibilities @ task_bases, responsibilities, consensus(task_bases)


class BasesFromData(SEMInterTaskModule):
    """The initial bases are states of the first batch."""

    def __init__(self, *args):
        super().__init__(*args)
        self.is_drawn = nn.Buffer(torch.zeros(()))

    def interact(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in the base class."""
        if self.training and not self.is_drawn:
            rows = states.detach().flatten(end_dim=-2)
            chosen = torch.linspace(0, len(rows) - 1, len(self.initial_bases)).long()
            self.initial_bases.copy_(F.normalize(rows[chosen], dim=-1))
            self.is_drawn.fill_(1)
        return super().interact(states)


class NoTokenNorm(SEMInterTaskModule):
    """The tokens are not normalized before the first projection."""

    def __init__(self, *args):
        super().__init__(*args)
        self.norm = nn.Identity()


class UnitStates(SEMInterTaskModule):
    """States have unit length, as the bases have."""

    def interact(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in the base class."""
        return super().interact(F.normalize(states, dim=-1))


class NormAfterReconstruction(SEMInterTaskModule):
    """The reconstruction is normalized too, at the length that it has without."""

    def __init__(self, config, hidden_size: int):
        super().__init__(config, hidden_size)
        self.norm_after, self.scale = nn.LayerNorm(hidden_size), hidden_size**-0.5

    def interact(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in the base class, with a normalized reconstruction."""
        reconstructed_states, *others = super().interact(states)
        return self.norm_after(reconstructed_states) * self.scale, *others


class NoResidual(SEMInterTaskModule):
    """The projected reconstruction takes the place of the tokens."""

    def forward(self, task_maps: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """As in the base class, without the residual sum."""
        sums, bases = super().forward(task_maps)
        return {task: sums[task] - task_map for task, task_map in task_maps.items()}, bases


class TaskLinear(nn.Module):
    """A linear layer for each task: `(B, T, N, C)` -> `(B, T, N, C)`."""

    def __init__(self, num_tasks: int, hidden_size: int):
        super().__init__()
        self.in_features = hidden_size
        self.weight = nn.Parameter(torch.empty(num_tasks, hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.zeros(num_tasks, 1, hidden_size))

    def forward(self, states: Tensor) -> Tensor:
        """Applies the layer of each task."""
        return states @ self.weight + self.bias


class OwnProjections(SEMInterTaskModule):
    """Each task has a last projection of its own."""

    def __init__(self, config, hidden_size: int):
        super().__init__(config, hidden_size)
        self.project_out = TaskLinear(len(config.tasks), hidden_size)


class OwnLayers(OwnProjections):
    """Each task has layers of its own; only the bases are shared."""

    def __init__(self, config, hidden_size: int):
        super().__init__(config, hidden_size)
        self.project_in = TaskLinear(len(config.tasks), hidden_size)


class ConcatenatedOutput(SEMInterTaskModule):
    """A layer on the tokens beside their reconstruction takes the place of the residual sum."""

    kernel_size = 1

    def __init__(self, config, hidden_size: int):
        super().__init__(config, hidden_size)
        self.fuse = nn.Conv2d(2 * hidden_size, hidden_size, self.kernel_size, padding=self.kernel_size // 2)

    def forward(self, task_maps: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """As in the base class."""
        sums, bases = super().forward(task_maps)
        both = {task: torch.cat([task_map, sums[task] - task_map], dim=1) for task, task_map in task_maps.items()}
        return {task: self.fuse(maps) for task, maps in both.items()}, bases


class ConvolvedOutput(ConcatenatedOutput):
    """A 3x3 convolution on the tokens beside their reconstruction takes the place of the residual sum."""

    kernel_size = 3


class PixelMixing(SEMInterTaskModule):
    """A control, no reading: a linear map of the states of all tasks at the same pixel takes the place of the reconstruction."""

    def __init__(self, config, hidden_size: int):
        super().__init__(config, hidden_size)
        width = len(config.tasks) * hidden_size
        self.mix, self.scale = nn.Linear(width, width), hidden_size**-0.5

    def interact(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in the base class, with mixed states."""
        mixed = self.mix(states.transpose(1, 2).flatten(2)).unflatten(2, (states.shape[1], -1)).transpose(1, 2)
        return mixed * self.scale, *super().interact(states)[1:]


class ShallowDecoder(SEMDecoder):
    """The two deepest stages have no inter-task module."""

    def __init__(self, *args):
        super().__init__(*args)
        for stage in self.stages[:2]:
            stage.inter_task = None


def weighted_means(states: Tensor, responsibilities: Tensor) -> Tensor:
    """Eq. (9) as it is printed: weighted means of the states, of any length."""
    return responsibilities.transpose(-1, -2) @ states / (responsibilities.sum(dim=-2).unsqueeze(-1) + 1e-6)


def plain_average(initial_bases: Tensor, bases: Tensor, momentum: float) -> Tensor:
    """The moving average of bases of any length."""
    return momentum * initial_bases + (1 - momentum) * bases


def faster_inter_task(config: TrainingConfig, model: nn.Module) -> torch.optim.Adam:
    """Adam, with five times the learning rate for the inter-task modules."""
    optimizer = build_optimizer(config, model)
    (group,) = optimizer.param_groups
    fast = {id(value) for name, value in model.named_parameters() if ".inter_task." in name}
    faster = [value for value in group["params"] if id(value) in fast]
    group["params"] = [value for value in group["params"] if id(value) not in fast]
    optimizer.add_param_group({"params": faster, "lr": 5 * config.learning_rate})
    return optimizer


# ----------------------------------------------------------------------------------------------------------------------
# Readings


@dataclass(frozen=True)
class Reading:
    """What a reading changes.

    Args:
        words (`str`): For the table.
        settings (`dict`): Fields of `SEMConfig`.
        code (`dict`): Names of `modeling_sem`, and what takes their place.
    """

    words: str
    settings: dict[str, Any] = field(default_factory=dict)
    code: dict[str, Callable] = field(default_factory=dict)


def as_module(module: type[SEMInterTaskModule]) -> dict[str, Callable]:
    """Returns `code` of a reading that has another inter-task module."""
    return {"SEMInterTaskModule": module}


READINGS = {
    "baseline": Reading("no inter-task module", MODELS["baseline"]),
    "inter": Reading("as it is"),
    "gradient_all": Reading("gradients through all EM iterations", code=as_module(GradientOfAllIterations)),
    "gradient_last": Reading("gradients through the last EM iteration", code=as_module(GradientOfLastIteration)),
    "own_bases": Reading("reconstruction from the task's own bases", code=as_module(OwnBases)),
    "temperature_low": Reading("temperature 0.25", {"em_temperature": 0.25}),
    "temperature_high": Reading("temperature 4", {"em_temperature": 4.0}),
    "no_token_norm": Reading("tokens not normalized", code=as_module(NoTokenNorm)),
    "unit_states": Reading(
        "states of unit length, temperature 0.1", {"em_temperature": 0.1}, code=as_module(UnitStates)
    ),
    "plain_bases": Reading(
        "bases of any length (Eq. 9 as printed)",
        code={"maximization_step": weighted_means, "moving_average": plain_average},
    ),
    "norm_after": Reading("reconstruction normalized", code=as_module(NormAfterReconstruction)),
    "no_residual": Reading("reconstruction in place of the tokens", code=as_module(NoResidual)),
    "own_projections": Reading("last projection of each task's own", code=as_module(OwnProjections)),
    "own_layers": Reading("both projections of each task's own", code=as_module(OwnLayers)),
    "concatenated": Reading("1x1 convolution of tokens and reconstruction", code=as_module(ConcatenatedOutput)),
    "convolved": Reading("3x3 convolution of tokens and reconstruction", code=as_module(ConvolvedOutput)),
    "pixel_mixing": Reading("control: linear map of all tasks' states at a pixel", code=as_module(PixelMixing)),
    "bases_from_data": Reading("initial bases from the first batch", code=as_module(BasesFromData)),
    "momentum_0": Reading("momentum of the bases 0", {"bases_momentum": 0.0}),
    "momentum_0.99": Reading("momentum of the bases 0.99", {"bases_momentum": 0.99}),
    "k8": Reading("K = 8", {"num_bases": 8}),
    "k128": Reading("K = 128", {"num_bases": 128}),
    "r1": Reading("R = 1", {"num_em_iterations": 1}),
    "r5": Reading("R = 5", {"num_em_iterations": 5}),
    "fast": Reading("five times the learning rate", code={"build_optimizer": faster_inter_task}),
    "deep": Reading("in the two deepest stages", {"inter_task_stages": 2}),
    "shallow": Reading("in the two shallowest stages", code={"SEMDecoder": ShallowDecoder}),
}


def train_readings(arguments: argparse.Namespace) -> None:
    """Trains readings one after another, each in a process of its own, because it changes the code."""
    for name in arguments.readings:
        row_path = arguments.results / f"seed{arguments.seed}" / f"{name}.json"
        folder = arguments.output / f"seed{arguments.seed}" / name
        values = {f"model.{key}": value for key, value in {**MODELS["inter"], **READINGS[name].settings}.items()}
        values |= {"seed": arguments.seed, "output_dir": str(folder)}
        overrides = [*arguments.overrides, *(f"{key}={json.dumps(value)}" for key, value in values.items())]
        config = TrainingConfig.load(find_recipe(arguments.config), overrides)
        if row_path.is_file():
            read_row(row_path, config)  # its settings are the same
            continue
        process = get_context("spawn").Process(target=train_reading, args=(name, config, row_path))
        process.start()
        try:
            process.join()
        except KeyboardInterrupt:
            process.terminate()  # it saves first
            process.join()
        if process.exitcode:
            sys.exit(f"The training in {folder} ended with status {process.exitcode}. The same command resumes it.")


def train_reading(name: str, config: TrainingConfig, row_path: Path) -> None:
    """Trains and evaluates one reading, and writes its row, with measures of its modules."""
    for part, replacement in READINGS[name].code.items():
        module = training_run if hasattr(training_run, part) else modeling_sem
        setattr(module, part, replacement)
    training_run.run_training(config)
    row_path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(row_path) as unfinished:
        save_row(Path(config.output_dir), unfinished)
        row = {**load_row(unfinished), "inter_task": measure_modules(config)}
        unfinished.write_text(json.dumps(row, indent=1) + "\n")


# ----------------------------------------------------------------------------------------------------------------------
# Measures


def measure_modules(config: TrainingConfig) -> dict[str, list[float]]:
    """Measures what the inter-task modules of a trained model do with validation images, from the deepest stage to the shallowest.

    Returns:
        `dict[str, list[float]]`: "entropy" of the responsibilities over that of uniform ones; "explained", the share of the
        variance of X that a linear map of X~ gives; "agreement", the cosine between the bases of two tasks; "output", the
        deviation of what the module adds over that of its input; "gradient", the norm at `project_in` over that of the stage.
    """
    model = SEMForMultiTaskDensePrediction.from_pretrained(config.output_dir)
    processor = SEMImageProcessor.from_pretrained(config.output_dir)
    rows = (
        config.get_benchmark().load(config.data_dir, **config.dataset_kwargs)["validation"].select(range(NUM_IMAGES))
    )
    maps = {task: rows[task] for task in model.config.tasks}
    stages = [stage for stage in model.sem.decoder.stages if stage.inter_task is not None]
    measures = [watch(stage.inter_task) for stage in stages]
    model.eval()(**processor(rows["image"], maps=maps, return_tensors="pt")).loss.backward()
    for stage, measured in zip(stages, measures, strict=True):
        norms = [parameter.grad.norm().item() for parameter in stage.parameters() if parameter.grad is not None]
        measured["gradient"] = stage.inter_task.project_in.weight.grad.norm().item() / math.hypot(*norms)
    return {name: [measured[name] for measured in measures] for name in (measures[0] if measures else ())}


def watch(module: SEMInterTaskModule) -> dict[str, float]:
    """Returns a dictionary that the next forward pass fills with measures."""
    measured, interact = {}, module.interact

    def measure_interaction(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reconstructed_states, responsibilities, bases = interact(states)
        entropy = torch.special.entr(responsibilities).sum(dim=-1).mean() / math.log(responsibilities.shape[-1])
        measured["entropy"] = entropy.item()
        measured["explained"] = explained_variance(states, reconstructed_states)
        task_bases = expectation_maximization(states, module.initial_bases, module.num_iterations, module.temperature)
        unit_bases = F.normalize(task_bases, dim=-1)
        cosines = torch.einsum("btkc,bukc->tu", unit_bases, unit_bases) / (len(states) * unit_bases.shape[2])
        measured["agreement"] = cosines[~torch.eye(len(cosines), dtype=torch.bool)].mean().item()
        return reconstructed_states, responsibilities, bases

    def measure_output(module: nn.Module, inputs: tuple[dict[str, Tensor]], outputs: tuple) -> None:
        before, after = (torch.stack([*maps.values()]) for maps in (inputs[0], outputs[0]))
        measured["output"] = ((after - before).std() / before.std()).item()

    module.interact = measure_interaction
    module.register_forward_hook(measure_output)
    return measured


@torch.no_grad()
def explained_variance(states: Tensor, reconstructed_states: Tensor) -> float:
    """Returns the share of the variance of the states that the best affine map of their reconstruction gives."""
    values, inputs = (tokens.flatten(end_dim=-2).double() for tokens in (states, reconstructed_states))
    values, inputs = values - values.mean(dim=0), inputs - inputs.mean(dim=0)
    residual = values - inputs @ torch.linalg.lstsq(inputs, values, driver="gelsd").solution
    return 1 - (residual.square().sum() / values.square().sum()).item()


# ----------------------------------------------------------------------------------------------------------------------
# Table


def read_readings(results: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Reads all rows, `{("seed0", "inter"): row}`.

    Raises:
        ValueError: If they have different settings, apart from those of the readings.
    """
    rows = {(path.parent.name, path.stem): load_row(path) for path in sorted(results.glob("seed*/*.json"))}
    shared = [
        {key: value for key, value in shared_settings(row).items() if not key.startswith("model.")}
        for row in rows.values()
    ]
    if any(settings != shared[0] for settings in shared):
        raise ValueError(
            f"Rows of one folder share their settings; those of {results} do not. Move those of another run."
        )
    return rows


def format_readings(results: Path) -> str:
    """Formats two Markdown tables, means over the seeds: differences to the baseline of the same seed, and measures."""
    rows = read_readings(results)
    seeds = dict.fromkeys(seed for seed, _ in rows)
    pairs = {
        reading.words: [
            (rows[seed, "baseline"], rows[seed, name])
            for seed in seeds
            if {(seed, "baseline"), (seed, name)} <= {*rows}
        ]
        for name, reading in READINGS.items()
        if name != "baseline"
    }
    pairs = {words: found for words, found in pairs.items() if found}
    if not pairs:
        raise ValueError(
            f"A table needs the baseline and a reading of one seed, {results}/seed0/*.json; there are none."
        )
    origins = "\n\n".join(
        f"Trained at {origin}." for origin in describe_origins({"/".join(key): row for key, row in rows.items()})
    )
    return f"{format_differences(pairs)}\n\n{format_measures(pairs)}\n\n{origins}"


def format_differences(pairs: dict[str, list[tuple[dict, dict]]]) -> str:
    """Formats what each reading changes against the baseline."""
    keys = [*main_scores(next(iter(pairs.values()))[0][0]["scores"]).values()]
    header = ["inter-task module", "seeds", *(f"{key} {arrow(key)}" for key in keys), "Δm, % ↑", "training loss, % ↓"]
    lines = []
    for words, found in pairs.items():
        changes = [fmean(row["scores"][key] - base["scores"][key] for base, row in found) for key in keys]
        gain = fmean(multi_task_gain(row["scores"], base["scores"]) for base, row in found)
        loss = fmean(100 * last_loss(row) / last_loss(base) - 100 for base, row in found)
        lines.append(
            [words, str(len(found)), *(f"{change:+.4f}" for change in changes), f"{gain:+.2f}", f"{loss:+.2f}"]
        )
    return format_table(header, lines)


def format_measures(pairs: dict[str, list[tuple[dict, dict]]]) -> str:
    """Formats the measures of the modules, from the deepest stage to the shallowest."""
    lines = []
    for words, found in pairs.items():
        stages = {name: zip(*(row["inter_task"][name] for _, row in found), strict=True) for name in MEASURES}
        lines.append([words, *(" / ".join(f"{fmean(values):.2f}" for values in stages[name]) for name in MEASURES)])
    return format_table(["inter-task module", *MEASURES.values()], lines)


def last_loss(row: dict[str, Any]) -> float:
    """Returns the mean training loss of the last tenth of a training."""
    losses = [entry["loss"] for entry in row["history"] if "loss" in entry]
    return fmean(losses[-len(losses) // 10 :])


def parse_arguments() -> argparse.Namespace:
    """Parses the command line and separates readings and settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--config", help="settings of all trainings: a YAML file or the name of a recipe")
    parser.add_argument("--output", type=Path, help="folder of the trainings")
    parser.add_argument("--readings", nargs="+", default=[*READINGS], help=f"default: all, {', '.join(READINGS)}")
    parser.add_argument("--seed", type=int, default=0, help="of all trainings (default: 0)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, for example max_steps=100")
    arguments = parser.parse_intermixed_args()
    # argparse assigns everything after an option to it
    arguments.overrides += [text for text in arguments.readings if "=" in text]
    arguments.readings = [text for text in arguments.readings if "=" not in text]
    unknown = [name for name in arguments.readings if name not in READINGS]
    if unknown:
        parser.error(f"--readings are of {', '.join(READINGS)}; got {' '.join(unknown)}")
    if (arguments.config is None) != (arguments.output is None):
        parser.error("a training needs --config FILE and --output FOLDER")
    return arguments


def main() -> None:
    """Parses the command line, trains what is missing, and prints the tables."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: the training saves
    with plain_errors():
        if arguments.config is not None:
            train_readings(arguments)
        print(format_readings(arguments.results))


if __name__ == "__main__":
    main()

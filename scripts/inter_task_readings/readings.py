"""The readings: modules that take the place of `SEMInterTaskModule`, settings, and a table of both."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformers_sem import modeling_sem
from transformers_sem.ablation.tables import MODELS
from transformers_sem.modeling_sem import (
    SEMDecoder,
    SEMInterTaskModule,
    consensus,
    expectation_maximization,
    expectation_step,
)
from transformers_sem.training import run as training_run
from transformers_sem.training.config import TrainingConfig
from transformers_sem.training.optimizer import build_optimizer


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


NO_SUM = frozenset({"output"})  # nothing is added to the tokens
NO_BASES = frozenset({"entropy", "agreement"})  # the result of EM is not used


@dataclass(frozen=True)
class Reading:
    """What a reading changes.

    Args:
        words (`str`): For the table.
        settings (`dict`): Fields of `SEMConfig`.
        code (`dict`): Names of `modeling_sem` or `training.run`, and what takes their place.
        unmeasured (`frozenset[str]`): Measures that do not describe it.
    """

    words: str
    settings: dict[str, Any] = field(default_factory=dict)
    code: dict[str, Callable] = field(default_factory=dict)
    unmeasured: frozenset[str] = frozenset()

    def change_code(self, set_part: Callable[[ModuleType, str, Callable], None] = setattr) -> None:
        """Puts `code` in its place, by `setattr` or what else is given."""
        for part, replacement in self.code.items():
            set_part(training_run if hasattr(training_run, part) else modeling_sem, part, replacement)


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
    "no_residual": Reading("reconstruction in place of the tokens", code=as_module(NoResidual), unmeasured=NO_SUM),
    "own_projections": Reading("last projection of each task's own", code=as_module(OwnProjections)),
    "own_layers": Reading("both projections of each task's own", code=as_module(OwnLayers)),
    "concatenated": Reading(
        "1x1 convolution of tokens and reconstruction", code=as_module(ConcatenatedOutput), unmeasured=NO_SUM
    ),
    "convolved": Reading(
        "3x3 convolution of tokens and reconstruction", code=as_module(ConvolvedOutput), unmeasured=NO_SUM
    ),
    "pixel_mixing": Reading(
        "control: linear map of all tasks' states at a pixel", code=as_module(PixelMixing), unmeasured=NO_BASES
    ),
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

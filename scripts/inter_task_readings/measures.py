"""What the inter-task modules of a trained model do with its features."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformers_sem import SEMConfig
from transformers_sem.image_processing_sem import SEMImageProcessor
from transformers_sem.modeling_sem import (
    SEMForMultiTaskDensePrediction,
    SEMInterTaskModule,
    expectation_maximization,
)
from transformers_sem.training.config import TrainingConfig


NUM_IMAGES = 16  # of the measures
STRIDES = (32, 16, 8, 4)  # of the decoder stages
MEASURES = {
    "entropy": "entropy of A",
    "explained": "variance explained",
    "agreement": "cosine of bases",
    "output": "output / input",
    "gradient": "gradient",
}


def measure_modules(config: TrainingConfig) -> dict[str, list[float]]:
    """Measures what the inter-task modules of a trained model do with validation images, from the deepest stage to the shallowest.

    Returns:
        `dict[str, list[float]]`: "entropy" of the responsibilities over that of uniform ones; "explained", the share of the
        variance of X that a linear map of X~ gives; "agreement", the cosine between the bases of two tasks; "output", the
        deviation of what the module adds over that of its input; "gradient", the norm at `project_in` over that of the stage.
    """
    model = SEMForMultiTaskDensePrediction.from_pretrained(config.output_dir)
    processor = SEMImageProcessor.from_pretrained(config.output_dir)
    rows = config.get_benchmark().load(config.data_dir, **config.dataset_kwargs)["validation"]
    rows = rows.select(range(min(NUM_IMAGES, len(rows))))
    maps = {task: rows[task] for task in model.config.tasks}
    stages = [stage for stage in model.sem.decoder.stages if stage.inter_task is not None]
    measures = [watch(stage.inter_task) for stage in stages]
    model.eval()(**processor(rows["image"], maps=maps, return_tensors="pt")).loss.backward()
    for stage, measured in zip(stages, measures, strict=True):
        norms = [parameter.grad.norm().item() for parameter in stage.parameters() if parameter.grad is not None]
        measured["gradient"] = stage.inter_task.project_in.weight.grad.norm().item() / math.hypot(*norms)
    return {name: [measured[name] for measured in measures] for name in (measures[0] if measures else ())}


def measure_noise(config: SEMConfig, input_size: tuple[int, int]) -> dict[str, list[float]]:
    """Measures what EM from random bases does with states that are Gaussian noise of unit variance, as many as in each stage.

    Returns:
        `dict[str, list[float]]`: "entropy", "explained" and "agreement", as `measure_modules` does.
    """
    torch.manual_seed(0)
    measures = []
    for width, stride in zip(config.decoder_hidden_sizes, STRIDES, strict=True):
        num_tokens = math.prod(-(-length // stride) for length in input_size)
        module = SEMInterTaskModule(config, width).eval()
        measures.append(watch(module))
        module.interact(torch.randn(NUM_IMAGES, len(config.tasks), num_tokens, width))
    return {name: [measured[name] for measured in measures] for name in measures[0]}


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

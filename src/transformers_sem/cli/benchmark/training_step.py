"""Time of the training step."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from tqdm.auto import tqdm

from ...modeling_sem import SEMForMultiTaskDensePrediction
from ...training.config import TrainingConfig, model_config, network_size
from ...training.plan import random_batch
from ...utils.environment import environment
from ...utils.processes import start_accelerator
from .timing import seconds


NUM_ROUNDS = 7


def encoder_loss(encoder: torch.nn.Module, batch: dict) -> torch.Tensor:
    """Returns a scalar that depends on all feature maps."""
    return sum(feature_map.float().square().mean() for feature_map in encoder(batch["pixel_values"]).feature_maps)


def model_loss(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    """Returns the loss of a training run."""
    return model(**batch).loss


def build_models(config: TrainingConfig) -> dict[str, tuple[torch.nn.Module, Callable]]:
    """Builds SEM, MTL and the bare encoder, each with the function of its loss."""
    benchmark = config.get_benchmark()
    baseline_config = replace(config, model={**config.model, "use_decoder": False})
    model, baseline = (
        SEMForMultiTaskDensePrediction(model_config(settings, benchmark)) for settings in (config, baseline_config)
    )
    encoder = copy.deepcopy(model.sem.backbone)
    return {"SEM": (model, model_loss), "MTL": (baseline, model_loss), "encoder": (encoder, encoder_loss)}


def build_step(
    config: TrainingConfig, model: torch.nn.Module, loss_of: Callable, batch: dict, accelerator: Accelerator
) -> Callable[[], float]:
    """Returns a function that runs one training step on the batch, and waits for the device."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model, optimizer = accelerator.prepare(
        model.train(), torch.optim.Adam(parameters, config.learning_rate, weight_decay=config.weight_decay, fused=True)
    )

    def step() -> float:
        loss = loss_of(model, batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()  # waits for the device

    return step


def measure_training_step(config: TrainingConfig) -> None:
    """Prints images per second of the training steps, and the ratio of SEM's time to the others."""
    accelerator = start_accelerator(mixed_precision=config.mixed_precision)
    models = build_models(config)
    batch = send_to_device(random_batch(config, models["SEM"][0].config, config.batch_size), accelerator.device)
    sides = {name: build_step(config, *model, batch, accelerator) for name, model in models.items()}
    for step in sides.values():
        step()  # warm up: kernels are chosen, the optimizer allocates its buffers
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

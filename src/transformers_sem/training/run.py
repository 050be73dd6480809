"""Everything that changes from step to step, and how."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from torch.optim.lr_scheduler import PolynomialLR

from ..modeling_sem import SEMForMultiTaskDensePrediction
from .accelerator import choose_sharded_modules
from .config import TrainingConfig
from .data_order import seed_step
from .history import LossLog
from .optimizer import NonFiniteGuard, OptimizerStep, build_average, build_optimizer
from .signals import StopRequest


@contextmanager
def failure_reported(report: Callable[[str], None]) -> Iterator[None]:
    """Calls `report("failed")` when an error ends what is inside, and lets the error go on."""
    try:
        yield
    except Exception:
        report("failed")
        raise


class TrainingRun:
    """Model, optimiser, schedule, average and counts of a run, prepared for its devices and its checkpoints.

    Args:
        config (`TrainingConfig`): The settings.
        accelerator (`Accelerator`): Of the devices; its `save_state` and `load_state` have all of it.
        model (`SEMForMultiTaskDensePrediction`): To train.
        stop (`StopRequest`): On which the ranks agree in every step.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        model: SEMForMultiTaskDensePrediction,
        stop: StopRequest,
    ):
        self.config, self.accelerator = config, accelerator
        optimizer = build_optimizer(config, model)
        self.schedule = PolynomialLR(optimizer, total_iters=config.max_steps, power=config.decay_power)
        self.average = build_average(config, accelerator, model)
        if config.compile:
            model.compile()
        choose_sharded_modules(accelerator, model)
        self.model, optimizer = accelerator.prepare(model, optimizer)
        self.guard = NonFiniteGuard(accelerator, config.max_skipped_steps)
        self.log = LossLog(accelerator, Path(config.output_dir), config.batch_size)
        accelerator.register_for_checkpointing(self.schedule, self.guard, self.log)
        if self.average is not None:
            accelerator.register_for_checkpointing(self.average)
        self.take_step = OptimizerStep(accelerator, self.model, optimizer, config.max_grad_norm, stop)
        self.model.train()
        if config.freeze_backbone:
            accelerator.unwrap_model(self.model).sem.backbone.eval()

    def step(self, step: int, micro_batches: Iterable[dict]) -> int:
        """Takes the optimiser step number `step`, counted from 1, and returns the signal that asks to stop, or 0.

        Raises:
            FloatingPointError: If too many steps in a row were not finite.
        """
        seed_step(self.config.seed, step, self.accelerator.process_index)
        report = self.take_step(micro_batches)
        self.schedule.step()
        self.guard.count(step, report.not_finite)
        if self.average is not None and not report.not_finite:
            self.average.update_parameters(self.accelerator.unwrap_model(self.model))
        self.log.add(report.losses)
        return report.signum

    def flush_log(self, step: int) -> dict[str, str]:
        """Writes a log entry and returns it for a progress bar."""
        return self.log.flush(step, max(self.schedule.get_last_lr()), self.guard.total)

    def weights(self) -> dict[str, Tensor]:
        """What is saved in the end, on all ranks: the average where there is one. All ranks call it."""
        if self.average is not None:
            return self.average.module.state_dict()
        return self.accelerator.get_state_dict(self.model)

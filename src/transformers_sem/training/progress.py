"""Losses, averaged between two log entries, for the progress bar and the trackers."""

from accelerate import Accelerator
from torch import Tensor


class LossLog:
    """Running means of the total loss and of each task's, over all ranks.

    Args:
        accelerator (`Accelerator`): Averages over ranks and holds the trackers.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, loss: Tensor, losses: dict[str, Tensor]) -> None:
        """Adds a batch; nothing is moved off the device yet."""
        for name, value in {"loss": loss, **losses}.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.count += 1

    def flush(self, step: int, learning_rate: float) -> dict[str, str]:
        """Logs the means since the last call, and returns them for a progress bar."""
        means = {
            name: self.accelerator.reduce(value / self.count, reduction="mean").item()
            for name, value in self.sums.items()
        }
        self.accelerator.log({f"train/{name}": value for name, value in means.items()}, step=step)
        self.accelerator.log({"train/learning_rate": learning_rate}, step=step)
        self.sums, self.count = {}, 0
        return {name: f"{value:.3g}" for name, value in means.items()}

"""The learning-rate range test (Smith 2015, arXiv 1506.01186): raise the learning rate step by step until loss rises.

One multiplier acts on all groups, so that their ratios stay, and grows exponentially: equal steps in log lr. The test
runs from the weights and in the data order of the run itself. It does not find the best learning rate, for a step
tells nothing of what a whole schedule reaches; it finds an upper bound, above which training does not go on.

Lightning's own finder looks for the steepest fall of the loss in lr rather than in log lr, which lies 100 to 1000 times
too low for a GPT, and sets one learning rate on all groups.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer

from gpt_lightning.callbacks.steps import ends_step

LOWEST, HIGHEST = 1e-5, 3.0
SMOOTHING = 0.7


@dataclass(frozen=True)
class RangeTest:
    """Learning rates and the loss at each, as far as it was finite."""

    lrs: list[float]
    losses: list[float]

    @property
    def smoothed(self) -> list[float]:
        return smooth(self.losses)

    @property
    def upper(self) -> float:
        """The learning rate with the lowest smoothed loss: beyond it, the loss rises."""
        return self.lrs[int(np.argmin(self.smoothed))]


class RaiseLearningRate(Callback):
    """Multiply the learning rate of every group: from `lowest` to `highest` over `n_steps` steps, evenly in log lr.

    Stops the run when the smoothed loss has risen by half of what it had fallen, or by one nat.
    """

    def __init__(self, lr: float, n_steps: int, lowest: float = LOWEST, highest: float = HIGHEST):
        self.lrs = [lowest * (highest / lowest) ** (i / max(n_steps - 1, 1)) for i in range(n_steps)]
        self.lr = lr
        self.losses: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        factor = self.lrs[min(len(self.losses), len(self.lrs) - 1)] / self.lr
        for group in optimizer.param_groups:
            group["lr"] *= factor  # the scheduler has set it anew for this step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not ends_step(trainer, batch_idx):
            return
        self.losses.append(pl_module.step.loss.item())
        trainer.should_stop = trainer.should_stop or has_risen(self.losses) or len(self.losses) == len(self.lrs)

    def result(self) -> RangeTest:
        """What was measured: the loss *after* a step belongs to the learning rate of that step."""
        after = [loss for loss in self.losses[1:] if math.isfinite(loss)]
        return RangeTest(self.lrs[: len(after)], after)


def smooth(losses: list[float]) -> list[float]:
    """Exponential moving average, divided by the sum of its weights so that the start is not biased."""
    average, weight, out = 0.0, 0.0, []
    for loss in losses:
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        out.append(average / weight)
    return out


def has_risen(losses: list[float]) -> bool:
    """Whether the loss has clearly turned upwards, so that higher learning rates need not be tried."""
    if not math.isfinite(losses[-1]):
        return True
    smoothed = smooth(losses)
    lowest = min(smoothed)
    return smoothed[-1] > lowest + min(max(0.5 * (smoothed[0] - lowest), 0.1), 1.0)

"""Branches: does the loss recover when the batch grows? The critical batch measured directly, without assumptions.

From one checkpoint the run goes on with 1, 2, 4 and 8 times the batch and the settings that go with each
(optim/rescale.py). All branches see the same samples in the same order and meet after every 8 batches of the unchanged
size, a window. There, before any update, each has the loss of the next unchanged batch: the same samples, by models
that have trained on the same tokens. (Averages over the window would be of models up to 7 updates older for the small
batch, and of none for the large one: half a window of progress in its disfavour.)

    samples   [1][2][3][4][5][6][7][8]|[1][2]...
    batch x 1  ^ u  u  u  u  u  u  u  u ^           ^ measured   u update
    batch x 4  ^          u           u ^
    batch x 8  ^                      u ^

The differences compare pairwise over the last third: a branch recovers when its loss is surely less than 0.01 nats
above that of the unchanged batch, and does not when it is surely more (two standard errors). Costs nothing beyond the
branches' own training. Merrill et al. 2025, arXiv 2505.23971.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer

from gpt_lightning.optim.rescale import StepSettings
from gpt_lightning.run.stack import Stack
from gpt_lightning.terminal import quiet
from gpt_lightning.tune.results import TuneFolder
from gpt_lightning.tune.trials import train

FACTORS = (1, 2, 4, 8)
LEAST_POINTS = 18  # windows of 8 batches, so that the last third has six
TOLERANCE = 0.01  # nats per token


@dataclass(frozen=True)
class Branch:
    """A factor on the batch, its loss at the start of every window, and over the last third less that of factor 1."""

    factor: int
    losses: list[float]
    difference: float
    standard_error: float

    @property
    def recovers(self) -> bool | None:
        """None where the difference is too uncertain to tell."""
        margin = 2 * self.standard_error
        if self.difference + margin < TOLERANCE:
            return True
        return False if not self.difference - margin < TOLERANCE else None


class RescaledSteps(Callback):
    """Train every step with the settings that go with a batch `factor` times as large."""

    def __init__(self, factor: int):
        self.factor, self._settings = factor, StepSettings()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self._settings.rescale(optimizer.param_groups, self.factor)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._settings.restore(trainer.optimizers[0].param_groups)


class WindowStarts(Callback):
    """The loss of the first unchanged batch of every window, before any of the window's updates, in nats per token.

    Where the training loss is not in nats, the cross entropy is taken beside it, in eval mode.
    """

    def __init__(self, factor: int):
        self.factor = factor
        self.losses: list[float] = []
        self._micro_steps = 0
        self._sum: torch.Tensor | float = 0.0
        self._nats: torch.Tensor | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        at, unchanged = self._place(trainer)
        if at < unchanged and not pl_module.loss.in_nats:
            pl_module.eval()
            self._nats = pl_module.predict_step(batch, batch_idx).nanmean()
            pl_module.train()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        at, unchanged = self._place(trainer)
        self._micro_steps += 1
        if at < unchanged:
            trained = outputs["loss"].detach() * self.factor  # Lightning divides by the accumulation
            self._sum = self._sum + (trained if self._nats is None else self._nats / unchanged)
        if at == unchanged - 1:
            self.losses.append(float(self._sum))
            self._sum = 0.0

    def _place(self, trainer: Trainer) -> tuple[int, int]:
        """Of this micro-step in its window, and how many an unchanged batch has."""
        unchanged = trainer.accumulate_grad_batches // self.factor
        return self._micro_steps % (FACTORS[-1] * unchanged), unchanged


def measure_branches(stack: Stack, folder: TuneFolder, tokens: int) -> list[Branch]:
    """The trunk and its branches, each of `tokens` rounded up to whole batches of the largest factor."""
    batch_tokens = stack["data.batch_tokens"]
    trunk = trunk_tokens(tokens, batch_tokens)
    checkpoint = folder.path / "trials" / "trunk.ckpt"
    missing = [factor for factor in FACTORS if f"branch x {factor}" not in folder]
    if missing and not checkpoint.exists():
        train_trunk(stack, trunk, checkpoint)
    losses = {}
    for factor in FACTORS:
        losses[factor] = folder.measured(f"branch x {factor}", partial(train_branch, stack, factor, trunk, checkpoint))
    return compare_branches(losses)


def check_length(tokens: int, batch_tokens: int) -> None:
    """Raises ValueError for branches too short to compare."""
    least = LEAST_POINTS * FACTORS[-1] * batch_tokens
    if tokens < least:
        raise ValueError(
            f"tune.tokens {tokens}: a branch needs {LEAST_POINTS} x {FACTORS[-1]} batches of {batch_tokens} tokens to "
            f"compare; set --tune.tokens {least} or more"
        )


def trunk_tokens(tokens: int, batch_tokens: int) -> int:
    """`tokens` rounded up so that every factor's batches start where the trunk ends."""
    unit = FACTORS[-1] * batch_tokens
    return -(-tokens // unit) * unit


def train_trunk(stack: Stack, tokens: int, checkpoint: Path) -> None:
    """Train to the point from which the branches leave, and save it."""
    run = train(stack, _options(tokens)).run
    with quiet():
        run.trainer.save_checkpoint(checkpoint)


def train_branch(stack: Stack, factor: int, tokens: int, checkpoint: Path) -> list[float]:
    """The losses of a branch as long as the trunk's `tokens`, one at the start of every window.

    One that diverges ends early, or with infinity.
    """
    options = {**_options(2 * tokens), "data.batch_tokens": factor * stack["data.batch_tokens"]}
    starts = WindowStarts(factor)
    done = train(stack, options, callbacks=[RescaledSteps(factor), starts], checkpoint=checkpoint)
    return [*starts.losses, math.inf] if math.isinf(done.val_loss) else starts.losses


def compare_branches(losses: dict[int, list[float]]) -> list[Branch]:
    """Each branch against factor 1, pair by pair over the last third of the points.

    Raises ValueError where factor 1 itself diverged.
    """
    if not np.isfinite(losses[1]).all():
        raise ValueError("the run itself diverges from its trunk on, with an unchanged batch; lower model.optim.lr")
    branches = []
    for factor, values in losses.items():
        if len(values) < len(losses[1]) or not np.isfinite(values).all():
            branches.append(Branch(factor, values, math.inf, 0.0))
            continue
        difference = np.array(values) - np.array(losses[1])
        last = difference[-max(len(difference) // 3, 1) :]
        error = float(last.std(ddof=1) / math.sqrt(len(last))) if len(last) > 1 else math.inf
        branches.append(Branch(factor, values, float(last.mean()), error))
    return branches


def _options(max_tokens: int) -> dict[str, Any]:
    """A constant learning rate after the warm-up, for a decay would hide what the batch does."""
    return {"max_tokens": max_tokens, "model.schedule.name": "constant", "batch_ramp.ramp_tokens": 0}

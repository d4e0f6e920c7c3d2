"""Branches: does the loss recover when the batch grows? The critical batch measured directly, without assumptions.

From one checkpoint the run goes on with 1, 2, 4 and 8 times the batch and a learning rate scaled by the root of it
(beta2 keeps its half-life in tokens). All branches see the same samples in the same order, so their losses compare
pairwise over the last third: a branch recovers when its loss is surely less than 0.01 nats above that of the unchanged
batch, and does not when it is surely more (two standard errors). Merrill et al. 2025, arXiv 2505.23971.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer

from gpt_lightning.terminal import quiet
from gpt_lightning.tune.results import TuneFolder
from gpt_lightning.tune.trials import TuneCLI

FACTORS = (1, 2, 4, 8)
LEAST_POINTS = 18  # of 8 batches each, so that the last third has six
TOLERANCE = 0.01  # nats per token


@dataclass(frozen=True)
class Branch:
    """A factor on the batch, its training loss over the last third less that of factor 1, and that one's error."""

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


class ScaleOptimizer(Callback):
    """Train with lr x sqrt(factor) and beta2 ^ factor."""

    def __init__(self, factor: int):
        self.factor = factor

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        for group in trainer.optimizers[0].param_groups:
            if "betas" in group:
                group["betas"] = (group["betas"][0], group["betas"][1] ** self.factor)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= math.sqrt(self.factor)  # the scheduler has set it anew for this step


def measure_branches(cli: TuneCLI, folder: TuneFolder, tokens: int) -> list[Branch]:
    """The trunk and its branches, each of `tokens` rounded up to whole batches of the largest factor."""
    batch_tokens = cli.config.data.batch_tokens
    trunk = trunk_tokens(tokens, batch_tokens)
    checkpoint = Path(cli.settings.dir) / "trials" / "trunk.ckpt"
    missing = [factor for factor in FACTORS if f"branch {factor}" not in folder]
    if missing and not checkpoint.exists():
        train_trunk(cli, trunk, checkpoint)
    losses = {}
    for factor in FACTORS:
        losses[factor] = folder.measured(f"branch {factor}", partial(train_branch, cli, factor, trunk, checkpoint))
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


def train_trunk(cli: TuneCLI, tokens: int, checkpoint: Path) -> None:
    """Train to the point from which the branches leave, and save it."""
    cli.train(_options(tokens))
    with quiet():
        cli.trainer.save_checkpoint(checkpoint)


def train_branch(cli: TuneCLI, factor: int, tokens: int, checkpoint: Path) -> list[float]:
    """The losses of a branch as long as the trunk's `tokens`, one for every 8 batches of the unchanged size.

    One that diverges ends early.
    """
    options = {**_options(2 * tokens), "data.batch_tokens": factor * cli.config.data.batch_tokens}
    done = cli.train(options, callbacks=[ScaleOptimizer(factor)], checkpoint=checkpoint)
    per_point = FACTORS[-1] // factor
    return [float(np.mean(done.losses[i : i + per_point])) for i in range(0, len(done.losses), per_point)]


def compare_branches(losses: dict[int, list[float]]) -> list[Branch]:
    """Each branch against factor 1, pair by pair over the last third of the points."""
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

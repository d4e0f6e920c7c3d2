"""Two sections of benchmark_tuning.py: do the intervals of `tune lr` hold, and how good is its answer at full length?

coverage  simulated searches, noise 0.01 nats: how often the 90% interval holds the minimum, its bias and width
horizon   the answer for whole runs (CASES), and the loss that it, the former rule (the trials' best x tokens^-0.32)
          and a grid of learning rates end at, two seeds that the search did not use
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from gpt_lightning.run.stack import read_stack
from gpt_lightning.tune.lr.halving import search
from gpt_lightning.tune.lr.verb import LearningRateConfig, tune_learning_rate
from gpt_lightning.tune.results import TuneFolder
from gpt_lightning.tune.trials import identity, train
from gpt_lightning.tune.verb import Job

console = Console(highlight=False, soft_wrap=True)
SEEDS = (10, 11)
SHAPES: dict[str, Callable[[float], float]] = {  # nats over u = octaves above the minimum
    "symmetric": lambda u: 0.02 * u * u,
    "1.5 x above": lambda u: 0.02 * u * u * (1.5 if u > 0 else 1),
    "4 x above": lambda u: 0.02 * u * u * (4 if u > 0 else 1),
    "half above": lambda u: 0.03 * u * u * (0.5 if u > 0 else 1),
    "power 1.5": lambda u: 0.03 * abs(u) ** 1.5 * (2 if u > 0 else 1),
    "wall above": lambda u: 0.02 * u * u + 0.02 * (math.exp(v := max(u - 0.5, 0)) - 1 - v),
}


@dataclass(frozen=True)
class Case:
    """A model and the length of its run; grid: learning rates that are tried at full length."""

    name: str
    optimizer: str
    n_layers: int
    width: int
    steps: int
    batch_tokens: int
    grid: tuple[float, ...]

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_tokens

    @property
    def options(self) -> dict[str, Any]:
        return {
            "model.gpt.n_layers": self.n_layers,
            "data.batch_tokens": self.batch_tokens,
            "max_tokens": self.tokens,
            "model.schedule.warmup_tokens": self.tokens // 16,
        }


CASES = (
    Case("adamw 2x64", "adamw", 2, 64, 2_000, 512, (1.4e-3, 2.8e-3, 3.7e-3, 5.5e-3, 1.1e-2)),  # seen while designing
    Case("muon 2x96", "muon", 2, 96, 2_000, 512, (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)),
    Case("adamw 3x96", "adamw", 3, 96, 1_000, 1_024, (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)),
)


def simulated(shape: Callable[[float], float], seed: int) -> tuple[bool, float, float]:
    """Whether the interval of one search held the minimum, its error and its width in octaves."""
    random = np.random.default_rng(seed)
    best, exponent = random.uniform(-9.5, -8.5), random.uniform(-0.4, 0.3)

    def loss(lr: float, tokens: int, seed: int) -> float:
        u = math.log2(lr) - best - exponent * math.log2(tokens / 1000)
        return 3 + shape(u) + 0.3 * seed + 0.01 * random.standard_normal()

    found = search(loss, 2.0**-7, 1000, 2, 1000).answer.trials
    low, value, high = (math.log2(v) for v in (found.low, found.value, found.high))
    return low <= best <= high, value - best, high - low


def benchmark_coverage(folder: Path, n: int = 300) -> None:
    console.print(f"\n{n} searches each: intervals that hold the minimum, bias and median width in octaves")
    for name, shape in SHAPES.items():
        rows = np.array([simulated(shape, seed) for seed in range(n)], dtype=float)
        held, bias, width = rows[:, 0].mean(), rows[:, 1].mean(), np.median(rows[:, 2])
        console.print(f"{name:12s} {held:5.0%} {bias:+6.2f} {width:6.2f}")


def benchmark_horizon(folder: Path, stack: Callable[..., list[str]]) -> None:
    for case in CASES:
        horizon_case(case, folder / case.name.replace(" ", "-"), stack)


def horizon_case(case: Case, folder: Path, stack: Callable[..., list[str]]) -> None:
    """What tune lr recommends for one case, and the final losses of it, the former rule and a grid."""
    flags = [*stack(case.width, case.optimizer, **case.options), f"--tune.dir={folder}"]
    ours, settings = read_stack(flags, "tune lr", settings=LearningRateConfig)
    with TuneFolder(settings.dir, identity(ours, settings)) as kept, Progress(disable=True) as progress:
        found = tune_learning_rate(Job(ours, settings, kept, progress))
        rule = float(f"{found.found.answer.trials.value * (case.tokens / found.trial_tokens) ** -0.32:.1e}")
        console.print(f"\n{case.name}: {found.explanation}")
        console.print(f"recommended: {found.recommendation}, for {found.tokens / case.tokens:.0%} of the run")
        means: dict[float, float] = {}
        for lr in sorted({found.lr, rule, *case.grid}):

            def final(seed: int, lr: float = lr) -> Any:
                loss = train(ours, {"model.optim.lr": lr}, seed, val_tokens=50_000).val_loss
                return loss if math.isfinite(loss) else None

            losses = [kept.measured(f"whole lr {lr} seed {seed}", lambda seed=seed: final(seed)) for seed in SEEDS]
            means[lr] = math.inf if None in losses else sum(losses) / len(losses)
            whose = "recommended" if lr == found.lr else "tokens^-0.32" if lr == rule else ""
            console.print(f"lr {lr:.1e}: {means[lr]:.3f} {whose}")
        console.print(f"above the lowest: recommended {means[found.lr] - min(means.values()):.3f} nats")

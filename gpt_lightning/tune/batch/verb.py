"""The verb `tune batch`: the micro-batch that is fastest, the batch that is worth its tokens, and what lr becomes.

    micro-batches 1, 2, 4, ...   -> seconds and bytes of each     (micro_batch.py)
    gradient noise in a short run -> critical batch B_crit         (callbacks/gradient_noise.py)
    batch B                       -> tokens to the same loss grow as 1 + B / B_crit (McCandlish et al. 2018, eq. 2.11)

The recommended batch is the one with the least time to the same loss on this machine: (1 + B / B_crit) x seconds per
token. It stays within a factor 4 of the present one; start again from there for more. Where the learning rate suits the
present batch, another one wants another one, and other betas and weight decay (optim/rescale.py).
"""

from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from gpt_lightning.callbacks.gradient_noise import CriticalBatch, GradientNoiseScale, critical_batch
from gpt_lightning.optim.rescale import ramp_overlay, rescaled, rounded
from gpt_lightning.run.stack import Stack
from gpt_lightning.tune.batch.branches import Branch, check_length, measure_branches
from gpt_lightning.tune.batch.choice import Choice, choose_batch
from gpt_lightning.tune.batch.figure import batch_figure
from gpt_lightning.tune.batch.micro_batch import (
    MicroBatch,
    knee,
    measure_micro_batch,
    measure_micro_batches,
    memory_limit,
)
from gpt_lightning.tune.results import IfExists
from gpt_lightning.tune.trials import identity, train
from gpt_lightning.tune.verb import Job, Verb

MICRO_BATCHES = 8  # per step while the noise is measured: more would mean less exact small gradients


@dataclass(frozen=True)
class BatchConfig:
    """Find the fastest micro-batch, the critical batch, and the learning rate and beta2 that go with a new batch."""

    tokens: int | None = None
    """Length of the run in which gradient noise is measured, and of each branch; a twentieth of max_tokens when not
    given."""
    branches: bool = False
    """Also train on from one checkpoint with 1, 2, 4 and 8 times the batch: does the loss recover?"""
    dir: str = "runs/batch"
    """Folder for result.json, figure.png and tuned.yaml."""
    if_exists: IfExists = "resume"
    """resume goes on where the same measurement was interrupted; overwrite starts anew."""

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"tune.tokens {self.tokens}: must be at least 1")


@dataclass(frozen=True)
class BatchResult:
    """What was measured and what follows; `now` is the stack's own batch, `changes` the overlay."""

    context_length: int
    sizes: list[MicroBatch]
    critical: CriticalBatch
    noise: list[tuple[float, float]]
    now: Choice
    best: Choice
    optim: dict[str, Any]
    """lr, betas and, where it is a number, weight_decay that go with the best batch."""
    branches: list[Branch]
    changes: dict[str, Any]

    @property
    def recommendation(self) -> str:
        best = self.best
        batch = f"batch_tokens {best.batch_tokens:,} ({best.accumulation} x {best.micro_batch_size} sequences)"
        return f"{batch}, lr {self.optim['lr']:.1e}, beta2 {self.optim['betas'][1]:g}"

    @property
    def explanation(self) -> str:
        c, now = self.critical, self.now
        noise = (
            f"critical batch {c.tokens:,.0f} tokens, 90% interval {c.low:,.0f} to {c.high:,.0f}, early in training\n"
        )
        if not is_known(c):
            return noise + "so it is hardly known, and the batch stays; measure longer with a larger --tune.tokens"
        return (
            noise + f"the present {now.batch_tokens:,} tokens need {now.relative_time:.2f} x the time to the same loss"
        )

    def notes(self) -> list[str]:
        """What the branches say."""
        words = {True: "recovers", False: "does not recover", None: "cannot tell"}
        return [
            f"branch x {branch.factor}: {words[branch.recovers]} ({branch.difference:+.4f} nats per token)"
            for branch in self.branches
        ]

    def overlay(self) -> dict[str, Any]:
        """The batch, and the optimizer's settings that go with it."""
        return self.changes

    def figure(self) -> Figure:
        """Throughput, memory and the price of a batch."""
        return batch_figure(self)

    def table(self) -> Table:
        """One row per micro-batch."""
        table = Table(title="micro-batches", title_justify="left", title_style="bold")
        for name in ("sequences", "tokens/s", "memory", "ms per micro-step", "ms per update"):
            table.add_column(name, justify="right")
        fastest = knee(self.sizes)
        for one in self.sizes:
            row = (
                f"{one.micro_batch_size}",
                f"{one.tokens_per_second(self.context_length):,.0f}",
                f"{one.peak_bytes / 1e9:.2f} GB",
                f"{one.micro_step_seconds * 1e3:,.1f}",
                f"{one.update_seconds * 1e3:,.1f}",
            )
            table.add_row(*row, style="bold" if one is fastest else "")
        return table

    def to_dict(self) -> dict[str, Any]:
        """What result.json holds."""
        return {
            "batch_tokens": self.best.batch_tokens,
            "micro_batch_size": self.best.micro_batch_size,
            "accumulation": self.best.accumulation,
            **self.optim,
            "critical_batch_tokens": self.critical.tokens,
            "critical_batch_tokens_90": [self.critical.low, self.critical.high],
            "now": asdict(self.now),
            "best": asdict(self.best),
            "micro_batches": [asdict(one) for one in self.sizes],
            "largest_micro_batch": self.sizes[-1].micro_batch_size,
            "knee_micro_batch": knee(self.sizes).micro_batch_size,
            "noise": [list(pair) for pair in self.noise],
            "branches": [{**asdict(branch), "recovers": branch.recovers} for branch in self.branches],
        }


def tune_batch(job: Job) -> BatchResult:
    """Measure, or take from the folder, and choose."""
    stack, folder = job.stack, job.folder
    T, batch_tokens = stack["data.context_length"], stack["data.batch_tokens"]
    tokens = job.settings.tokens or stack["max_tokens"] // 20
    if job.settings.branches:
        check_length(tokens, batch_tokens)
    bar = job.progress.add_task("micro-batches", total=None)

    def micro_batch(size: int) -> MicroBatch | None:
        job.progress.update(bar, description=f"micro-batch {size}")
        return _from_json(folder.measured(f"micro-batch {size}", lambda: _to_json(measure_micro_batch(stack, size))))

    limit = folder.measured("memory limit", lambda: memory_limit(stack["trainer.accelerator"]))
    sizes = measure_micro_batches(micro_batch, limit)
    job.progress.update(bar, description=f"gradient noise over {tokens:,} tokens")
    noise = folder.measured("noise", lambda: measure_noise(stack, tokens, sizes[-1].micro_batch_size))
    settled = [(square, variance) for square, variance in noise[len(noise) // 2 :]]
    critical = critical_batch(settled, T)
    branches = []
    if job.settings.branches:
        job.progress.update(bar, description="branches")
        branches = measure_branches(stack, folder, tokens)
    now, best = choose_batch(sizes, critical.tokens, T, stack.n_devices, batch_tokens)
    best = best if is_known(critical) else now
    optim = rounded(rescaled(stack["model.optim"].as_dict(), best.batch_tokens / batch_tokens))
    ramp = ramp_overlay(stack["batch_ramp"].as_dict(), best.micro_step_tokens, best.batch_tokens)
    data = {"batch_tokens": best.batch_tokens, "micro_batch_size": best.micro_batch_size}
    changes = {"model": {"optim": optim}, "data": data, **ramp}
    return BatchResult(T, sizes, critical, settled, now, best, optim, branches, changes)


def is_known(critical: CriticalBatch) -> bool:
    """To a factor of 4, that is: a single step of large noise can move it by a hundred."""
    return critical.high <= 4 * critical.low


def measure_noise(stack: Stack, tokens: int, largest: int) -> list[tuple[float, float]]:
    """(|G|^2, S) of every step of a run of `tokens` of the stack, its batch split into 8 micro-batches where it can.

    largest: sequences in a micro-batch that are known to fit.
    """
    batch_tokens = stack["data.batch_tokens"]
    sequences = batch_tokens // stack["data.context_length"]
    wanted = min(largest, max(sequences // MICRO_BATCHES, 1))
    micro_batch_size = next(n for n in range(wanted, 0, -1) if sequences % n == 0)
    callback = GradientNoiseScale(interval_steps=1)
    options = {"data.micro_batch_size": micro_batch_size, "max_tokens": tokens, "batch_ramp.ramp_tokens": 0}
    train(stack, options, callbacks=[callback])
    estimates = callback.estimates
    if len(estimates) < 8:
        raise ValueError(
            f"tune.tokens {tokens} gives {len(estimates)} steps to measure noise in, expected at least 8; "
            f"set --tune.tokens {8 * batch_tokens} or more"
        )
    return estimates


def _to_json(size: MicroBatch | None) -> dict[str, Any] | None:
    return None if size is None else asdict(size)


def _from_json(value: dict[str, Any] | None) -> MicroBatch | None:
    return None if value is None else MicroBatch(**value)


VERB = Verb("tune batch", BatchConfig, tune_batch, identity)

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

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gpt_lightning.callbacks.gradient_noise import CriticalBatch, GradientNoiseScale, critical_batch
from gpt_lightning.optim.rescale import rescaled, rounded
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
from gpt_lightning.tune.results import IfExists, TuneFolder
from gpt_lightning.tune.stack import n_devices
from gpt_lightning.tune.suggest.advice import ramp_layer
from gpt_lightning.tune.trials import TuneCLI

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
    """What was measured and what follows; `now` is the stack's own batch."""

    context_length: int
    sizes: list[MicroBatch]
    critical: CriticalBatch
    noise: list[tuple[float, float]]
    now: Choice
    best: Choice
    optim: dict[str, Any]
    """lr, betas and, where it is a number, weight_decay that go with the best batch."""
    branches: list[Branch]

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


def tune_batch(cli: TuneCLI, folder: TuneFolder, progress: Progress) -> BatchResult:
    """Measure, or take from `folder`, and choose."""
    config, settings = cli.config, cli.settings
    data = config.data
    T, batch_tokens = data.context_length, data.batch_tokens
    tokens = settings.tokens or config.max_tokens // 20
    if settings.branches:
        check_length(tokens, batch_tokens)
    bar = progress.add_task("micro-batches", total=None)

    def micro_batch(size: int) -> MicroBatch | None:
        progress.update(bar, description=f"micro-batch {size}")
        return _from_json(folder.measured(f"micro-batch {size}", lambda: _to_json(measure_micro_batch(cli, size))))

    limit = folder.measured("memory limit", lambda: memory_limit(config.trainer.accelerator))
    sizes = measure_micro_batches(micro_batch, limit)
    progress.update(bar, description=f"gradient noise over {tokens:,} tokens")
    noise = folder.measured("noise", lambda: measure_noise(cli, tokens, sizes[-1].micro_batch_size))
    settled = [(square, variance) for square, variance in noise[len(noise) // 2 :]]
    critical = critical_batch(settled, T)
    branches = []
    if settings.branches:
        progress.update(bar, description="branches")
        branches = measure_branches(cli, folder, tokens)
    devices = n_devices(config.trainer.as_dict())
    now, best = choose_batch(sizes, critical.tokens, T, devices, batch_tokens)
    optim = rounded(rescaled(config.model.optim.as_dict(), best.batch_tokens / batch_tokens))
    return BatchResult(T, sizes, critical, settled, now, best, optim, branches)


def measure_noise(cli: TuneCLI, tokens: int, largest: int) -> list[tuple[float, float]]:
    """(|G|^2, S) of every step of a run of `tokens` of the stack, its batch split into 8 micro-batches where it can.

    largest: sequences in a micro-batch that are known to fit.
    """
    data = cli.config.data
    sequences = data.batch_tokens // data.context_length
    wanted = min(largest, max(sequences // MICRO_BATCHES, 1))
    micro_batch_size = next(n for n in range(wanted, 0, -1) if sequences % n == 0)
    callback = GradientNoiseScale(interval_steps=1)
    options = {"data.micro_batch_size": micro_batch_size, "max_tokens": tokens, "batch_ramp.ramp_tokens": 0}
    cli.train(options, callbacks=[callback])
    estimates = callback.estimates
    if len(estimates) < 8:
        raise ValueError(
            f"tune.tokens {tokens} gives {len(estimates)} steps to measure noise in, expected at least 8; "
            f"set --tune.tokens {8 * data.batch_tokens} or more"
        )
    return estimates


def run(args: list[str]) -> BatchResult:
    """Parse, measure, write the folder, print the tables and the recommendation."""
    cli = TuneCLI(args, "tune batch", BatchConfig)
    settings, terminal = cli.settings, Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with TuneFolder(settings.dir, cli.question(), settings.if_exists) as folder:
        with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
            result = tune_batch(cli, folder, progress)
        best = result.best
        layer = {**_layer(result), **_ramp(cli.config, best)}
        header = (
            f"The batch with the least time to the same loss on this machine; {_critical(result)}.\n"
            f"lr, betas and weight_decay are those of batch_tokens {result.now.batch_tokens} rescaled."
        )
        folder.finish(result.to_dict(), batch_figure(result), layer, header)
    _report(result, settings.dir)
    return result


def _report(result: BatchResult, folder: str) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(result.table())
    console.print(_critical(result))
    for branch in result.branches:
        word = {True: "recovers", False: "does not recover", None: "cannot tell"}[branch.recovers]
        console.print(f"branch x {branch.factor}: {word} ({branch.difference:+.4f} nats per token)")
    if not result.critical.high <= 4 * result.critical.low:
        console.print("warning: the critical batch is hardly known; measure longer with a larger --tune.tokens")
    now, best = result.now, result.best
    console.print(f"the present {now.batch_tokens:,} tokens need {now.relative_time:.2f} x the time to the same loss")
    batch = f"batch_tokens {best.batch_tokens:,} ({best.accumulation} x {best.micro_batch_size} sequences)"
    optimizer = f"lr {result.optim['lr']:.1e}, beta2 {result.optim['betas'][1]:g}"
    console.print(f"recommendation: {batch}, {optimizer}; add --config {folder}/tuned.yaml")


def _critical(result: BatchResult) -> str:
    c = result.critical
    return f"critical batch {c.tokens:,.0f} tokens, 90% interval {c.low:,.0f} to {c.high:,.0f}, early in training"


def main(arguments: list[str]) -> int:
    """The verb `tune batch`."""
    run(arguments)
    return 0


def _layer(result: BatchResult) -> dict[str, Any]:
    """The batch, and the optimizer's settings that go with it."""
    data = {"batch_tokens": result.best.batch_tokens, "micro_batch_size": result.best.micro_batch_size}
    return {"model": {"optim": result.optim}, "data": data}


def _ramp(config: Any, best: Choice) -> dict[str, Any]:
    return ramp_layer(config.batch_ramp.as_dict(), best.micro_step_tokens, best.batch_tokens)


def _to_json(size: MicroBatch | None) -> dict[str, Any] | None:
    return None if size is None else asdict(size)


def _from_json(value: dict[str, Any] | None) -> MicroBatch | None:
    return None if value is None else MicroBatch(**value)

"""The verb `tune lr`: a range test finds where training diverges, short whole runs below that find the best.

The search finds the learning rate, with a 90% interval, at which a trial of `--tune.tokens` ends lowest. Longer runs
want smaller ones: the answer is that learning rate x (max_tokens / tokens) ^ -0.32, a rule of thumb for AdamW (Bjorck
et al. 2024, arXiv 2409.19913) whose error the interval does not hold; longer trials lean on it less. Settings that
differ by role (muP, lr_ratios) keep their ratios: one multiplier moves them all.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from gpt_lightning.terminal import say
from gpt_lightning.tune.lr.figure import learning_rate_figure
from gpt_lightning.tune.lr.halving import Search, search
from gpt_lightning.tune.lr.range_test import RaiseLearningRate, RangeTest
from gpt_lightning.tune.results import IfExists
from gpt_lightning.tune.trials import identity, train
from gpt_lightning.tune.verb import Job, Verb

HORIZON_EXPONENT = -0.32  # of the best learning rate in the length of a run
LEAST_STEPS = 20  # of the longest trials
DEFAULT_STEPS = 50  # at least, where tokens are not given
COST = 13  # of a whole search in trials of the longest kind, two seeds: for the progress bar


@dataclass(frozen=True)
class LearningRateConfig:
    """Find the best learning rate of a stack: a range test, then short whole runs around what it finds."""

    tokens: int | None = None
    """Length of the longest trials, in tokens; when not given a fortieth of max_tokens, or 50 steps if that is more.
    The search costs 12 to 15 times as much."""
    seeds: int = 2
    """Seeds of the range test and of the last round."""
    val_tokens: int = 50_000
    """Tokens of the validation split that a trial is scored on."""
    dir: str = "runs/lr"
    """Folder for result.json, figure.png and tuned.yaml."""
    if_exists: IfExists = "resume"
    """resume goes on where the same search was interrupted; overwrite starts anew."""

    def __post_init__(self) -> None:
        for name in ("tokens", "seeds", "val_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"tune.{name} {getattr(self, name)}: must be at least 1")


@dataclass(frozen=True)
class LearningRateResult:
    """The best learning rate and how it was found; losses in nats per token."""

    lr_before: float
    range_tests: list[RangeTest]
    found: Search
    tokens: int
    """Trained on in all, range tests included."""
    max_tokens: int
    """Of the run that the answer is for."""

    @property
    def trial_tokens(self) -> int:
        """Of the longest trials."""
        return self.found.rounds[-1].tokens

    @property
    def horizon_factor(self) -> float:
        """The best learning rate of the run over that of the longest trials."""
        return (self.max_tokens / self.trial_tokens) ** HORIZON_EXPONENT

    @property
    def lr(self) -> float:
        """For the run; to two digits, more are not known."""
        return float(f"{self.found.minimum.lr * self.horizon_factor:.1e}")

    @property
    def recommendation(self) -> str:
        return f"lr {self.lr:.1e}"

    @property
    def explanation(self) -> str:
        best, factor = self.found.minimum, self.horizon_factor
        return (
            f"{best.lr:.1e} (90% interval {best.low:.1e} to {best.high:.1e}) is best for {self.trial_tokens:,} tokens; "
            f"for {self.max_tokens:,} it is taken x {factor:.2f}, a rule of thumb (tokens ^ {HORIZON_EXPONENT})"
        )

    def notes(self) -> list[str]:
        """What was spent, and what to beware of."""
        lines = [f"{self.tokens:,} tokens trained on"]
        if self.found.edge:
            side = "smallest" if self.found.edge < 0 else "largest"
            lines.append(f"warning: the best learning rate is the {side} that was tried; the true one may lie beyond")
        return lines

    def overlay(self) -> dict[str, Any]:
        """The learning rate."""
        return {"model": {"optim": {"lr": self.lr}}}

    def figure(self) -> Figure:
        """Range tests, rounds and the fit."""
        return learning_rate_figure(self.range_tests, self.found, self.lr_before, self.lr)

    def table(self) -> Table:
        """One row per learning rate, one column per round."""
        table = Table(title="final validation loss (nats/token)", title_justify="left", title_style="bold")
        table.add_column("lr", justify="right")
        for done in self.found.rounds:
            table.add_column(f"{done.tokens:,} tokens", justify="right")
        for lr in sorted({lr for done in self.found.rounds for lr in done.losses}):
            cells = []
            for done in self.found.rounds:
                values = done.losses.get(lr, [])
                cells.append(_loss(sum(values) / len(values), lr == done.best) if values else "")
            table.add_row(f"{lr:.2e}", *cells)
        return table

    def to_dict(self) -> dict[str, Any]:
        """What result.json holds; the loss of a trial that diverged is infinite."""
        rounds = [
            {
                "tokens": done.tokens,
                "losses": {str(lr): losses for lr, losses in done.losses.items()},
            }
            for done in self.found.rounds
        ]
        return {
            "lr": self.lr,
            "lr_of_trials": self.found.minimum.lr,
            "lr_of_trials_90": [self.found.minimum.low, self.found.minimum.high],
            "horizon_factor": self.horizon_factor,
            "lr_before": self.lr_before,
            "at_edge": bool(self.found.edge),
            "widened": self.found.widened,
            "coefficients_log2": self.found.minimum.coefficients,
            "rounds": rounds,
            "range_tests": [asdict(test) for test in self.range_tests],
            "tokens": self.tokens,
        }


class Trials:
    """Trains what the search asks for, or takes it from the folder; counts tokens and moves the bar."""

    def __init__(self, job: Job, tokens: int):
        self.stack, self.folder, self.tokens = job.stack, job.folder, tokens
        self.val_tokens = job.settings.val_tokens
        self.spent = 0
        self.progress = job.progress
        self._bar = job.progress.add_task("range test", total=COST * tokens)

    def range_test(self, seed: int) -> RangeTest:
        """A range test of half the length of the longest trials, from the weights and the data order of `seed`."""

        def measure() -> dict[str, Any]:
            batch_tokens = self.stack["data.batch_tokens"]
            n_steps = max(self.tokens // 2 // batch_tokens, LEAST_STEPS)
            ramp = RaiseLearningRate(self.stack["model.optim.lr"], n_steps)
            options = {
                "model.schedule.name": "constant",
                "model.schedule.warmup_tokens": 0,
                "batch_ramp.ramp_tokens": 0,
                "max_tokens": (n_steps + 1) * batch_tokens,  # the ramp ends it
            }
            train(self.stack, options, seed, callbacks=[ramp])
            return {**asdict(ramp.result()), "tokens": len(ramp.losses) * batch_tokens}

        measured = self.folder.measured(f"range test seed {seed}", measure)
        self._advance(measured["tokens"])
        return RangeTest(measured["lrs"], measured["losses"])

    def loss(self, lr: float, tokens: int, seed: int) -> float:
        """Final validation loss of a trial; infinite when it diverged."""

        def measure() -> dict[str, Any]:
            done = train(self.stack, {"model.optim.lr": lr, "max_tokens": tokens}, seed, self.val_tokens)
            return {"loss": done.val_loss if math.isfinite(done.val_loss) else None, "tokens": done.tokens}

        self.progress.update(self._bar, description=f"lr {lr:.1e}, {tokens:,} tokens")
        measured = self.folder.measured(f"lr {lr:.6e} tokens {tokens} seed {seed}", measure)
        self._advance(measured["tokens"])
        return math.inf if measured["loss"] is None else measured["loss"]

    def _advance(self, tokens: int) -> None:
        self.spent += tokens
        self.progress.advance(self._bar, tokens)


def tune_learning_rate(job: Job) -> LearningRateResult:
    """Run or resume the search. Raises ValueError for trials too short to tell anything."""
    settings, stack = job.settings, job.stack
    batch_tokens, max_tokens = stack["data.batch_tokens"], stack["max_tokens"]
    tokens = settings.tokens or max(max_tokens // 40, DEFAULT_STEPS * batch_tokens)
    if tokens < LEAST_STEPS * batch_tokens:
        raise ValueError(
            f"tune.tokens {tokens}: a trial needs at least {LEAST_STEPS} steps of {batch_tokens} tokens; "
            f"set --tune.tokens {LEAST_STEPS * batch_tokens} or more"
        )
    share = COST * tokens / max_tokens
    say(f"trials of up to {tokens:,} tokens, about {COST * tokens:,} in all: {share:.0%} of the run itself")
    trials = Trials(job, tokens)
    tests = [trials.range_test(seed) for seed in range(settings.seeds)]
    upper = math.exp(sum(math.log(test.upper) for test in tests) / len(tests))  # the geometric mean
    found = search(trials.loss, upper, tokens, settings.seeds)
    return LearningRateResult(stack["model.optim.lr"], tests, found, trials.spent, max_tokens)


def _loss(value: float, is_best: bool) -> str:
    text = f"{value:.4f}" if math.isfinite(value) else "diverged"
    return f"[bold]{text}[/bold]" if is_best else text


VERB = Verb("tune lr", LearningRateConfig, tune_learning_rate, identity)

"""The verb `tune lr`: a range test finds where training diverges, short whole runs below that find the best.

The search finds the learning rate at which a trial ends lowest, for trials of several lengths, and from these that of
the whole run, with a 90% interval that holds the way from trials to run as well (horizon.py); longer trials narrow it.
Settings that differ by role (muP, lr_ratios) keep their ratios: one multiplier moves them all.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from gpt_lightning.run.stack import Stack
from gpt_lightning.terminal import say
from gpt_lightning.tune.lr.halving import search
from gpt_lightning.tune.lr.range_test import RaiseLearningRate, RangeTest
from gpt_lightning.tune.lr.result import LearningRateResult
from gpt_lightning.tune.results import IfExists
from gpt_lightning.tune.trials import identity, train
from gpt_lightning.tune.verb import Job, Verb

LEAST_STEPS = 20  # of a trial of round 3
DEFAULT_STEPS = 50  # at least, where tokens are not given
LONGER = 2  # times the cost of a search, where round 4 is added


@dataclass(frozen=True)
class LearningRateConfig:
    """Find the best learning rate of a stack: a range test, then short whole runs around what it finds."""

    tokens: int | None = None
    """Length of the trials of round 3, in tokens; when not given 1/80 of max_tokens, or 50 steps if that is more. The
    search costs 12 to 15 times as much, 25 to 30 times where the answer stays vague and trials are lengthened."""
    seeds: int = 2
    """Seeds of the range test and of round 3."""
    val_tokens: int = 50_000
    """Tokens of the validation split that a trial is scored on."""
    lengthen: bool = True
    """Whether to go on with trials four times as long where the answer stays vague."""
    dir: str = "runs/lr"
    """Folder for result.json, figure.png and tuned.yaml."""
    if_exists: IfExists = "resume"
    """resume goes on where the same search was interrupted; overwrite starts anew."""

    def __post_init__(self) -> None:
        for name in ("tokens", "seeds", "val_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"tune.{name} {getattr(self, name)}: must be at least 1")


class Trials:
    """Trains what the search asks for, or takes it from the folder; counts tokens and moves the bar."""

    def __init__(self, job: Job, tokens: int):
        self.stack, self.measured, self.tokens = job.stack, job.measured, tokens
        self.val_tokens = job.settings.val_tokens
        self.spent = 0
        self.progress = job.progress
        self._cost = cost(job.settings.seeds) * tokens
        self._bar = job.progress.add_task("range test", total=self._cost)

    def range_test(self, seed: int) -> RangeTest:
        """A range test of half the length of the trials of round 3, from the weights and the data order of `seed`."""

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

        measured = self.measured(f"range test seed {seed}", measure)
        self._advance(measured["tokens"])
        return RangeTest(measured["lrs"], measured["losses"])

    def loss(self, lr: float, tokens: int, seed: int) -> float:
        """Final validation loss of a trial; infinite when it diverged."""

        def measure() -> dict[str, Any]:
            done = train(self.stack, {"model.optim.lr": lr, "max_tokens": tokens}, seed, self.val_tokens)
            return {"loss": done.val_loss if math.isfinite(done.val_loss) else None, "tokens": done.tokens}

        self.progress.update(self._bar, description=f"lr {lr:.1e}, {tokens:,} tokens")
        if tokens > self.tokens:
            self.progress.update(self._bar, total=LONGER * self._cost)
        measured = self.measured(f"lr {lr:.6e} tokens {tokens} seed {seed}", measure)
        self._advance(measured["tokens"])
        return math.inf if measured["loss"] is None else measured["loss"]

    def _advance(self, tokens: int) -> None:
        self.spent += tokens
        self.progress.advance(self._bar, tokens)


def default_tokens(stack: Stack) -> int:
    """Length of the trials of round 3 where none is given."""
    return max(stack["max_tokens"] // 80, DEFAULT_STEPS * stack["data.batch_tokens"])


def cost(seeds: int) -> float:
    """Of a search as far as round 3, x the tokens of its trials: range tests of a half, and the rounds (halving.py)."""
    return seeds * 0.5 + 7 * 0.25 + 4 * 0.5 + 4 * seeds


def tune_learning_rate(job: Job) -> LearningRateResult:
    """Run or resume the search. Raises ValueError for trials too short to tell anything."""
    settings, stack = job.settings, job.stack
    tokens = settings.tokens or default_tokens(stack)
    check_length(tokens, stack["data.batch_tokens"])
    about = cost(settings.seeds) * tokens
    longer = f"; {LONGER} times that where the answer stays vague" if settings.lengthen else ""
    share = about / stack["max_tokens"]
    say(f"trials of up to {tokens:,} tokens, about {about:,.0f} in all: {share:.0%} of the run itself{longer}")
    return find_learning_rate(job, tokens)


def find_learning_rate(job: Job, tokens: int) -> LearningRateResult:
    """The search with trials of up to `tokens`, without a word."""
    settings, stack = job.settings, job.stack
    trials = Trials(job, tokens)
    tests = [trials.range_test(seed) for seed in range(settings.seeds)]
    upper = math.exp(sum(math.log(test.upper) for test in tests) / len(tests))  # the geometric mean
    found = search(trials.loss, upper, tokens, settings.seeds, stack["max_tokens"], settings.lengthen)
    return LearningRateResult(stack["model.optim.lr"], tests, found, trials.spent, stack["max_tokens"])


def check_length(tokens: int, batch_tokens: int) -> None:
    """Raise ValueError for trials too short to tell anything."""
    if tokens < LEAST_STEPS * batch_tokens:
        raise ValueError(
            f"tune.tokens {tokens}: a trial needs at least {LEAST_STEPS} steps of {batch_tokens} tokens; "
            f"set --tune.tokens {LEAST_STEPS * batch_tokens} or more"
        )


VERB = Verb("tune lr", LearningRateConfig, tune_learning_rate, identity)

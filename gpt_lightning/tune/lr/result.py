"""What `tune lr` has found: as numbers, a table, a picture, words and an overlay."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from gpt_lightning.tune.lr.figure import learning_rate_figure
from gpt_lightning.tune.lr.halving import WIDE, Search
from gpt_lightning.tune.lr.horizon import PRIOR, Estimate
from gpt_lightning.tune.lr.range_test import RangeTest


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
        return self.found.answer.run.value / self.found.answer.trials.value

    @property
    def lr(self) -> float:
        """Of the least expected loss at the end of the run; to two digits, more are not known."""
        return float(f"{self.found.answer.lr:.1e}")

    @property
    def recommendation(self) -> str:
        """What to set, and how sure that is."""
        run = self.found.answer.run
        return f"lr {self.lr:.1e} (90% interval {run.low:.1e} to {run.high:.1e})"

    @property
    def explanation(self) -> str:
        """From the trials to the run, and what was used for it."""
        found = self.found.answer
        return (
            f"best for {self.trial_tokens:,} tokens: lr {found.trials}; for {self.max_tokens:,}: {found.run}\n"
            f"between them lr ~ tokens ^ {_exponent(found.exponent)}: of published exponents "
            f"({PRIOR.mean:.2f} +- {PRIOR.sd:.2f}) and of these rounds, which weigh {found.data_weight:.0%}\n"
            f"of least expected loss: lr {self.lr:.1e}; it rises {found.asymmetry:.1f} x as steeply above the best"
        )

    def notes(self) -> list[str]:
        """What was spent, and what to beware of."""
        lines = [f"{self.tokens:,} tokens trained on"]
        if self.found.lengthened:
            lines.append(f"the interval was wider than a factor of {WIDE:.0f}: longer trials were added")
        if self.found.vague:
            lines.append(
                f"warning: the interval spans a factor of {self.found.answer.run.factor:.0f}; longer trials narrow it: "
                f"--tune.tokens {min(2 * self.trial_tokens, self.max_tokens)}"
            )
        if self.found.edge:
            side = "smallest" if self.found.edge < 0 else "largest"
            lines.append(f"warning: the best learning rate is the {side} that was tried; the true one may lie beyond")
        return lines

    def overlay(self) -> dict[str, Any]:
        """The learning rate."""
        return {"model": {"optim": {"lr": self.lr}}}

    def figure(self) -> Figure:
        """Range tests, rounds, the fit and what is taken for the run."""
        return learning_rate_figure(self.range_tests, self.found, self.lr_before, self.max_tokens)

    def table(self) -> Table:
        """One row per learning rate, one column per round."""
        table = Table(title="final validation loss (nats/token)", title_justify="left", title_style="bold")
        table.add_column("lr", justify="right")
        for done in self.found.rounds:
            table.add_column(f"{done.tokens:,} tokens", justify="right")
        for lr in sorted({lr for done in self.found.rounds for lr in done.losses}):
            means = [(done.means.get(lr), lr == done.best) for done in self.found.rounds]
            table.add_row(f"{lr:.2e}", *("" if mean is None else _loss(mean, best) for mean, best in means))
        return table

    def to_dict(self) -> dict[str, Any]:
        """What result.json holds; the loss of a trial that diverged is infinite."""
        found = self.found.answer
        rounds = [
            {"tokens": done.tokens, "losses": {str(lr): losses for lr, losses in done.losses.items()}}
            for done in self.found.rounds
        ]
        return {
            "lr": self.lr,
            "lr_90": [found.run.low, found.run.high],
            "lr_of_trials": found.trials.value,
            "lr_of_trials_90": [found.trials.low, found.trials.high],
            "trial_tokens": self.trial_tokens,
            "horizon_factor": self.horizon_factor,
            "exponent": found.exponent.value,
            "exponent_90": [found.exponent.low, found.exponent.high],
            "exponent_prior": {"mean": PRIOR.mean, "sd": PRIOR.sd},
            "exponent_data_weight": found.data_weight,
            "asymmetry": found.asymmetry,
            "lr_before": self.lr_before,
            "at_edge": bool(self.found.edge),
            "widened": self.found.widened,
            "lengthened": self.found.lengthened,
            "rounds": rounds,
            "range_tests": [asdict(test) for test in self.range_tests],
            "tokens": self.tokens,
        }


def _exponent(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} (90% interval {estimate.low:.2f} to {estimate.high:.2f})"


def _loss(value: float, is_best: bool) -> str:
    text = f"{value:.4f}" if math.isfinite(value) else "diverged"
    return f"[bold]{text}[/bold]" if is_best else text

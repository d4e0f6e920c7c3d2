"""What `tune sweep` has found: the best trial, what mattered, and where to look next."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from matplotlib.figure import Figure
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState, create_trial
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gpt_lightning.terminal import short
from gpt_lightning.tune.sweep.figure import sweep_figure
from gpt_lightning.tune.sweep.read_space import decided
from gpt_lightning.tune.sweep.space import Point, Range
from gpt_lightning.tune.sweep.study import SweepStudy
from gpt_lightning.tune.sweep.worker import Plan

EDGE = 0.05  # of a range: a best value so near to its end may lie beyond
LISTED = 20  # rows of the table at the end
SHOWN = 12  # rows of the table while it grows
LEAST = 8  # trials of which importance says anything


@dataclass(frozen=True)
class SweepTrial:
    """One configuration. scores: by rung; tokens: that it was trained for, all rungs. state: waiting, running, ended,
    dropped, diverged or failed, for a reason."""

    number: int
    point: Point
    state: str
    scores: list[float]
    tokens: int
    reason: str = ""
    val_loss: float = math.nan

    @property
    def unit(self) -> str:
        """Of its scores; in bits per byte where there is a tokenizer."""
        return "nats per token" if self.score == self.val_loss else "bits per byte"

    @property
    def score(self) -> float:
        """At the last rung that it ended; infinite without one."""
        return self.scores[-1] if self.scores else math.inf

    @property
    def order(self) -> tuple[float, float]:
        """Sorts trials: who got further is better, then who scored lower."""
        ended = len(self.scores) if self.scores and math.isfinite(self.scores[-1]) else len(self.scores) - 1
        return -ended, self.score


def read_trials(study: SweepStudy, plan: Plan) -> list[SweepTrial]:
    """The configurations as they are now, by number."""
    trials = []
    for number, trial in sorted(study.configurations.items()):
        known = trial.user_attrs
        scores = known.get("scores", [])
        diverged = bool(scores) and not math.isfinite(scores[-1])
        state = {
            TrialState.WAITING: "waiting",
            TrialState.RUNNING: "running",
            TrialState.COMPLETE: "ended",
            TrialState.PRUNED: "diverged" if diverged else "dropped",
            TrialState.FAIL: "failed",
        }[trial.state]
        spent, reason, val_loss = known.get("tokens", 0), known.get("reason", ""), known.get("val_loss", math.nan)
        trials.append(SweepTrial(number, dict(trial.params), state, scores, spent, reason, val_loss))
    return trials


@dataclass(frozen=True)
class SweepResult:
    """All trials of a sweep."""

    trials: list[SweepTrial]
    plan: Plan
    settings: Any

    @property
    def ranked(self) -> list[SweepTrial]:
        """The best first."""
        return sorted(self.trials, key=lambda trial: trial.order)

    @property
    def best(self) -> SweepTrial | None:
        """The lowest of those that ended the last rung."""
        return min((t for t in self.trials if t.state == "ended"), key=lambda t: t.score, default=None)

    @property
    def own(self) -> SweepTrial | None:
        """That of the stack as it is, if the space holds it; it comes first."""
        first = self.trials[0] if self.trials else None
        return first if first and first.point == self.plan.own else None

    @property
    def tokens(self) -> int:
        """Trained in all."""
        return sum(trial.tokens for trial in self.trials)

    def importance(self) -> dict[str, float]:
        """Share of what the best trials have in common that each setting explains, at the first rung, which all end.

        PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255); settings that only some trials have are left out.
        """
        ended = [trial for trial in self.trials if trial.scores and math.isfinite(trial.scores[0])]
        names = [entry.name for entry in self.plan.space.entries]
        if len(ended) < LEAST or len(names) < 2:
            return {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study()
        for trial in ended:
            kept = {name: trial.point[name] for name in names}
            kinds = {entry.name: entry.distribution() for entry in self.plan.space.entries}
            study.add_trial(create_trial(params=kept, distributions=kinds, value=trial.scores[0]))
        found = PedAnovaImportanceEvaluator().evaluate(study, params=names)
        total = sum(found.values())
        return (
            {name: value / total for name, value in sorted(found.items(), key=lambda item: -item[1])} if total else {}
        )

    def edges(self) -> list[str]:
        """Where the best value lies at the end of its range, in words."""
        lines = []
        for entry in self.plan.space.active(self.best.point) if self.best else []:
            if isinstance(entry, Range):
                share = entry.share(self.best.point[entry.name])  # type: ignore[union-attr]
                if min(share, 1 - share) < EDGE:
                    side, end = ("lower", "low") if share < EDGE else ("upper", "high")
                    lines.append(
                        f"warning: the best {entry.name}, {_number(self.best.point[entry.name])}, lies at the {side} "  # type: ignore[union-attr]
                        f"edge of {_number(entry.low)} to {_number(entry.high)}: move `{end}`"
                    )
        return lines

    @property
    def recommendation(self) -> str:
        """The best trial and what it reached."""
        best, own = self.best, self.own
        if best is None:
            return "no trial ended with a finite score: " + (self._reasons() or "lower model.optim.lr")
        values = ", ".join(
            f"{entry.short} {_number(best.point[entry.name])}" for entry in self.plan.space.active(best.point)
        )
        score = f"{best.score:.4f} {best.unit}"
        if best is own:
            return f"keep the stack as it is: none of {len(self.trials)} trials ends lower than its {score}"
        beside = f"; the stack as it is: {own.score:.4f}" if own and own.state == "ended" else ""
        return f"{values}: {score}, the lowest of {len(self.trials)} trials{beside}"

    @property
    def explanation(self) -> str:
        lengths = ", ".join(short(tokens) for tokens in self.plan.tokens)
        return f"trial {self.best.number} of a sweep with runs of {lengths} tokens" if self.best else ""

    def notes(self) -> Sequence[str]:
        """What it took, what mattered, what to beware of."""
        whole = len(self.trials) * self.plan.tokens[-1]
        lines = [f"{short(self.tokens)} tokens trained, {self.tokens / whole:.0%} of training all to the end"]
        importance = self.importance()
        if importance:
            shares = ", ".join(f"{name} {share:.0%}" for name, share in importance.items())
            lines.append(f"importance at the first rung: {shares}")
        lines += self.edges()
        reasons = self._reasons()
        if reasons:
            lines.append(f"failed: {reasons}")
        if self.best is not None and self.best is not self.own:
            lines.append("the lowest of so many is partly luck: tune compare, with tuned.yaml as an arm, asks again")
        return lines

    def overlay(self) -> dict[str, Any]:
        """Every setting that the best trial decides."""
        if self.best is None:
            return {}
        space, common = self.plan.space, self.plan.stack
        return decided(common, space.stack(common, self.best.point), space.overlays(self.best.point))

    def figure(self) -> Figure:
        return sweep_figure(self)

    def table(self) -> Table:
        """The best trials, the best first; result.json has all."""
        return self._table(self.ranked[:LISTED])

    def live_table(self) -> Table:
        """Those at work, and the best so far."""
        running = [trial for trial in self.ranked if trial.state == "running"]
        others = [trial for trial in self.ranked if trial.state not in ("running", "waiting")]
        return self._table([*running, *others][:SHOWN], live=True)

    def to_dict(self) -> dict[str, Any]:
        """What result.json holds."""
        return {
            "best": self.best and self.best.number,
            "tokens": self.tokens,
            "rungs": self.plan.tokens,
            "importance": self.importance(),
            "trials": [
                {
                    **{"number": t.number, "state": t.state, "scores": t.scores, "tokens": t.tokens},
                    **{"reason": t.reason, "point": t.point},
                }
                for t in self.trials
            ],
        }

    def _table(self, trials: Sequence[SweepTrial], live: bool = False) -> Table:
        n_waiting = sum(trial.state == "waiting" for trial in self.trials)
        title = f"trials, the best first{f', {n_waiting} waiting' if n_waiting else ''}"
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=0, pad_edge=False)
        table.add_column("trial", justify="right")
        table.add_column("state", no_wrap=True)
        for tokens in self.plan.tokens:
            table.add_column(f"after\n{short(tokens)}", justify="right", no_wrap=True)
        entries = list(self.plan.space.all())
        for entry in entries:
            header = entry.short.replace("_", "_\n")
            texts = [_number(trial.point[entry.name]) for trial in trials if entry.name in trial.point]
            width = max(map(len, [*header.splitlines(), *texts]))
            table.add_column(header, justify="right", min_width=width)
        for trial in trials:
            scores = [f"{score:.4f}" if math.isfinite(score) else "diverged" for score in trial.scores]
            scores += [""] * (len(self.plan.tokens) - len(scores))
            values = [_number(trial.point[e.name]) if e.name in trial.point else "" for e in entries]
            style = "bold" if trial is self.best else ""
            state = "" if live and trial.state == "dropped" else trial.state  # it may go on yet
            table.add_row(str(trial.number), "best" if style else state, *scores, *values, style=style)
        return table

    def _reasons(self) -> str:
        return "; ".join(sorted({trial.reason for trial in self.trials if trial.reason}))


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

"""What `tune compare` has found: as numbers, a table, a picture, sentences and an overlay."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from gpt_lightning.terminal import short
from gpt_lightning.tune.compare.costs import Cost
from gpt_lightning.tune.compare.figure import compare_figure
from gpt_lightning.tune.compare.runs import ArmRun
from gpt_lightning.tune.compare.statistics import mean, sd
from gpt_lightning.tune.compare.verdict import HOPELESS, Comparison, compare, is_tested, judge


@dataclass(frozen=True)
class ArmResult:
    """An arm: its overlay with what was tuned for it, its cost, its runs by seed, and what to know of it."""

    name: str
    overlay: dict[str, Any]
    lr: float
    max_tokens: int
    cost: Cost
    runs: list[ArmRun]
    remarks: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Of a run's training steps, undisturbed."""
        return self.cost.seconds_per_token * self.runs[0].tokens


@dataclass(frozen=True)
class CompareResult:
    """Arms, the baseline first, and what they show."""

    arms: list[ArmResult]
    level: float
    remarks: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """Bits per byte where every run has them: comparable across tokenizers."""
        ended = [run for arm in self.arms for run in arm.runs if not run.diverged]
        return "bits per byte" if all(run.bits_per_byte is not None for run in ended) else "nats per token"

    def score(self, run: ArmRun) -> float:
        """Of a run at its end, in `unit`; infinite when it diverged."""
        if run.diverged or self.unit == "nats per token":
            return run.val_loss
        assert run.bits_per_byte is not None
        return run.bits_per_byte

    def points(self, run: ArmRun) -> list[tuple[float, float]]:
        """(tokens, score) of a run's curve, in `unit`."""
        bits = self.unit == "bits per byte"
        return [(tokens, b if bits and b is not None else loss) for tokens, loss, b in run.curve]

    @property
    def comparisons(self) -> list[Comparison]:
        """Every other arm against the baseline."""
        baseline, *others = ([self.score(run) for run in arm.runs] for arm in self.arms)
        named = zip(self.arms[1:], others, strict=True)
        return judge([compare(arm.name, scores, baseline, self.level) for arm, scores in named], self.level)

    @property
    def winner(self) -> ArmResult | None:
        """Of the arms that end surely lower than the baseline the one with the lowest mean."""
        lower = [one.name for one in self.comparisons if one.kind == "lower"]
        arms = [arm for arm in self.arms if arm.name in lower]
        return min(arms, key=lambda arm: mean([self.score(run) for run in arm.runs]), default=None)

    def verdict(self, one: Comparison) -> str:
        """One sentence on an arm."""
        baseline, arm = self.arms[0], next(arm for arm in self.arms if arm.name == one.name)
        tokens, reference = arm.runs[0].tokens, baseline.runs[0].tokens
        when = f"after {tokens:,} tokens" + (f" ({reference:,} of the baseline)" if tokens != reference else "")
        ratio = arm.seconds / baseline.seconds
        when += f" at {ratio:.2f} x the seconds" if math.isfinite(ratio) else ""
        n_tests = sum(map(is_tested, self.comparisons))
        return f"{arm.name}: {one.sentence(self.unit, self.level, n_tests, when)}"

    @property
    def recommendation(self) -> str:
        """Which arm, or why none."""
        winner, found = self.winner, self.comparisons
        lower = [one for one in found if one.kind == "lower"]
        if winner is not None:
            one = next(one for one in lower if one.name == winner.name)
            among = f", lowest of {len(lower)} that do" if len(lower) > 1 else ""
            return f"{winner.name} ends lower here, by {abs(one.relative):.2%}{among}"
        if any(run.diverged for run in self.arms[0].runs):
            return "compare with a baseline that trains: some of its runs diverged; lower model.optim.lr"
        keep = "keep the baseline" + (f", with lr {self.arms[0].lr:.1e}" if self.arms[0].overlay else "")
        open_ = [one for one in found if one.kind in ("cannot tell", "one seed")]
        if not open_:
            return f"{keep}: no arm ends lower here"
        wanted = [one.more_seeds for one in open_ if one.more_seeds is not None and one.more_seeds <= HOPELESS]
        n = len(self.arms[0].runs)
        if any(one.kind == "one seed" for one in open_):
            return "cannot tell from one seed: the same command with --tune.seeds 5"
        if not wanted:
            return f"{keep}: what differs is too small beside the spread of seeds to tell"
        return f"cannot tell yet: the same command with --tune.seeds {n + min(wanted)}"

    @property
    def explanation(self) -> str:
        """How it was compared."""
        n = len(self.arms[0].runs)
        return (
            f"{n} seed{'s' if n > 1 else ''} each, paired: initial weights where they fit, and the same order of data "
            "where arms read the same rows"
        )

    def notes(self) -> Sequence[str]:
        """The verdicts, and what to beware of."""
        lines = [self.verdict(one) for one in self.comparisons]
        lines += [f"{arm.name}: {remark}" for arm in self.arms for remark in arm.remarks]
        lines += self.remarks
        if any(one.test for one in self.comparisons):
            lines.append(
                "p of a paired t test, two-sided: differences are taken to be normal, which so few cannot show"
            )
        if self.recommendation.startswith("cannot tell yet"):
            lines.append(
                "adding seeds until something is found makes a false find likelier, 10% after four looks at level 5%; "
                "for a strict answer take fresh ones: --seed_everything 1000 --data.seed 1000 and another tune.dir"
            )
        return lines

    def overlay(self) -> dict[str, Any]:
        """Of the winner, or of the baseline: nothing, unless its lr was tuned."""
        return (self.winner or self.arms[0]).overlay

    def figure(self) -> Figure:
        return compare_figure(self)

    def table(self) -> Table:
        """A row per arm: score and spread, then what it costs."""
        title = f"{self.unit} after whole runs, and what they cost"
        table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False)
        table.add_column("arm")
        names = ("mean", "sd of\nseeds", "tokens", "tokens\nper s", "peak\nmemory", "param-\neters", "FLOPs\nper token")
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        for arm in self.arms:
            table.add_row(arm.name, *self._row(arm), style="bold" if arm is self.winner else "")
        return table

    def to_dict(self) -> dict[str, Any]:
        """What result.json holds; scores of diverged runs are infinite."""
        return {
            "unit": self.unit,
            "level": self.level,
            "winner": self.winner and self.winner.name,
            "arms": {arm.name: {**asdict(arm), "scores": [self.score(run) for run in arm.runs]} for arm in self.arms},
            "comparisons": {
                one.name: {**asdict(one), "more_seeds": one.more_seeds, "verdict": self.verdict(one)}
                for one in self.comparisons
            },
        }

    def _row(self, arm: ArmResult) -> list[str]:
        scores, cost = [self.score(run) for run in arm.runs], arm.cost
        ended = all(map(math.isfinite, scores))
        return [
            f"{mean(scores):.4f}" if ended else "diverged",
            f"{sd(scores):.4f}" if ended and len(scores) > 1 else "",
            short(max(run.tokens for run in arm.runs)),
            f"{1 / cost.seconds_per_token:,.0f}" if math.isfinite(cost.seconds_per_token) else "unknown",
            "unknown" if cost.peak_bytes is None else f"{cost.peak_bytes / 1e6:,.0f} MB",
            short(cost.n_params),
            short(cost.flops_per_token),
        ]

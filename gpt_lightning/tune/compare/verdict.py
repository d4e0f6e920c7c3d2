"""What the scores of an arm say against the baseline's: one sentence, which says "here" and never "better".

    lower, higher      the paired t test, corrected for the number of arms (Holm), rejects equality
    no difference      its interval lies within 0.5% of the baseline, or every pair is equal
    cannot tell        neither: so many more seeds would be needed
    diverged           some runs did not end with a finite loss, on either side: there is no mean to compare
    one seed           a single pair cannot be tested

A pair is two runs of one seed: the same order of data, and the same initial weights where shapes allow. The differences
are taken to be normal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gpt_lightning.tune.compare.statistics import Test, holm, mean, paired_t, sd, seeds_needed, welch_p

Kind = Literal["lower", "higher", "no difference", "cannot tell", "diverged", "one seed"]
NEGLIGIBLE = 0.005  # of the baseline's score
HOPELESS = 100  # seeds


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline, pair by pair; scores are losses, so lower is better.

    test: of the paired differences, arm less baseline; None where there is nothing to test. p: after Holm's correction.
    level: that each test has of the chance of a false find, which all share.
    """

    name: str
    differences: list[float]
    baseline_mean: float
    baseline_sd: float
    kind: Kind
    test: Test | None = None
    p: float | None = None
    welch_p: float | None = None
    level: float = 0.05
    diverged: tuple[int, int] = (0, 0)
    """Runs of the arm, and of the baseline."""

    @property
    def relative(self) -> float:
        """The mean difference over the baseline's mean."""
        return mean(self.differences) / self.baseline_mean

    @property
    def is_negligible(self) -> bool:
        """Whether the interval of the difference lies within NEGLIGIBLE of the baseline's mean."""
        margin = NEGLIGIBLE * abs(self.baseline_mean)
        return self.test is not None and -margin < self.test.low and self.test.high < margin

    @property
    def more_seeds(self) -> int | None:
        """With so many more, 8 in 10 such comparisons would tell; None where that takes over 1000, or none is asked."""
        if self.kind != "cannot tell" or self.test is None:
            return None
        needed = seeds_needed(self.test.mean / self.test.sd, self.level)
        return None if needed is None else max(needed - len(self.differences), 1)

    def sentence(self, unit: str, level: float, n_tests: int, when: str) -> str:
        """What is known; `when`: after so many tokens, at what price. n_tests: that p was corrected for."""
        n = len(self.differences)
        if self.kind == "diverged":
            arm, baseline = self.diverged
            return f"no mean to compare: {arm} of {n} runs diverged (loss no longer finite), {baseline} of the baseline"
        if not any(self.differences):
            return f"no difference here {when}: all pairs of runs are equal, {_seeds(n)}"
        size = f"{abs(mean(self.differences)):.4f} {unit} ({abs(self.relative):.2%})"
        side = "lower" if self.relative < 0 else "higher"
        if self.test is None:
            return f"cannot tell from one seed: {size} {side} {when}, and no test is possible"
        interval = f"{100 * (1 - level):g}% interval {self.test.low:+.4f} to {self.test.high:+.4f}"
        p = f"p {_p(self.p or 0.0)}{f' (Holm, {n_tests} arms)' if n_tests > 1 else ''}"
        p += f", {_seeds(n)}, the baseline's sd {self.baseline_sd:.4f}"
        if self.kind in ("lower", "higher"):
            little = f"; surely less than {NEGLIGIBLE:.1%}" if self.is_negligible else ""
            return f"{self.kind} here by {size} {when}; {interval}, {p}{little}"
        if self.kind == "no difference":
            within = f"lies within {NEGLIGIBLE:.1%} of the baseline's mean"
            return f"no difference here {when}: the {interval} {within}, {p}"
        return f"cannot tell here: {size} {side} {when}; {interval}, {p}; {self._more()}"

    def _more(self) -> str:
        if self.more_seeds is None or self.more_seeds > HOPELESS:
            return f"more than {HOPELESS} further seeds would be needed for a difference so small beside the spread"
        return f"about {self.more_seeds} further seeds would tell, if the difference is what it seems"


def compare(name: str, arm: Sequence[float], baseline: Sequence[float], level: float) -> Comparison:
    """An arm alone, which `judge` sets beside others. Scores by seed, infinite where a run diverged."""
    pairs = list(zip(arm, baseline, strict=True))
    lost = (sum(math.isinf(a) for a, _ in pairs), sum(math.isinf(b) for _, b in pairs))
    if any(lost):
        return Comparison(name, [math.nan] * len(pairs), math.nan, math.nan, "diverged", diverged=lost)
    differences = [a - b for a, b in pairs]
    known = (name, differences, mean(baseline), sd(baseline))
    if len(pairs) == 1:
        return Comparison(*known, kind="one seed" if any(differences) else "no difference")
    test = paired_t(differences, level)
    return Comparison(*known, "cannot tell", test, test.p, welch_p(arm, baseline))


def judge(comparisons: Sequence[Comparison], level: float) -> list[Comparison]:
    """The same with p corrected for all that differ at all, and what follows."""
    tested = {one.name: one.test for one in comparisons if is_tested(one) and one.test}
    ps = dict(zip(tested, holm([test.p for test in tested.values()]), strict=True))
    judged = []
    for one in comparisons:
        p = ps.get(one.name, one.p)
        if one.test is not None and p is not None:
            one = replace(one, p=p, kind=_kind(one, one.test, p, level), level=level / max(len(tested), 1))
        judged.append(one)
    return judged


def is_tested(one: Comparison) -> bool:
    """Whether there is something that chance could explain."""
    return one.test is not None and any(one.differences)


def _kind(one: Comparison, test: Test, p: float, level: float) -> Kind:
    if p < level:
        return "lower" if test.mean < 0 else "higher"
    return "no difference" if one.is_negligible else "cannot tell"


def _seeds(n: int) -> str:
    return f"{n} seed{'s' if n > 1 else ''}"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else "below 0.0001"

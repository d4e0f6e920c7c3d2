"""The picture of a learning-rate search: the range tests, and final loss over learning rate with the fit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#b9cbe0", "#7d9fc6", "#4576b0", "#143a6b")  # by round, darker is longer
FIT, RUN = "#e0a030", "#c0504d"


def learning_rate_figure(range_tests: Sequence[Any], found: Any, lr_before: float, max_tokens: int) -> Figure:
    """Left: smoothed loss of each range test over lr. Right: a curve per round, the fit, and the answer for the run.

    range_tests: with lrs, smoothed, upper. found: with rounds (tokens, means and finite by lr) and answer (estimates
    trials and run, asymmetry).
    """
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    for seed, test in enumerate(range_tests):
        left.plot(test.lrs, test.smoothed, color="#9db4d0", label="one line a seed" if not seed else None)
        left.axvline(test.upper, color=RUN, linewidth=1, label="turning points" if not seed else None)
    left.set_title("range test: loss while the learning rate rises")
    left.set_ylabel("training loss, smoothed (nats per token)")
    for done, color in zip(found.rounds, COLORS, strict=False):
        means = {lr: done.means[lr] for lr in done.finite}
        right.plot(list(means), list(means.values()), "o-", color=color, label=f"{done.tokens:,} tokens")
    trials, run = found.answer.trials, found.answer.run
    _draw_fit(right, found)
    right.axvspan(trials.low, trials.high, color=FIT, alpha=0.2, label="90% interval")
    right.axvline(trials.value, color=FIT, label=f"best of trials {trials.value:.1e}")
    right.axvspan(run.low, run.high, color=RUN, alpha=0.1, label="90% interval")
    lr = found.answer.lr
    right.axvline(lr, color=RUN, label=f"for {max_tokens:,} tokens {lr:.1e}")
    right.axvline(lr_before, color="#888888", linestyle="--", linewidth=1, label=f"so far {lr_before:.1e}")
    right.set_title("whole short runs")
    right.set_ylabel("final validation loss (nats per token)")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.grid(alpha=0.25)
    left.legend(framealpha=0.9, edgecolor="white", fontsize="small")
    right.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _draw_fit(axes: Axes, found: Any) -> None:
    """The curve with the minimum and the asymmetry that were found, its height and curvature fitted to the last round.

    Drawn where it was fitted, within two octaves of the minimum.
    """
    best, last = found.answer.trials.value, found.rounds[-1]

    def square(lrs: np.ndarray) -> np.ndarray:
        u = np.log2(lrs / best)
        return np.where(u < 0, 1.0, found.answer.asymmetry) * u**2

    lrs = np.array([lr for lr in last.finite if 0.24 < lr / best < 4.1])
    if len(lrs) < 2:
        return
    curvature, height = np.polyfit(square(lrs), [last.means[lr] for lr in lrs], 1)
    drawn = best * 2.0 ** np.linspace(-2, 2, 101)
    axes.plot(drawn, height + curvature * square(drawn), color=FIT, linewidth=2, label="fit, steeper on one side")

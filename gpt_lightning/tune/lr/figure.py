"""The picture of a learning-rate search: the range tests, and final loss over learning rate with the fit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

COLORS = ("#b9cbe0", "#7d9fc6", "#1f4e8c")


def learning_rate_figure(range_tests: Sequence[Any], found: Any, lr_before: float, lr: float) -> Figure:
    """Left: smoothed loss of each range test over lr. Right: a curve per round, the quadratic and its minimum.

    range_tests: with lrs, smoothed, upper. found: with rounds (tokens, losses by lr) and minimum (lr, low, high,
    coefficients in log2 lr). lr: the answer, for the length of the run.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for seed, test in enumerate(range_tests):
        left.plot(test.lrs, test.smoothed, color="#9db4d0", label="one line a seed" if not seed else None)
        left.axvline(test.upper, color="#c0504d", linewidth=1, label="turning points" if not seed else None)
    left.set_title("range test: loss while the learning rate rises")
    left.set_ylabel("training loss, smoothed (nats per token)")
    minimum = found.minimum
    for done, color in zip(found.rounds, COLORS, strict=True):
        finite = {lr: float(np.mean(v)) for lr, v in done.losses.items() if np.isfinite(np.mean(v))}
        right.plot(list(finite), list(finite.values()), "o-", color=color, label=f"{done.tokens:,} tokens")
    if minimum.coefficients is not None:
        x = np.linspace(np.log2(minimum.lr) - 1.6, np.log2(minimum.lr) + 1.6, 100)
        right.plot(2.0**x, np.polyval(minimum.coefficients, x), color="#e0a030", label="quadratic")
    right.axvspan(minimum.low, minimum.high, color="#e0a030", alpha=0.15, label="90% interval")
    right.axvline(minimum.lr, color="#e0a030", label=f"best of trials {minimum.lr:.1e}")
    right.axvline(lr, color="#c0504d", label=f"for the run {lr:.1e}")
    right.axvline(lr_before, color="#888888", linestyle="--", linewidth=1, label=f"so far {lr_before:.1e}")
    right.set_title("whole short runs")
    right.set_ylabel("final validation loss (nats per token)")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.grid(alpha=0.25)
        axes.legend(framealpha=0.9, edgecolor="white", fontsize="small")
    return figure

"""The picture of a comparison: how the arms got there, and how far apart they are at the end, seed by seed."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#555555", "#1f4e8c", "#c0504d", "#e0a030", "#5b9a68", "#8064a2", "#4bacc6", "#a0522d")  # the baseline first


def compare_figure(result: Any) -> Figure:
    """Left: mean validation curves with a band over seeds. Right: differences of each seed, mean and interval.

    result: with arms (name, runs), comparisons (name, differences, test, baseline_sd), unit, level and points(run).
    """
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    colors = {arm.name: COLORS[i % len(COLORS)] for i, arm in enumerate(result.arms)}
    for arm in result.arms:
        _curve(left, arm, [result.points(run) for run in arm.runs], colors[arm.name])
    left.set_xlabel("tokens")
    left.set_ylabel(f"validation, part of the text ({result.unit})")
    left.set_title("mean over seeds; band: lowest to highest")
    left.legend(framealpha=0.9, edgecolor="white", fontsize="small")
    _differences(right, result, colors)
    for axes in (left, right):
        axes.grid(alpha=0.25)
    return figure


def _curve(axes: Axes, arm: Any, curves: list[list[tuple[float, float]]], color: str) -> None:
    """Where some seeds diverged, the others alone."""
    whole = [curve for curve, run in zip(curves, arm.runs, strict=True) if not run.diverged and curve]
    if not whole:
        axes.plot([], [], color=color, label=f"{arm.name} (diverged)")
        return
    length = min(len(curve) for curve in whole)
    tokens = [point[0] for point in whole[0][:length]]
    scores = np.array([[point[1] for point in curve[:length]] for curve in whole])
    lost = len(arm.runs) - len(whole)
    axes.plot(tokens, scores.mean(0), color=color, label=arm.name + (f" ({lost} diverged)" if lost else ""))
    axes.fill_between(tokens, scores.min(0), scores.max(0), color=color, alpha=0.15, linewidth=0)
    last = scores[:, length // 3 :]
    low, high = axes.get_ylim() if len(axes.lines) > 1 else (math.inf, -math.inf)
    axes.set_ylim(min(low, last.min() * 0.99), max(high, last.max() * 1.02))  # the start would flatten the rest


def _differences(axes: Axes, result: Any, colors: dict[str, str]) -> None:
    known = [one for one in result.comparisons if one.kind != "diverged"]
    spread = max((one.baseline_sd for one in known), default=0.0)
    if spread:
        label = "sd of the baseline's seeds"
        axes.axvspan(-spread, spread, color="#999999", alpha=0.15, linewidth=0, label=label)
    axes.axvline(0.0, color=colors[result.arms[0].name], linewidth=1)
    names = [one.name for one in result.comparisons]
    for row, one in enumerate(result.comparisons):
        if one.kind == "diverged":
            axes.annotate("diverged", (0.0, row), color=colors[one.name], ha="center", va="bottom")
            continue
        axes.plot(one.differences, [row] * len(one.differences), "o", color=colors[one.name], alpha=0.5, markersize=5)
        if one.test is not None:
            half = one.test.high - one.test.mean
            axes.errorbar(one.test.mean, row - 0.2, xerr=half, fmt="D", color=colors[one.name], capsize=4, markersize=6)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.6)
    axes.set_xlabel(f"less than the baseline  <  difference ({result.unit})  >  more")
    axes.set_title(f"a dot per seed; mean with {1 - result.level:.0%} interval")
    if spread:
        axes.legend(framealpha=0.9, edgecolor="white", fontsize="small")

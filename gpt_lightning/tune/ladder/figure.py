"""The picture of a ladder: loss over compute and over size, with the law."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

COLORS = ("#b9cbe0", "#7d9fc6", "#4576b0", "#143a6b", "#0b1f3a")
LAW, TARGET = "#888888", "#c0504d"


def ladder_figure(result: Any) -> Figure:
    """Left: loss over FLOPs, a curve per size, and the best of each budget. Right: loss over size at equal compute.

    result: a LadderResult.
    """
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    cheapest = result.runs[0].rung.flops
    budgets = np.geomspace(cheapest, result.flops, 40)
    sizes = {run.n_params: run.rung.size for run in result.runs}
    for i, (n_params, size) in enumerate(sorted(sizes.items())):
        color = COLORS[i % len(COLORS)]
        runs = [run for run in result.runs if run.n_params == n_params]
        left.plot([run.rung.flops for run in runs], [run.loss for run in runs], "o", color=color)
        curve = [result.law.loss(n_params, c / size.flops) for c in budgets]
        left.plot(budgets, curve, color=color, linewidth=0.8, label=f"{size.d_model} x {size.n_layers}")
    best = [min(result.law.loss(s.n_params, c / s.flops) for s in result.sizes) for c in budgets]
    left.plot(budgets, best, "--", color=LAW, linewidth=1.2, label="best size")
    predicted = result.predicted
    error = [[predicted.value - predicted.low], [predicted.high - predicted.value]]
    left.errorbar(result.flops, predicted.value, yerr=error, fmt="*", color=TARGET, markersize=12, label="predicted")
    left.set_xscale("log")
    left.set_xlabel("FLOPs")
    left.set_ylabel("validation loss (nats per token)")
    left.legend(frameon=False, fontsize="small", title="d_model x layers")
    top = max(run.loss for run in result.runs)
    left.set_ylim(top=top * 1.03)
    for factor, color in ((1 / 64, COLORS[0]), (1 / 16, COLORS[1]), (1 / 4, COLORS[2]), (1, TARGET)):
        at = [(s.n_params, result.law.loss(s.n_params, factor * result.flops / s.flops)) for s in result.sizes]
        right.plot(*zip(*at, strict=True), color=color, label=f"{factor * result.flops:.1e} FLOPs")
    right.plot(result.best.n_params, predicted.value, "*", color=TARGET, markersize=12)
    right.axvspan(*result.n_params_90, color=TARGET, alpha=0.1, label="best size, 90%")
    right.set_xscale("log")
    right.set_ylim(top=top * 1.03)
    right.set_xlabel("non-embedding parameters")
    right.set_title("the law at equal compute")
    right.legend(frameon=False, fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.25)
    return figure

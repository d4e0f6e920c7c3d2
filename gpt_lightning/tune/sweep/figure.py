"""The picture of a sweep: every trial as a line over all settings, and its score over each of them."""

import math
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMNS = 4
COLORS = ("#b9cbe0", "#4576b0", "#143a6b", "#0b1f3a")  # by rung, darker is longer
BEST = "#c0504d"


def sweep_figure(result: Any) -> Figure:
    """Above: parallel coordinates, coloured by the score of the first rung. Below: a slice per setting.

    result: a SweepResult.
    """
    entries = list(result.plan.space.all())
    n_rows = -(-len(entries) // COLUMNS)
    figure = Figure(figsize=(13, 4.2 + 3.2 * n_rows), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(4.2, 3.2 * n_rows))
    above, below = parts
    ended = [trial for trial in result.trials if trial.scores and math.isfinite(trial.scores[0])]
    _parallel(above.subplots(), entries, ended, result.best)
    slices = below.subplots(n_rows, min(COLUMNS, len(entries)), squeeze=False, sharey=True)
    for axes, entry in zip(slices.flat, entries, strict=False):
        _slice(axes, entry, ended, result)
    for axes in list(slices.flat)[len(entries) :]:
        axes.set_axis_off()
    slices[0, 0].legend(title="tokens", fontsize="small", frameon=False)
    for row in slices:
        row[0].set_ylabel("score at the end of a rung")
    return figure


def _parallel(axes: Axes, entries: list[Any], trials: list[Any], best: Any) -> None:
    colors = colormaps["viridis_r"]
    first = sorted(trial.scores[0] for trial in trials)
    low, high = (first[0], first[len(first) * 3 // 4]) if first else (0.0, 1.0)
    for trial in sorted(trials, key=lambda t: -t.scores[0]):
        share = min((trial.scores[0] - low) / max(high - low, 1e-9), 1.0)
        _line(axes, entries, trial, color=colors(1 - share), alpha=0.35 + 0.5 * (1 - share), linewidth=1.2)
    if best is not None:
        _line(axes, entries, best, color=BEST, linewidth=2.5)
    axes.set_xticks(range(len(entries)), [entry.short for entry in entries])
    axes.set_ylim(-0.08, 1.08)
    axes.set_yticks([])
    for i, entry in enumerate(entries):
        axes.axvline(i, color="#cccccc", linewidth=0.8, zorder=0)
        for place, text in _labels(entry):
            axes.annotate(text, (i, place), textcoords="offset points", xytext=(4, 0), fontsize=8, color="#555555")
    red = f"; red: the best, {best.number}" if best else ""
    axes.set_title(f"every trial; the lighter the line, the higher its score after the first rung{red}")


def _line(axes: Axes, entries: list[Any], trial: Any, **style: Any) -> None:
    """A trial over the settings that it has."""
    there = [(i, entry) for i, entry in enumerate(entries) if entry.name in trial.point]
    axes.plot([i for i, _ in there], [_share(entry, trial.point[entry.name]) for _, entry in there], **style)


def _slice(axes: Axes, entry: Any, trials: list[Any], result: Any) -> None:
    for rung, tokens in enumerate(result.plan.tokens):
        there = [t for t in trials if entry.name in t.point and len(t.scores) > rung and math.isfinite(t.scores[rung])]
        x = [_share(entry, t.point[entry.name]) for t in there]
        axes.plot(
            x, [t.scores[rung] for t in there], "o", color=COLORS[min(rung, 3)], markersize=4, label=f"{tokens:,}"
        )
    if result.best is not None and entry.name in result.best.point:
        axes.plot(_share(entry, result.best.point[entry.name]), result.best.score, "*", color=BEST, markersize=13)
    places = _labels(entry)
    axes.set_xticks([place for place, _ in places], [text for _, text in places])
    axes.set_xlabel(entry.short)
    axes.set_xlim(-0.1, 1.1)


def _share(entry: Any, value: Any) -> float:
    labels = getattr(entry, "labels", None)
    return entry.share(value) if labels is None else labels.index(value) / max(len(labels) - 1, 1)


def _labels(entry: Any) -> list[tuple[float, str]]:
    labels = getattr(entry, "labels", None)
    if labels is None:
        return [(share, f"{entry.at(share):.3g}") for share in (0.0, 0.5, 1.0)]
    return [(_share(entry, label), str(label)) for label in labels]

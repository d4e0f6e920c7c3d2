"""Figures of the tuning verbs; each takes plain data and gives a matplotlib Figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INSIDE, OUTSIDE, OWN = "#1f4e8c", "#9db4d0", "#c0504d"


def law_figure(
    laws: Sequence[Mapping[str, Any]], centres: Mapping[str, Mapping[str, float]], own: Mapping[str, float]
) -> Figure:
    """Published laws side by side: their learning rates and batches, one line per law.

    laws: rows with `name`, `inside` (whether the case lies where the law was fitted), `lr` and `batch_tokens` (None
    where a law gives none). centres: per quantity its `value`, `low` and `high`. own: the stack's own values.
    """
    shown = [law for law in laws if law["lr"] is not None or law["batch_tokens"] is not None][::-1]
    height = 1.4 + 0.45 * len(shown)
    figure = Figure(figsize=(9, height))  # margins by hand: a layout engine takes a second
    figure.subplots_adjust(left=0.14, right=0.98, bottom=0.6 / height, top=1 - 0.45 / height, wspace=0.06)
    left, right = figure.subplots(1, 2, sharey=True)
    _dots(left, shown, "lr", centres["lr"], own["lr"])
    _dots(right, shown, "batch_tokens", centres["batch_tokens"], own["batch_tokens"])
    left.set_xlabel("peak learning rate")
    right.set_xlabel("tokens per step")
    right.tick_params(left=False)
    left.set_yticks(range(len(shown)), [law["name"] for law in shown])
    handles, labels = left.get_legend_handles_labels()
    for handle, label in zip(*right.get_legend_handles_labels(), strict=True):
        if label not in labels:
            handles.append(handle)
            labels.append(label)
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False)
    return figure


def _dots(axes: "Axes", laws: Sequence[Mapping[str, Any]], key: str, centre: Mapping[str, float], own: float) -> None:
    axes.axvspan(centre["low"], centre["high"], color=INSIDE, alpha=0.08, linewidth=0, label="spread")
    axes.axvline(centre["value"], color=INSIDE, linewidth=1.5, label="centre")
    axes.axvline(own, color=OWN, linewidth=1.2, linestyle="--", label="this stack")
    for inside, color, label in ((True, INSIDE, "law, fitted here"), (False, OUTSIDE, "law, extrapolated")):
        points = [(law[key], y) for y, law in enumerate(laws) if law[key] is not None and bool(law["inside"]) is inside]
        if points:
            values, rows = zip(*points, strict=True)
            axes.scatter(values, rows, color=color, s=45, zorder=3, label=label)
    for y, law in enumerate(laws):
        if law[key] is not None:
            text = f"{law[key]:.1e}" if key == "lr" else f"{law[key]:,.0f}"
            axes.annotate(text, (law[key], y), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 10 else f"{x:.0e}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12)
    axes.set_ylim(-0.6, len(laws) - 0.3)
    axes.grid(alpha=0.25)

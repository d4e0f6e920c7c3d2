"""The figure of `tune verify`: how far activations move, over widths and over depths."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

COLORS = ("#1f4e8c", "#c0504d", "#70a040", "#e0a030", "#7d5fa8", "#4aa3a2")
MARKERS = "osD^vP"


def coordinate_check(
    over_widths: Mapping[int, Mapping[str, float]],
    over_depths: Mapping[int, Mapping[str, float]],
    slopes: tuple[Mapping[str, float], Mapping[str, float]],
    title: str,
) -> Figure:
    """Movement of each kind of activation by size, in log-log; level lines mean that hyper-parameters transfer.

    over_widths, over_depths: mean absolute change by size, then by kind. slopes: of widths, of depths, by kind.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, over_widths, slopes[0], "width of the miniature (d_model)")
    _panel(right, over_depths, slopes[1], "depth of the miniature (n_layers)")
    left.set_ylabel("mean absolute change of activations")
    figure.suptitle(title)
    return figure


def _panel(axes: Axes, by_size: Mapping[int, Mapping[str, float]], slopes: Mapping[str, float], label: str) -> None:
    sizes = list(by_size)
    for i, (kind, slope) in enumerate(slopes.items()):
        moved = [by_size[size][kind] for size in sizes]
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        axes.plot(sizes, moved, color=color, marker=marker, markersize=5, label=f"{kind} {slope:+.2f}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda size, _: f"{size:.0f}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
    axes.grid(alpha=0.25)
    legend = axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), alignment="left")
    legend.set_title("kind and slope")
    legend.get_title().set_fontsize(9)

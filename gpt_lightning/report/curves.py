"""Figures of runs, from the tables that metrics_csv.py reads; each takes data and gives a matplotlib Figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pandas import DataFrame

RUNS = ("#888888", "#1f4e8c", "#c0504d", "#e0a030", "#70a040", "#7d5fa8", "#4aa3a2", "#9db4d0")  # a colour per run


def loss_curve(
    metrics: "DataFrame", baselines: Mapping[str, float] | None = None, unit: str = "bits_per_byte"
) -> Figure:
    """Training and validation loss over tokens, with horizontal lines such as {"gzip -9": 1.93}.

    metrics: rows of metrics.csv. unit: "bits_per_byte", or "loss" for nats per token.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    styles: dict[str, dict[str, Any]] = {
        "train": {"color": "#9db4d0", "linewidth": 1.2},
        "val": {"color": "#1f4e8c", "marker": "o"},
    }
    for split, style in styles.items():
        column = f"{split}/{unit}"
        if column in metrics:
            rows = metrics[["tokens", column]].dropna()
            label = f"{split}, last {rows[column].iloc[-1]:.3f}"
            axes.plot(rows["tokens"] / 1e6, rows[column], label=label, **style)
    for (name, value), color in zip((baselines or {}).items(), ("#c0504d", "#e0a030", "#70a040"), strict=False):
        axes.axhline(value, color=color, linestyle="--", linewidth=1, label=f"{name} {value:.3f}")
    axes.set_xlabel("tokens seen (millions)")
    axes.set_ylabel("bits per byte" if unit == "bits_per_byte" else "loss (nats per token)")
    column = f"val/{unit}"
    if column in metrics:
        axes.set_ylim(top=metrics[column].max() * 1.4)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


def compare_curves(metrics: Mapping[str, "DataFrame"], unit: str = "bits_per_byte") -> Figure:
    """Validation loss of several runs over tokens; a dashed line continues the first run's last value.

    metrics: rows of metrics.csv by the name of the run, eight at most. Where another run crosses the dashed line, it
    is as good as the first one was at its end. unit: "bits_per_byte", or "loss" for nats per token.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    column = f"val/{unit}"
    for number, ((name, table), color) in enumerate(zip(metrics.items(), RUNS, strict=False)):
        rows = table[["tokens", column]].dropna()
        last = rows[column].iloc[-1]
        axes.plot(rows["tokens"] / 1e6, rows[column], "o-", color=color, markersize=4, label=f"{name}, last {last:.3f}")
        if not number:
            axes.axhline(last, color=color, linestyle="--", linewidth=1)
    axes.set_xlabel("tokens seen (millions)")
    axes.set_ylabel("validation " + ("bits per byte" if unit == "bits_per_byte" else "loss (nats per token)"))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


def learning_rate_curve(metrics: "DataFrame") -> Figure:
    """Learning rate and gradient norm over tokens, one above the other."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    rows = metrics[["tokens", "train/lr", "train/grad_norm"]].dropna()
    upper.plot(rows["tokens"] / 1e6, rows["train/lr"], color="#1f4e8c")
    upper.set_ylabel("learning rate")
    lower.semilogy(rows["tokens"] / 1e6, rows["train/grad_norm"], color="#9db4d0")
    lower.set_ylabel("gradient norm")
    lower.set_xlabel("tokens seen (millions)")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
    return figure


def many_curves(
    table: "DataFrame", axis: str, metric: str, ranked: Sequence[str] = (), label: str | None = None
) -> Figure:
    """A metric of any number of runs over `axis`; the best have colours and names, the others are grey.

    table: columns run, `axis` and `metric` (runs.curves). ranked: names of runs, the best first. label: of the axis.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    axes = figure.subplots()
    named = dict(zip(ranked, RUNS[1:], strict=False))
    for name, rows in sorted(table.groupby("run"), key=lambda item: str(item[0]) in named):
        color = named.get(str(name), "#cccccc")
        values = rows[[axis, metric]].dropna().sort_values(axis)
        axes.plot(values[axis], values[metric], ".-", color=color, linewidth=1.4 if name in named else 0.8)
    for name, color in named.items():
        axes.plot([], [], color=color, label=name)
    axes.set_xlabel(label or axis)
    axes.set_ylabel(metric)
    low, high = float(table[metric].min()), float(table[metric].quantile(0.95))
    axes.set_ylim(low - 0.05 * (high - low or 1.0), high + 0.1 * (high - low or 1.0))
    axes.grid(alpha=0.25)
    if named:
        axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def learning_rate_slice(points: Sequence[tuple[Any, Any, Any]], metric: str) -> Figure:
    """Final scores over the learning rate, darker the longer the run. points: (lr, score, tokens)."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    lengths = [tokens or 0 for _, _, tokens in points]
    dots = axes.scatter([p[0] for p in points], [p[1] for p in points], c=lengths, cmap="viridis_r", s=18)
    figure.colorbar(dots, label="tokens")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.25)
    return figure

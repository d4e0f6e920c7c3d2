"""Figures of runs, from the tables that metrics_csv.py reads; each takes data and gives a matplotlib Figure."""

from collections.abc import Mapping
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

"""The picture of a transfer: loss over learning rate at three widths, and the loss that follows for the target."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from gpt_lightning.tune.transfer.prediction import predicted_loss

COLORS = ("#9db4d0", "#4576b0", "#143a6b")  # by width, darker is wider
TARGET = "#c0504d"


def transfer_figure(result: Any) -> Figure:
    """Left: the longest runs of every proxy. Right: loss over parameters, and what is predicted.

    result: a TransferResult.
    """
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for proxy, color in zip(result.proxies, COLORS, strict=True):
        last = proxy.found.found.rounds[-1]
        lrs = list(last.finite)
        left.plot(lrs, [last.means[lr] for lr in lrs], "o-", color=color, label=f"d_model {proxy.size.d_model}")
        left.axvline(proxy.lr, color=color, linewidth=1, linestyle=":")
        right.plot(proxy.size.n_params, proxy.loss, "o", color=color)
    left.axvline(result.lr, color=TARGET, label=f"d_model {result.target.d_model}: {result.lr:.1e}")
    left.set_xscale("log")
    left.set_xlabel("learning rate")
    left.set_ylabel("final validation loss (nats per token)")
    left.set_title("the best learning rate of each width")
    left.legend(frameon=False, fontsize="small")
    sizes = [proxy.size.n_params for proxy in result.proxies]
    losses = [proxy.loss for proxy in result.proxies]
    drawn = np.geomspace(sizes[0], result.target.n_params, 40)
    curve = [predicted_loss(sizes, losses, round(n)) for n in drawn]
    right.fill_between(drawn, [p.low for p in curve], [p.high for p in curve], color=TARGET, alpha=0.15, linewidth=0)
    right.plot(drawn, [p.value for p in curve], color=TARGET, linewidth=1)
    right.plot(result.target.n_params, result.predicted.value, "*", color=TARGET, markersize=13, label="predicted")
    right.set_xscale("log")
    right.set_xlabel("non-embedding parameters")
    right.set_title(f"loss after {result.tokens:,} tokens")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25)
    return figure

"""The picture of a batch search: throughput and memory over the micro-batch, and tokens and time over the batch."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure


def batch_figure(result: Any) -> Figure:
    """Left: tokens per second and memory of each micro-batch. Right: cost of a batch in tokens, and its chosen size.

    result: with context_length, sizes, critical (tokens, low, high), now, best and branches (factor, losses).
    """
    figure = Figure(figsize=(15 if result.branches else 11, 4.2), layout="constrained")
    axes = figure.subplots(1, 3 if result.branches else 2)
    _micro_batches(axes[0], result)
    _batches(axes[1], result)
    if result.branches:
        _branches(axes[2], result)
    for one in axes:
        one.grid(alpha=0.25)
        one.legend(framealpha=0.9, edgecolor="white", fontsize="small")
    return figure


def _micro_batches(axes: Any, result: Any) -> None:
    x = [one.micro_batch_size for one in result.sizes]
    rates = [one.tokens_per_second(result.context_length) for one in result.sizes]
    axes.plot(x, rates, "o-", color="#1f4e8c", label="tokens per second")
    axes.axvline(result.best.micro_batch_size, color="#e0a030", label=f"chosen {result.best.micro_batch_size}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, [str(size) for size in x])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("micro-batch (sequences)")
    axes.set_ylabel("tokens per second")
    memory = axes.twinx()
    memory.plot(x, [one.peak_bytes / 1e9 for one in result.sizes], "s--", color="#9db4d0", markersize=4)
    memory.set_ylabel("peak memory (GB, dashed)", color="#7d9fc6")
    memory.set_ylim(bottom=0)
    axes.set_title("throughput and memory")


def _batches(axes: Any, result: Any) -> None:
    critical = result.critical
    low, high = (min(max(v, 1.0), 1e12) for v in (critical.low, critical.high))
    smallest = min(low, result.now.batch_tokens, result.best.batch_tokens) / 4
    largest = max(high, result.now.batch_tokens, result.best.batch_tokens) * 4
    x = np.geomspace(smallest, largest, 200)
    axes.plot(x, 1 + x / critical.tokens, color="#1f4e8c", label="tokens needed")
    axes.plot(x, 1 + critical.tokens / x, color="#9db4d0", label="steps needed")
    axes.axvspan(low, high, color="#e0a030", alpha=0.15)
    axes.axvline(critical.tokens, color="#e0a030", label=f"critical {critical.tokens:,.0f}")
    axes.axvline(result.now.batch_tokens, color="#888888", linestyle="--", label=f"now {result.now.batch_tokens:,}")
    axes.axvline(result.best.batch_tokens, color="#c0504d", label=f"chosen {result.best.batch_tokens:,}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("batch (tokens)")
    axes.set_ylabel("over the least possible")
    axes.set_title("price of a batch")


def _branches(axes: Any, result: Any) -> None:
    for branch, color in zip(result.branches, ("#888888", "#b9cbe0", "#7d9fc6", "#1f4e8c"), strict=True):
        points = np.arange(1, len(branch.losses) + 1)
        axes.plot(points, branch.losses, color=color, label=f"batch x {branch.factor}")
    axes.set_xlabel("windows of 8 batches of the present size")
    axes.set_ylabel("loss at the start of a window (nats per token)")
    axes.set_title("branches from one checkpoint")

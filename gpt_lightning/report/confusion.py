"""The picture of a classification: which labels were said for each that is right."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

NUMBERED = 20  # labels, up to which a cell has its number


def confusion_figure(counts: np.ndarray, labels: Sequence[str]) -> Figure:
    """counts: [label, predicted]. A cell's shade is its share of the row, so that rare labels are seen as well."""
    n = len(labels)
    side = min(max(4.0, 1.8 + 0.45 * n), 16.0)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the label", shrink=0.8)
    size = 9 if n <= NUMBERED else 6
    axes.set_xticks(range(n), labels, rotation=90, fontsize=size)
    axes.set_yticks(range(n), labels, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    if n <= NUMBERED:
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8)
    return figure

"""The loss of the target from those of its proxies: L(N) = E + A / N^a, over all a and E that the proxies allow.

Three sizes do not tell three numbers apart, so the exponent has what was published for its prior, E is anything from
none to all of the lowest loss, and the noise of a run anything about half a percent; what is printed is the middle of
all curves that pass the proxies, with 90% of the runs that they lead one to expect.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EXPONENT, EXPONENT_SD = 0.35, 0.15  # of N, as in Hoffmann et al. 2022 and its refit, arXiv 2404.10102: 0.34, 0.35
NOISES = 0.0025 * 2.0 ** np.arange(6)  # of a run, as a share of its loss
NOISE, NOISE_FACTOR = 0.005, 2.0  # the middle of what is expected of it, and how far off that may be
NORMAL = np.array([-1.645, -1.036, -0.674, -0.385, -0.126, 0.126, 0.385, 0.674, 1.036, 1.645])  # a normal as 10 points


@dataclass(frozen=True)
class PredictedLoss:
    """Nats per token, with the 90% interval."""

    value: float
    low: float
    high: float


def predicted_loss(n_params: Sequence[int], losses: Sequence[float], target: int) -> PredictedLoss:
    """Of a model of `target` parameters, trained as its proxies were."""
    sizes, known = np.array(n_params, float), np.array(losses, float)
    exponents = np.linspace(0.05, 0.9, 35)[:, None]
    floors = np.linspace(0.0, known.min(), 61)[None, :-1]
    shape = (sizes / sizes[0]) ** -exponents[..., None]  # exponents, floors, sizes
    above = known - floors[..., None]
    amounts = (shape * above).sum(-1) / (shape**2).sum(-1)
    misfit = ((above - amounts[..., None] * shape) ** 2).sum(-1)
    noises = NOISES * known.mean()
    of_noise = -0.5 * (np.log(NOISES / NOISE) / np.log(NOISE_FACTOR)) ** 2 - len(sizes) * np.log(noises)
    of_exponent = -0.5 * ((exponents - EXPONENT) / EXPONENT_SD) ** 2
    log_weights = (of_exponent - 0.5 * misfit / noises[:, None, None] ** 2) + of_noise[:, None, None]
    weights = np.exp(log_weights - log_weights.max())
    there = floors + amounts * (target / sizes[0]) ** -exponents
    runs = there + (noises[:, None] * NORMAL)[..., None, None]  # noises, normal, exponents, floors
    chances = np.broadcast_to(weights[:, None], runs.shape).ravel()
    order = np.argsort(runs, axis=None)
    reached = np.cumsum(chances[order]) / chances.sum()
    low, value, high = np.interp([0.05, 0.5, 0.95], reached, runs.ravel()[order])
    return PredictedLoss(float(value), float(low), float(high))

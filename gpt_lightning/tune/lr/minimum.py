"""Where the loss is lowest over the learning rate, for runs of any length: one posterior over all rounds of a search.

    loss(lr) = offset of the seed + k u^2 (below the minimum) or + k r u^2 (above),    u = log2(lr / minimum)
    log2 minimum(tokens) = a random walk in log2 tokens: exponent x octaves, +- WOBBLE x root of octaves

Real curves are steeper on one side than on the other, and the minimum of a symmetric parabola through them lies up to
0.4 octaves off: here r is unknown, and shared by all rounds. The exponent of minimum ~ tokens^exponent has what was
published for its prior (horizon.py); that the minimum moves from round to round is the evidence. The posterior is a sum
over a grid: a tenth of a second, no sampler that could fail, the same numbers every time.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

STEP = 0.1  # of the grid of minima, octaves
BEYOND = 1.5  # octaves by which the minimum may lie outside all that was tried
CURVATURE = 0.1  # scale of k, nats per octave^2; prior half-normal
ASYMMETRIES = 2.0 ** np.linspace(-2.5, 3.5, 13)  # r; prior log-normal about 1.2, a factor of 2.4
NOISES = 0.01 * 2.0 ** np.linspace(-4, 5, 8)  # standard deviation of a trial's loss, nats; prior even in log
MISFIT = 0.15  # of its height above the lowest, by which a point may miss the curve: far points count less
WOBBLE = 0.5  # octaves for each root of an octave of tokens: no power law is exact
NOISIER = 2.0  # octaves by which the noise may change from round to round: trials that leave a plateau scatter more
EXPONENTS = np.linspace(-2.5, 2.5, 11)  # in standard deviations of the prior


@dataclass(frozen=True)
class Round:
    """Final losses of trials of `tokens`: lr -> one loss per seed, learning rates ascending; infinite: it diverged."""

    tokens: int
    losses: dict[float, list[float]]

    @property
    def means(self) -> dict[float, float]:
        """Over seeds."""
        return {lr: sum(values) / len(values) for lr, values in self.losses.items()}

    @property
    def best(self) -> float:
        means = self.means
        return min(means, key=lambda lr: means[lr])

    @property
    def edge(self) -> int:
        """-1 or 1 when the best learning rate is the smallest or largest that was tried, else 0."""
        lrs = list(self.losses)
        return -1 if self.best == lrs[0] else 1 if self.best == lrs[-1] else 0

    @property
    def finite(self) -> dict[float, list[float]]:
        """Without those that diverged for any seed."""
        return {lr: values for lr, values in self.losses.items() if math.isfinite(sum(values))}


@dataclass(frozen=True)
class Prior:
    """Of the exponent: normal."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Posterior:
    """Probabilities [exponents, minima] of the exponent and of log2 of the best learning rate of the longest trials.

    asymmetry: the middle of r, how much steeper the loss is above the minimum than below.
    """

    exponents: np.ndarray
    minima: np.ndarray
    probabilities: np.ndarray
    asymmetry: float


def posterior(rounds: list[Round], prior: Prior) -> Posterior:
    """From all rounds, shortest first. Raises ValueError when every trial of the last one diverged."""
    if not rounds[-1].finite:
        raise ValueError("the loss of every trial stopped being finite; look at the data and the model's settings")
    tried = np.log2([lr for done in rounds for lr in done.finite])
    minima = np.arange(tried.min() - BEYOND, tried.max() + BEYOND + STEP / 2, STEP)
    exponents = prior.mean + prior.sd * EXPONENTS
    start = -0.5 * EXPONENTS[:, None, None, None] ** 2 - 0.5 * ((np.log2(ASYMMETRIES)[:, None] - 0.25) / 1.25) ** 2
    state = np.broadcast_to(start, (len(exponents), len(minima), len(ASYMMETRIES), len(NOISES)))
    tokens = rounds[0].tokens
    for done in rounds:
        state = _moved(state, minima, exponents, math.log2(done.tokens / tokens)) + _evidence(minima, done)
        tokens = done.tokens
    weights = np.exp(state - state.max())
    weights /= weights.sum()
    asymmetry = 2.0 ** float((weights.sum(axis=(0, 1, 3)) * np.log2(ASYMMETRIES)).sum())
    return Posterior(exponents, minima, weights.sum(axis=(2, 3)), asymmetry)


def _moved(state: np.ndarray, minima: np.ndarray, exponents: np.ndarray, octaves: float) -> np.ndarray:
    """Log probabilities [exponents, minima, asymmetries, noises] after the minimum and the noise have walked.

    octaves: of tokens. The first round, of none, is met as it is.
    """
    if octaves <= 0:
        return state
    step = minima[:, None] - minima - exponents[:, None, None] * octaves  # exponents, to, from
    walk = np.exp(-0.5 * (step / (WOBBLE * math.sqrt(octaves))) ** 2)
    top = state.max()
    apart = np.log2(NOISES[:, None] / NOISES)
    change = np.exp(-0.5 * (apart / NOISIER) ** 2)
    change /= change.sum(axis=1, keepdims=True)
    flat = (np.exp(state - top) @ change).reshape(*state.shape[:2], -1)
    return np.log(walk @ flat + 1e-300).reshape(state.shape) + top


def _evidence(minima: np.ndarray, done: Round) -> np.ndarray:
    """Log likelihood [minima, asymmetries, noises] of a round's losses, over the prior of k.

    Seeds meet every learning rate, so what a seed does to all of them is an offset, and drops out; what they scatter
    beyond tells the noise.
    """
    finite = done.finite
    if not finite:
        return np.zeros((len(minima), len(ASYMMETRIES), len(NOISES)))
    x, losses = np.log2(list(finite)), np.array(list(finite.values()))
    n_lrs, n_seeds = losses.shape
    mean = losses.mean(axis=1)
    weights = 1 / (NOISES[:, None] ** 2 / n_seeds + (MISFIT * (mean - mean.min())) ** 2)  # noises, lrs
    scatter = losses - mean[:, None] - losses.mean(axis=0) + losses.mean()
    known = -(n_lrs - 1) * (n_seeds - 1) * np.log(NOISES) - 0.5 * (scatter**2).sum() / NOISES**2
    known += 0.5 * (np.log(weights).sum(axis=1) - np.log(weights.sum(axis=1)))
    u = x - minima[:, None, None]
    shape = np.where(u < 0, 1.0, ASYMMETRIES[:, None]) * u**2  # minima, asymmetries, lrs
    y = mean - mean.min()
    total = weights.sum(axis=1)
    yy = (weights * y**2).sum(axis=1) - (weights * y).sum(axis=1) ** 2 / total  # about the best offset, as all three
    fy = shape @ (weights * y).T - (shape @ weights.T) * (weights * y).sum(axis=1) / total
    ff = shape**2 @ weights.T - (shape @ weights.T) ** 2 / total
    of_data, ff = ff, ff + 1 / CURVATURE**2  # with the prior: then the sum over all k >= 0 has a closed form
    positive = torch.special.log_ndtr(torch.from_numpy(fy / np.sqrt(ff))).numpy()
    over_k = 0.5 * (fy**2 / ff - yy + np.log(of_data / ff)) + positive
    diverged = [math.log2(lr) for lr in done.losses if lr not in finite and lr > done.best]
    beyond = np.where(minima > min(diverged, default=math.inf), -math.inf, 0.0)
    return over_k + known + beyond[:, None, None]

"""Where a loss is lowest over the learning rate: successive halving, then a quadratic through what is left.

    round 1    7 learning rates, factor 2 apart      a quarter of the tokens
    round 2    the 4 neighbours that did best        half
    round 3    the 4 neighbours that did best        all, several seeds

Each trial has a whole schedule of its own: rounds that stop one long run early would favour small learning rates. The
loss is near its minimum a quadratic in log lr (over factors of 4, not more), and the same seeds meet every learning
rate, so that what a seed does to all of them drops out of the fit.

Successive halving: Jamieson and Talwalkar 2016, arXiv 1502.07943.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Objective = Callable[[float, int, int], float]  # lr, tokens, seed -> final loss, infinite when it diverged

GRID = 2.0  # factor between neighbours
ROUNDS = ((0.25, 7), (0.5, 4), (1.0, 4))  # share of the tokens, learning rates
SHARPEST = 0.25  # octaves to either side of the minimum: the curve is not a quadratic, its minimum not known better
WIDENED_BY = (3, 1, 1)  # learning rates that a round adds when its best one is at the edge


@dataclass(frozen=True)
class Round:
    """Final losses of trials of `tokens`: lr -> one loss per seed, learning rates ascending."""

    tokens: int
    losses: dict[float, list[float]]

    @property
    def best(self) -> float:
        return min(self.losses, key=lambda lr: _mean(self.losses[lr]))

    @property
    def edge(self) -> int:
        """-1 or 1 when the best learning rate is the smallest or largest that was tried, else 0."""
        lrs = list(self.losses)
        return -1 if self.best == lrs[0] else 1 if self.best == lrs[-1] else 0


@dataclass(frozen=True)
class Minimum:
    """The learning rate where the quadratic is lowest, and the 90% interval of that place.

    coefficients: a, b, c of loss = a x^2 + b x + c in x = log2 lr; None where no quadratic has a minimum there.
    """

    lr: float
    low: float
    high: float
    coefficients: tuple[float, float, float] | None


@dataclass(frozen=True)
class Search:
    """All rounds, and the minimum in the last one; `widened` says whether an edge was met, `edge` whether it stayed."""

    rounds: list[Round]
    minimum: Minimum
    widened: bool
    edge: int


def search(objective: Objective, upper: float, tokens: int, seeds: int) -> Search:
    """Search from `upper`, a learning rate near which training diverges, downwards.

    Trials cost 12 to 15 x `tokens` with two seeds. An edge widens the search once.
    """
    lrs = sorted(upper * GRID**-i for i in range(ROUNDS[0][1]))
    rounds: list[Round] = []
    widened = False
    for number, (share, n_lrs) in enumerate(ROUNDS):
        n_seeds = seeds if number == len(ROUNDS) - 1 else 1
        lrs = _best_neighbours(rounds[-1], n_lrs) if rounds else lrs
        done = Round(round(tokens * share), {})
        _try(done, lrs, n_seeds, objective)
        if done.edge and not widened:
            outermost = lrs[0] if done.edge < 0 else lrs[-1]
            more = [outermost * GRID ** (done.edge * (i + 1)) for i in range(WIDENED_BY[number])]
            _try(done, more, n_seeds, objective)
            widened = True
        rounds.append(done)
    return Search(rounds, fit_minimum(rounds[-1].losses), widened, rounds[-1].edge)


def _try(into: Round, lrs: list[float], n_seeds: int, objective: Objective) -> None:
    for lr in lrs:
        into.losses[lr] = [objective(lr, into.tokens, seed) for seed in range(n_seeds)]
    ordered = sorted(into.losses.items())
    into.losses.clear()
    into.losses.update(ordered)


def _best_neighbours(done: Round, count: int) -> list[float]:
    """The `count` learning rates next to each other that hold the best one and have the lowest sum of losses."""
    lrs = list(done.losses)
    best = lrs.index(done.best)
    starts = [i for i in range(max(best - count + 1, 0), best + 1) if i + count <= len(lrs)]
    windows = [lrs[i : i + count] for i in starts]
    return min(windows, key=lambda window: sum(min(_mean(done.losses[lr]), 1e6) for lr in window))


def fit_minimum(losses: dict[float, list[float]]) -> Minimum:
    """The minimum of a least-squares quadratic over the best learning rate and its neighbours up to a factor of 4."""
    finite = {lr: values for lr, values in losses.items() if math.isfinite(_mean(values))}
    if not finite:
        raise ValueError("the loss of every trial stopped being finite; look at the data and the model's settings")
    best = min(finite, key=lambda lr: _mean(finite[lr]))
    near = {lr: values for lr, values in finite.items() if abs(math.log2(lr / best)) <= 2.01}
    neighbours = Minimum(best, best / GRID, best * GRID, None)
    if len(near) < 3:
        return neighbours
    x = np.log2(list(near))
    center = x.mean()
    coefficients, draws = _quadratic(x - center, np.array(list(near.values())))
    low_edge, high_edge = x[0] - center - 1, x[-1] - center + 1
    where = _vertex(coefficients[None], low_edge, high_edge)[0]
    if coefficients[0] <= 0:
        return neighbours
    if len(draws):
        low, high = np.quantile(_vertex(draws, low_edge, high_edge), [0.05, 0.95])
    else:
        low, high = where - math.log2(GRID), where + math.log2(GRID)
    low, high = min(low, where - SHARPEST), max(high, where + SHARPEST)
    where = min(max(where, x[0] - center), x[-1] - center)
    a, b, c = coefficients
    in_log_lr = (float(a), float(b - 2 * a * center), float(a * center**2 - b * center + c))
    lr, low_lr, high_lr = (float(2.0 ** (center + v)) for v in (where, min(low, where), max(high, where)))
    return Minimum(lr, low_lr, high_lr, in_log_lr)


def _quadratic(x: np.ndarray, y: np.ndarray, n_draws: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares coefficients (a, b, c) of y [lrs, seeds] in x [lrs], each seed with an offset of its own.

    Also `n_draws` of them from their distribution (Student's t). The noise is the larger of two: what seeds scatter
    about the mean curve, and what the mean curve misses of a quadratic. Real curves are steeper above the minimum than
    below, which more seeds do not mend.
    """
    n_lrs, n_seeds = y.shape
    powers = np.stack([x**2, x, np.ones_like(x)], axis=1)
    mean = y.mean(axis=1)
    solution, *_ = np.linalg.lstsq(powers, mean, rcond=None)
    scatter = y - mean[:, None] - (y.mean(axis=0) - y.mean())[None, :]  # without what a seed does to all
    misfit = mean - powers @ solution
    noises = [((scatter**2).sum(), (n_lrs - 1) * (n_seeds - 1)), (n_seeds * (misfit**2).sum(), n_lrs - 3)]
    known = [(total / freedom, freedom) for total, freedom in noises if freedom > 0]
    if not known:  # as many points as coefficients: nothing is known of the noise
        return solution, np.zeros((0, 3))
    variance, freedom = max(known)
    generator = np.random.default_rng(0)
    covariance = np.linalg.inv(powers.T @ powers) * variance / n_seeds
    normal = generator.multivariate_normal(np.zeros(3), covariance, n_draws, method="svd")
    scale = np.sqrt(freedom / generator.chisquare(freedom, n_draws))
    return solution, solution + normal * scale[:, None]


def _vertex(coefficients: np.ndarray, low: float, high: float) -> np.ndarray:
    """x of the lowest point of each quadratic [n, 3] within [low, high]."""
    a, b, _ = coefficients.T
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = np.clip(-b / (2 * a), low, high)
    at_edge = np.where(a * low**2 + b * low < a * high**2 + b * high, low, high)
    return np.where(a > 0, inside, at_edge)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)

"""L(N, D) = E + A / N^a + B / D^b, fitted to runs of several sizes and lengths; intervals by bootstrap.

The fit minimises the Huber loss (1e-3) of log L, summed over runs, as Hoffmann et al. 2022 (arXiv 2203.15556, approach
3); averaged, the optimizer stops early and the exponents come out wrong (Besiroglu et al. 2024, arXiv 2404.10102). It
goes downhill from many starts at once (Levenberg-Marquardt with Huber's weights). The bootstrap draws the residuals
anew, enlarged for what the fit has used up of them, and fits again: cases cannot be left out where there are so few.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

HUBER = 1e-3  # of log L
N_NUMBERS = 5  # of the law
DRAWS = 300
STEPS, STEPS_OF_DRAWS = 150, 40  # downhill; draws start where the fit ended
LEAST_NOISE = 2e-3  # of log L: no two seeds end nearer
HIGHEST, LOWEST = 1.5, 0.02  # exponents that make sense
Array = np.ndarray


@dataclass(frozen=True)
class Interval:
    """The middle, and the 90% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Law:
    """One fit, and those of the bootstrap: rows of log E, log A, a, log B, b; A and B at the mean size and length.

    centre: (log N, log D) of that mean. noise: residuals of log L, as the bootstrap drew them.
    """

    best: Array
    draws: Array
    centre: tuple[float, float]
    noise: Array

    def loss(self, n_params: float, n_tokens: float) -> float:
        """Nats per token of a model of `n_params`, trained on `n_tokens`."""
        return float(np.exp(self._log_loss(self.best[None], n_params, n_tokens))[0])

    def predicted(self, n_params: float, n_tokens: float) -> Interval:
        """The same, with the interval that a run will lie in."""
        draws = self._log_loss(self.draws, n_params, n_tokens)
        runs = np.exp(draws[:, None] + self.noise)
        low, high = np.quantile(runs, [0.05, 0.95])
        value = self.loss(n_params, n_tokens)
        return Interval(value, min(float(low), value), max(float(high), value))

    def best_of(self, candidates: Sequence[tuple[float, float]]) -> tuple[int, list[int]]:
        """Which (N, D) has the lowest loss, and which one it is for every draw."""
        losses = np.stack([self._log_loss(np.vstack([self.best, self.draws]), n, d) for n, d in candidates])
        first, *others = losses.argmin(axis=0).tolist()
        return first, others

    def numbers(self) -> dict[str, Interval]:
        """E, A, B and the exponents a, b."""
        rows = np.vstack([self.best, self.draws])
        e, log_a, a, log_b, b = rows.T
        log_n, log_d = self.centre
        with np.errstate(over="ignore"):
            found = {"E": np.exp(e), "A": np.exp(log_a + a * log_n), "B": np.exp(log_b + b * log_d), "a": a, "b": b}
        return {name: Interval(float(v[0]), *np.quantile(v[1:], [0.05, 0.95]).tolist()) for name, v in found.items()}

    def _log_loss(self, rows: Array, n_params: float, n_tokens: float) -> Array:
        x = np.log([[n_params, n_tokens]]) - np.array(self.centre)
        return _log_loss(rows, x)[:, 0]


def fit_law(n_params: Sequence[float], n_tokens: Sequence[float], losses: Sequence[float], seed: int = 0) -> Law:
    """The law of these runs. Raises ValueError for fewer runs than it has numbers, or runs of one size or length."""
    if len(losses) <= N_NUMBERS or len(set(n_params)) < 3 or len(set(n_tokens)) < 3:
        raise ValueError(
            f"{len(losses)} runs of {len(set(n_params))} sizes and {len(set(n_tokens))} lengths; a law of {N_NUMBERS} "
            "numbers needs more runs than that, of at least 3 sizes and 3 lengths"
        )
    x = np.log(np.column_stack([n_params, n_tokens]).astype(float))
    centre = x.mean(axis=0)
    x, y = x - centre, np.log(np.asarray(losses, float))
    starts = _starts(y)
    rows, costs = _descend(starts, x, np.broadcast_to(y, (len(starts), len(y))))
    best = rows[costs.argmin()]
    fitted = _log_loss(best[None], x)[0]
    residuals = (y - fitted) * np.sqrt(len(y) / (len(y) - N_NUMBERS))
    random = np.random.default_rng(seed)
    spread = random.normal(0, LEAST_NOISE, (DRAWS, len(y)))
    again = fitted + random.choice(np.concatenate([residuals, -residuals]), (DRAWS, len(y))) + spread
    draws, _ = _descend(np.broadcast_to(best, (DRAWS, N_NUMBERS)), x, again, STEPS_OF_DRAWS)
    noise = np.concatenate([residuals, -residuals])
    return Law(best, draws, (float(centre[0]), float(centre[1])), noise)


def _log_loss(rows: Array, x: Array) -> Array:
    """Log L [rows, runs] at centred (log N, log D) `x` [runs, 2]."""
    return np.logaddexp.reduce(_terms(rows, x), axis=-1)


def _terms(rows: Array, x: Array) -> Array:
    """Logarithms of the three summands [rows, runs, 3]."""
    e, log_a, a, log_b, b = (rows[:, i, None] for i in range(N_NUMBERS))
    return np.stack([np.broadcast_to(e, (len(rows), len(x))), log_a - a * x[:, 0], log_b - b * x[:, 1]], axis=-1)


def _starts(y: Array) -> Array:
    """Many shares of the three summands at the centre, and exponents."""
    shares = [(e, (1 - e) * s, (1 - e) * (1 - s)) for e in (0.05, 0.3, 0.6, 0.85) for s in (0.2, 0.5, 0.8)]
    exponents = [(a, b) for a in (0.15, 0.35, 0.7) for b in (0.15, 0.35, 0.7)]
    middle = y.mean()
    return np.array(
        [(middle + np.log(e), middle + np.log(n), a, middle + np.log(d), b) for e, n, d in shares for a, b in exponents]
    )


def _huber(residuals: Array) -> Array:
    size = np.abs(residuals)
    return np.where(size < HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER)).sum(axis=-1)


def _descend(rows: Array, x: Array, y: Array, steps: int = STEPS) -> tuple[Array, Array]:
    """Each row goes down to a minimum for its own y [rows, runs]; rows and what they cost."""
    rows, damping = np.array(rows), np.full(len(rows), 1e-2)
    cost: Callable[[Array], Array] = lambda there: _huber(_log_loss(there, x) - y)  # noqa: E731
    costs = cost(rows)
    for _ in range(steps):
        terms = _terms(rows, x)
        residuals = np.logaddexp.reduce(terms, axis=-1) - y
        share = np.exp(terms - np.logaddexp.reduce(terms, axis=-1, keepdims=True))
        slopes = np.stack(
            [share[..., 0], share[..., 1], -share[..., 1] * x[:, 0], share[..., 2], -share[..., 2] * x[:, 1]], axis=-1
        )
        weights = HUBER / np.maximum(np.abs(residuals), HUBER)
        gradient = np.einsum("rn,rni->ri", weights * residuals, slopes)
        curvature = np.einsum("rn,rni,rnj->rij", weights, slopes, slopes)
        diagonal = np.einsum("rii->ri", curvature)
        curvature = curvature + (damping[:, None] * (diagonal + 1e-9))[..., None] * np.eye(N_NUMBERS)
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        there = rows - np.clip(step, -1.0, 1.0)
        there[:, [2, 4]] = there[:, [2, 4]].clip(LOWEST, HIGHEST)
        there_costs = cost(there)
        better = there_costs < costs
        rows, costs = np.where(better[:, None], there, rows), np.where(better, there_costs, costs)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-9, 1e9)
    return rows, costs

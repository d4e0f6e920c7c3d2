"""The loss of N parameters after D tokens, L(N, D), fitted to runs of several sizes and lengths, with intervals.

    L = E + ((A / N^a)^p + (B / D^b)^p)^(1/p)    p = 1:    Hoffmann et al. 2022 (arXiv 2203.15556): size and length add
                                                 p = 1/b:  Kaplan et al. 2020 (arXiv 2001.08361), there without E: the
                                                           one that is short of holds the other back

Both are fitted, and the one that fits better is taken: with short runs of tiny models the second, by far. E, the
irreducible loss, is not told by runs that end far above it, and a fit that is free to choose takes whatever suits the
noise. So there may be a `highest_e`, that no fit exceeds.

The fit minimises the Huber loss of log L, summed over runs, as Hoffmann et al. 2022 (arXiv 2203.15556, approach
3); averaged, the optimizer stops early and the exponents come out wrong (Besiroglu et al. 2024, arXiv 2404.10102). It
goes downhill from many starts at once (Levenberg-Marquardt with Huber's weights). The bootstrap draws the residuals
anew, enlarged for what the fit has used up of them and by what seeds make, and fits again: cases cannot be left out
where there are so few.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

HUBER = 5e-3  # of log L, about the noise of a run; a tenth of it suits hundreds of runs, and of ten forgets the half
E, A, EXPONENT_A, B, EXPONENT_B, KAPLAN = range(6)  # columns of a row: log E, log A, a, log B, b, 1 where p is 1/b
LEAST_E = 1e-6
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
    """One fit, and those of the bootstrap, as rows; A and B at the mean size and length.

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

    @property
    def is_kaplan(self) -> bool:
        """Whether p is 1/b, and not 1."""
        return bool(self.best[KAPLAN])

    def numbers(self) -> dict[str, Interval]:
        """E, A, B and the exponents a, b."""
        rows = np.vstack([self.best, self.draws])
        e, log_a, a, log_b, b, _ = rows.T
        log_n, log_d = self.centre
        with np.errstate(over="ignore"):
            found = {"E": np.exp(e), "A": np.exp(log_a + a * log_n), "B": np.exp(log_b + b * log_d), "a": a, "b": b}
        return {name: Interval(float(v[0]), *np.quantile(v[1:], [0.05, 0.95]).tolist()) for name, v in found.items()}

    def _log_loss(self, rows: Array, n_params: float, n_tokens: float) -> Array:
        x = np.log([[n_params, n_tokens]]) - np.array(self.centre)
        return _log_loss(rows, x)[:, 0]


def fit_law(
    n_params: Sequence[float],
    n_tokens: Sequence[float],
    losses: Sequence[float],
    highest_e: float | None = None,
    seed: int = 0,
) -> Law:
    """The law of these runs. highest_e: of E, in nats per token.

    Raises ValueError for fewer runs than it has numbers, or runs of one size or length.
    """
    if len(losses) <= N_NUMBERS or len(set(n_params)) < 3 or len(set(n_tokens)) < 3:
        raise ValueError(
            f"{len(losses)} runs of {len(set(n_params))} sizes and {len(set(n_tokens))} lengths; a law of {N_NUMBERS} "
            "numbers needs more runs than that, of at least 3 sizes and 3 lengths"
        )
    x = np.log(np.column_stack([n_params, n_tokens]).astype(float))
    centre = x.mean(axis=0)
    x, y = x - centre, np.log(np.asarray(losses, float))
    starts, log_e = _starts(y), np.log(highest_e or np.inf)
    forms = _best_of_forms(*_descend(starts, x, np.broadcast_to(y, (len(starts), len(y))), log_e))
    fitted = _log_loss(forms[:1], x)[0]
    residuals = np.hypot((y - fitted) * np.sqrt(len(y) / (len(y) - N_NUMBERS)), LEAST_NOISE)
    noise = np.concatenate([residuals, -residuals])
    draws = _bootstrap(forms, x, fitted, noise, log_e, seed)
    return Law(forms[0], draws, (float(centre[0]), float(centre[1])), noise)


def _bootstrap(forms: Array, x: Array, fitted: Array, noise: Array, log_e: float, seed: int) -> Array:
    """Rows fitted to losses that differ from the fitted ones by noise, each of the form that then fits better."""
    random = np.random.default_rng(seed)
    again = fitted + random.choice(noise, (DRAWS, len(fitted)))
    draws = np.repeat(forms, DRAWS, axis=0)  # of each form, on the same data
    ends, costs = _descend(draws, x, np.tile(again, (len(forms), 1)), log_e, STEPS_OF_DRAWS)
    better = costs.reshape(len(forms), DRAWS).argmin(axis=0)
    kept: Array = ends.reshape(len(forms), DRAWS, -1)[better, np.arange(DRAWS)]
    return kept


def _best_of_forms(rows: Array, costs: Array) -> Array:
    """The best row of each form, the better form first."""
    order = costs.argsort()
    firsts = [next(i for i in order if rows[i, KAPLAN] == form) for form in (0.0, 1.0)]
    return rows[sorted(firsts, key=lambda i: costs[i])]


def _log_loss(rows: Array, x: Array) -> Array:
    """Log L [rows, runs] at centred (log N, log D) `x` [runs, 2]."""
    return _with_slopes(rows, x)[0]


def _with_slopes(rows: Array, x: Array) -> tuple[Array, Array]:
    """Log L [rows, runs], and its derivatives by the five numbers [rows, runs, 5]."""
    e, log_a, a, log_b, b, kaplan = (rows[:, i, None] for i in range(rows.shape[1]))
    p = np.where(kaplan > 0, 1 / b, 1.0)
    size, length = log_a - a * x[:, 0], log_b - b * x[:, 1]
    both = np.logaddexp(p * size, p * length) / p  # log of what N and D leave above E
    of_size = np.exp(p * (size - both))
    by_p = (of_size * size + (1 - of_size) * length - both) / p
    log_loss = np.logaddexp(e, both)
    above = np.exp(both - log_loss)
    by_b = -(1 - of_size) * x[:, 1] - np.where(kaplan > 0, by_p / b**2, 0.0)
    slopes = [1 - above, above * of_size, -above * of_size * x[:, 0], above * (1 - of_size), above * by_b]
    return log_loss, np.stack(slopes, axis=-1)


def _starts(y: Array) -> Array:
    """Many shares of the three summands at the centre, exponents, and both forms."""
    shares = [(e, (1 - e) * s, (1 - e) * (1 - s)) for e in (0.05, 0.3, 0.6, 0.85) for s in (0.2, 0.5, 0.8)]
    exponents = [(a, b) for a in (0.15, 0.35, 0.7) for b in (0.15, 0.35, 0.7)]
    middle = y.mean()
    return np.array(
        [
            (middle + np.log(e), middle + np.log(n), a, middle + np.log(d), b, form)
            for e, n, d in shares
            for a, b in exponents
            for form in (0.0, 1.0)
        ]
    )


def _huber(residuals: Array) -> Array:
    size = np.abs(residuals)
    return np.where(size < HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER)).sum(axis=-1)


def _descend(rows: Array, x: Array, y: Array, log_e: float, steps: int = STEPS) -> tuple[Array, Array]:
    """Each row goes down to a minimum for its own y [rows, runs], log E up to `log_e`; rows and what they cost."""
    rows, damping = np.array(rows), np.full(len(rows), 1e-2)
    rows[:, E] = np.minimum(rows[:, E], log_e)
    log_loss, slopes = _with_slopes(rows, x)
    costs = _huber(log_loss - y)
    for _ in range(steps):
        residuals = log_loss - y
        weights = HUBER / np.maximum(np.abs(residuals), HUBER)
        at_bound = (rows[:, E] >= log_e) & ((weights * residuals * slopes[..., E]).sum(axis=1) < 0)
        slopes[at_bound, :, E] = 0.0
        gradient = np.einsum("rn,rni->ri", weights * residuals, slopes)
        curvature = np.einsum("rn,rni,rnj->rij", weights, slopes, slopes)
        diagonal = np.einsum("rii->ri", curvature)
        curvature = curvature + (damping[:, None] * (diagonal + 1e-9))[..., None] * np.eye(N_NUMBERS)
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        there = rows.copy()
        there[:, :N_NUMBERS] -= np.clip(step, -1.0, 1.0)
        there[:, E] = there[:, E].clip(np.log(LEAST_E), log_e)
        there[:, [EXPONENT_A, EXPONENT_B]] = there[:, [EXPONENT_A, EXPONENT_B]].clip(LOWEST, HIGHEST)
        log_loss_there, slopes_there = _with_slopes(there, x)
        costs_there = _huber(log_loss_there - y)
        better = costs_there < costs
        rows, costs = np.where(better[:, None], there, rows), np.where(better, costs_there, costs)
        log_loss = np.where(better[:, None], log_loss_there, log_loss)
        slopes = np.where(better[:, None, None], slopes_there, slopes)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-9, 1e9)
    return rows, costs

"""From the best learning rate of short trials to that of the run: times (tokens of the run / of the trials)^exponent.

Nobody knows the exponent. What was published is of other sizes and schedules, and mostly of batches that grow with the
tokens, where a search keeps one batch: there the growth is taken out by Adam's rule, lr ~ root of batch. The mean and
spread of what remains are the prior and the rounds of the search the evidence, which is discounted: the minimum of
trials of 12, 50 and 200 steps fell as tokens^-0.5 where that of 2,000 steps did not (AdamW, 2 layers x 64). The
interval holds what is left unknown; it held the best of a grid of whole runs three times of three, and the answer cost
0.02 (Muon) to 0.3 nats (AdamW, 3 x 96). The nearer the trials are to the run, the less it matters.

What is recommended is not the middle of the interval but the learning rate of the least expected loss, which is lower
where the loss is steeper above its minimum than below.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import numpy as np

from gpt_lightning.tune.lr.minimum import STEP, WOBBLE, Posterior, Prior


@dataclass(frozen=True)
class Published:
    """How the best learning rate of AdamW, and the batch that goes with it, grow with the tokens at a fixed size."""

    name: str
    source: str
    exponent: float
    batch_exponent: float

    @property
    def at_fixed_batch(self) -> float:
        """The exponent that is left when the batch stays."""
        return self.exponent - self.batch_exponent / 2


PUBLISHED = (  # laws of the size alone, as Kaplan's and Porian's, say nothing here
    Published("Step Law", "arXiv 2503.04715", 0.307, 0.571),
    Published("DeepSeek LLM", "arXiv 2401.02954", -0.125, 0.3271),
    Published("Bjorck 2024", "arXiv 2409.19913", -0.32, 0.0),
)
PRIOR = Prior(fmean(law.at_fixed_batch for law in PUBLISHED), stdev(law.at_fixed_batch for law in PUBLISHED))
BEND = 0.3  # standard deviation by which the exponent from trials to run may differ from that between rounds
BETWEEN_ROUNDS = Prior(PRIOR.mean, math.hypot(PRIOR.sd, BEND))
SHAPE = 0.12  # octaves by which two half parabolas miss the minimum of a real curve
NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / 41) for i in range(41)])  # a normal distribution as 41 points
WITHIN = STEP * ((np.arange(5) + 0.5) / 5 - 0.5)  # a cell of the grid as 5


@dataclass(frozen=True)
class Estimate:
    """The middle of what is believed, and the 90% interval."""

    value: float
    low: float
    high: float

    @property
    def factor(self) -> float:
        """From end to end of the interval."""
        return self.high / self.low

    def __str__(self) -> str:
        return f"{self.value:.1e} (90% interval {self.low:.1e} to {self.high:.1e})"


@dataclass(frozen=True)
class Answer:
    """What a search tells: the best learning rate of the longest trials and of the run, and the exponent between.

    lr: of the least expected loss at the end of the run; below the middle of `run` where the loss is steeper above.
    data_weight: 1 - variance of the exponent after the search / before it; 0 where published values say all.
    asymmetry: how much steeper the loss is above the minimum than below.
    """

    trials: Estimate
    run: Estimate
    lr: float
    exponent: Estimate
    data_weight: float
    asymmetry: float


def answer(found: Posterior, octaves: float) -> Answer:
    """For a run that is `octaves` (factors of 2 in tokens) longer than the longest trials."""
    exponents = _onwards(found.exponents)
    of_exponents = found.probabilities.sum(axis=1)
    mean = (of_exponents * exponents).sum()
    variance = (of_exponents * (exponents - mean) ** 2).sum() + _unknown() ** 2
    spread = exponents[:, None] + _unknown() * NORMAL
    weights = np.broadcast_to(of_exponents[:, None] / len(NORMAL), spread.shape)
    in_run = _after(found, octaves)
    return Answer(
        trials=_estimate(*_after(found, 0.0)),
        run=_estimate(*in_run),
        lr=2.0 ** _least_loss(*in_run, found.asymmetry),
        exponent=Estimate(*_quantiles(spread.ravel(), weights.ravel())),
        data_weight=float(max(1 - variance / PRIOR.sd**2, 0.0)),
        asymmetry=found.asymmetry,
    )


def _onwards(exponents: np.ndarray) -> np.ndarray:
    """What to expect of the exponent from trials to run, given those between rounds: both are normal about PRIOR."""
    return PRIOR.mean + (PRIOR.sd / BETWEEN_ROUNDS.sd) ** 2 * (exponents - PRIOR.mean)


def _unknown() -> float:
    """Standard deviation about that."""
    return PRIOR.sd * BEND / BETWEEN_ROUNDS.sd


def _after(found: Posterior, octaves: float) -> tuple[np.ndarray, np.ndarray]:
    """Log2 of the best learning rate after so many octaves of tokens more, with weights; octaves may be below 0."""
    walk = math.hypot(SHAPE, WOBBLE * math.sqrt(abs(octaves)), _unknown() * octaves) * NORMAL
    spread = (walk[:, None] + WITHIN).ravel()
    places = (found.minima + _onwards(found.exponents)[:, None] * octaves)[:, :, None] + spread
    weights = np.broadcast_to(found.probabilities[:, :, None] / len(spread), places.shape)
    return places.ravel(), weights.ravel()


def _estimate(places: np.ndarray, weights: np.ndarray) -> Estimate:
    """Of what lies at 2^places."""
    return Estimate(*(2.0**place for place in _quantiles(places, weights)))


def _least_loss(places: np.ndarray, weights: np.ndarray, asymmetry: float) -> float:
    """The place of the least expected loss, u^2 below the minimum and asymmetry u^2 above: an expectile."""
    low, high = float(places.min()), float(places.max())
    while high - low > 0.001:
        x = (low + high) / 2
        slope = (weights * np.where(places < x, asymmetry, 1.0) * (x - places)).sum()
        low, high = (low, x) if slope > 0 else (x, high)
    return (low + high) / 2


def _quantiles(values: np.ndarray, weights: np.ndarray) -> list[float]:
    """The middle, the 5% and the 95% point."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) - 0.5 * weights[order]
    return np.interp([0.5, 0.05, 0.95], reached, values[order]).tolist()

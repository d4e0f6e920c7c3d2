"""Small-sample tests, with nothing but math: paired t, Welch, Holm, and how many seeds would be needed.

Student's distribution comes from the regularized incomplete beta function by its continued fraction (Lentz's method,
Numerical Recipes 6.4), the power of a t test from the noncentral one by integration over the distribution of the sd.
All tests are two-sided and take the values to be normal: five values cannot tell whether they are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TINY, PRECISION = 1e-300, 1e-15
POWER = 0.8
MOST_SEEDS = 1000
STEPS = 400  # of the integral; ten times as many for two pairs, where it bends sharply


@dataclass(frozen=True)
class Test:
    """A mean that is tested against 0: its interval at 1 - level, and the chance of one as large if there were none."""

    mean: float
    sd: float
    low: float
    high: float
    p: float

    __test__ = False  # nothing for pytest


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def sd(values: Sequence[float]) -> float:
    """The standard deviation, with n - 1; 0 for one value."""
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / max(len(values) - 1, 1))


def paired_t(differences: Sequence[float], level: float) -> Test:
    """Of at least two differences. Where all are equal nothing is left to chance: p is 0, or 1 if they are 0."""
    n, middle, spread = len(differences), mean(differences), sd(differences)
    error = spread / math.sqrt(n)
    if error == 0:
        return Test(middle, 0.0, middle, middle, 0.0 if middle else 1.0)
    half = student_quantile(1 - level / 2, n - 1) * error
    return Test(middle, spread, middle - half, middle + half, two_sided_p(middle / error, n - 1))


def welch_p(a: Sequence[float], b: Sequence[float]) -> float:
    """p of two unpaired samples of at least two values, with unequal variances (Welch 1947)."""
    one, two = sd(a) ** 2 / len(a), sd(b) ** 2 / len(b)
    difference = mean(a) - mean(b)
    if one + two == 0:
        return 0.0 if difference else 1.0
    freedom = (one + two) ** 2 / (one**2 / (len(a) - 1) + two**2 / (len(b) - 1))
    return two_sided_p(difference / math.sqrt(one + two), freedom)


def holm(ps: Sequence[float]) -> list[float]:
    """The p values after Holm's step-down correction for so many tests (1979), in their own order."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min((len(ps) - rank) * ps[i], 1.0))
        corrected[i] = largest
    return corrected


def seeds_needed(effect: float, level: float, power: float = POWER) -> int | None:
    """The fewest pairs with which a paired t test finds a difference of `effect` standard deviations so often.

    None where more than a thousand would be needed.
    """
    low, high = 1, MOST_SEEDS
    if t_test_power(effect, high, level) < power:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if t_test_power(effect, middle, level) >= power else (middle, high)
    return high


def t_test_power(effect: float, n: int, level: float) -> float:
    """How often n pairs whose true difference is `effect` standard deviations give p < level, on the same side.

    P(Z > s c - d) over the sd s of the sample, sqrt(chi2 / (n - 1)), where c is the critical t and d = effect sqrt(n).
    """
    freedom, shift = n - 1, abs(effect) * math.sqrt(n)
    critical = student_quantile(1 - level / 2, freedom)
    log_scale = math.log(2) + freedom / 2 * math.log(freedom / 2) - math.lgamma(freedom / 2)

    def density(s: float) -> float:
        return math.exp(log_scale + (freedom - 1) * math.log(s) - freedom * s * s / 2) if s > 0 else 0.0

    upper = 1 + 10 / math.sqrt(freedom)  # beyond it lies less than 1e-12
    return _simpson(
        lambda s: density(s) * _normal(shift - critical * s), TINY, upper, STEPS if freedom > 1 else 10 * STEPS
    )


def two_sided_p(t: float, freedom: float) -> float:
    """P(|T| > |t|) of Student's distribution."""
    return incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def student_quantile(probability: float, freedom: float) -> float:
    """The t below which lies `probability`, above one half, of Student's distribution; by bisection."""
    tail, high = 2 * (1 - probability), 1.0
    while two_sided_p(high, freedom) > tail:
        high *= 2
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, freedom) > tail else (low, middle)
    return (low + high) / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized I_x(a, b)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    logs = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x < (a + 1) / (a + b + 2):
        return math.exp(logs) * _continued_fraction(a, b, x) / a
    return 1 - math.exp(logs) * _continued_fraction(b, a, 1 - x) / b


def _continued_fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _not_zero(1 + term * d)
            c = _not_zero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < PRECISION:
            break
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > TINY else TINY


def _normal(x: float) -> float:
    """P(Z < x)."""
    return math.erfc(-x / math.sqrt(2)) / 2


def _simpson(f: Callable[[float], float], low: float, high: float, n: int) -> float:
    step = (high - low) / n
    inner = math.fsum((4 if i % 2 else 2) * f(low + i * step) for i in range(1, n))
    return (f(low) + inner + f(high)) * step / 3

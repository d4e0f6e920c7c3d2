"""Tests, intervals and powers agree with scipy, and Holm's correction with its definition."""

import itertools
import math
import random

import pytest
from scipy import stats

from gpt_lightning.tune.compare.statistics import (
    holm,
    paired_t,
    seeds_needed,
    student_quantile,
    t_test_power,
    two_sided_p,
    welch_p,
)


def samples(n: int, seed: int, shift: float = 0.0) -> list[float]:
    numbers = random.Random(seed)
    return [numbers.gauss(1.345 + shift, 0.013) for _ in range(n)]


@pytest.mark.parametrize("n", [2, 3, 5, 10, 40])
@pytest.mark.parametrize("level", [0.05, 0.01])
def test_the_paired_t_test_and_its_interval_are_scipys(n, level):
    for shift, seed in itertools.product((0.0, 0.004, 0.05), range(3)):
        a, b = samples(n, seed, shift), samples(n, seed + 100)
        found = paired_t([x - y for x, y in zip(a, b, strict=True)], level)
        expected = stats.ttest_rel(a, b)
        interval = expected.confidence_interval(1 - level)
        assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_welch_is_scipys_also_for_unequal_sizes():
    for n, m, seed in itertools.product((2, 5, 20), (2, 7), range(3)):
        a, b = samples(n, seed, 0.01), [3 * value for value in samples(m, seed + 50)]
        b = [value - 2 * 1.345 for value in b]
        assert welch_p(a, b) == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=1e-9)


@pytest.mark.parametrize("freedom", [1, 2, 2.7, 4, 9, 99, 1000])
def test_students_distribution_is_scipys_far_into_the_tails(freedom):
    for t in (0.0, 1e-6, 0.5, 2.776, 12.0, 300.0):
        assert two_sided_p(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-9)
    for probability in (0.75, 0.975, 0.9995):
        assert student_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-9)


def test_holm_is_its_definition_and_scipys_false_discovery_neighbour_is_not():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # Holm 1979: 3 x, 2 x, and never below
    assert holm([0.6, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02] and holm([]) == []
    for seed in range(20):
        ps = [random.Random(seed * 10 + i).random() ** 3 for i in range(6)]
        for level in (0.01, 0.05, 0.2):  # step down: the smallest of k that are left against level / k
            left, rejected = sorted(range(6), key=ps.__getitem__), set()
            while left and ps[left[0]] < level / len(left):
                rejected.add(left.pop(0))
            assert {i for i, p in enumerate(holm(ps)) if p < level} == rejected


@pytest.mark.parametrize("n", [2, 3, 5, 12, 100])
def test_power_is_that_of_scipys_noncentral_t(n):
    for effect, level in itertools.product((0.1, 0.5, 1.0, 2.5), (0.05, 0.01)):
        critical = stats.t.ppf(1 - level / 2, n - 1)
        expected = stats.nct.sf(critical, n - 1, effect * math.sqrt(n))
        assert t_test_power(effect, n, level) == pytest.approx(expected, abs=1e-6)


def test_seeds_needed_is_the_first_count_whose_power_is_enough():
    assert seeds_needed(0.5, 0.05) == 34  # Cohen 1988, table 2.4.1, for a paired test
    for effect in (0.2, 0.8, 1.5, 4.0, -1.5):
        n = seeds_needed(effect, 0.05)
        assert t_test_power(effect, n, 0.05) >= 0.8 > (t_test_power(effect, n - 1, 0.05) if n > 2 else 0)
    assert seeds_needed(0.01, 0.05) is None and seeds_needed(0.0, 0.05) is None


def test_differences_without_any_spread_leave_nothing_to_chance():
    assert paired_t([0.0, 0.0, 0.0], 0.05).p == 1.0 and paired_t([0.1, 0.1], 0.05).p == 0.0
    assert welch_p([1.0, 1.0], [1.0, 1.0]) == 1.0 and welch_p([1.0, 1.0], [2.0, 2.0]) == 0.0

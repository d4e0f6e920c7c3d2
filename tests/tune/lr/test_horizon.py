"""From trials to the run: the exponent between published values and the rounds, and an interval that says so."""

import math
from statistics import fmean

import numpy as np
import pytest

from gpt_lightning.tune.lr.horizon import BEND, BETWEEN_ROUNDS, PRIOR, PUBLISHED, SHAPE, answer
from gpt_lightning.tune.lr.minimum import Posterior, Round, posterior


def rounds(exponent: float, tokens=(250, 500, 1000, 4000), noise: float = 1e-4) -> list[Round]:
    """Losses about minima that move by tokens^exponent."""
    random = np.random.default_rng(0)
    made = []
    for n in tokens:
        x = exponent * math.log2(n / 1000)
        middle = round(x)
        lrs = range(middle - 2, middle + 3)
        made.append(Round(n, {2.0**i: [0.03 * (i - x) ** 2 + noise * random.standard_normal()] for i in lrs}))
    return made


def test_the_prior_is_the_mean_and_spread_of_what_was_published():
    values = [0.307 - 0.571 / 2, -0.125 - 0.3271 / 2, -0.32]  # Step Law, DeepSeek, Bjorck: by hand, the batch kept
    assert PRIOR.mean == pytest.approx(fmean(values))
    assert PRIOR.sd == pytest.approx(math.sqrt(sum((v - PRIOR.mean) ** 2 for v in values) / (len(values) - 1)))
    assert all(law.source.startswith("arXiv") for law in PUBLISHED)


@pytest.mark.parametrize("exponent", [-0.4, -0.2, 0.0])
def test_rounds_move_the_exponent_away_from_what_was_published(exponent):
    found = answer(posterior(rounds(exponent), BETWEEN_ROUNDS), 3.0)
    share = PRIOR.sd**2 / (PRIOR.sd**2 + BEND**2)  # of what exact rounds would say
    assert found.exponent.value == pytest.approx(PRIOR.mean + share * (exponent - PRIOR.mean), abs=0.05)
    assert found.exponent.low < exponent < found.exponent.high
    assert share - 0.15 < found.data_weight < share
    assert found.run.low < 2 ** (exponent * 5) < found.run.high


def test_one_round_says_nothing_of_the_exponent():
    found = answer(posterior(rounds(0.3, tokens=(1000,)), BETWEEN_ROUNDS), 2.0)
    assert found.data_weight == pytest.approx(0.0, abs=0.07)  # the grid ends at 2.5 standard deviations
    assert found.exponent.value == pytest.approx(PRIOR.mean, abs=0.02)


def known(exponent: float, asymmetry: float = 1.0) -> Posterior:
    """The minimum of the trials is lr 1, and the exponent between rounds is this one, exactly."""
    return Posterior(np.array([exponent]), np.array([0.0]), np.ones((1, 1)), asymmetry)


def test_the_interval_of_the_run_holds_the_exponent_and_the_walk():
    """By hand: a normal exponent times 4 octaves, and a random walk of 0.5 octaves for each root of an octave."""
    found = answer(known(-0.4), octaves=4.0)
    precision = 1 / PRIOR.sd**2 + 1 / BEND**2
    mean = (PRIOR.mean / PRIOR.sd**2 - 0.4 / BEND**2) / precision
    half = 1.645 * math.sqrt(16 / precision + 0.5**2 * 4 + SHAPE**2)
    assert math.log2(found.run.value) == pytest.approx(4 * mean, abs=0.01)
    assert math.log2(found.run.low) == pytest.approx(4 * mean - half, abs=0.06)
    assert math.log2(found.run.high) == pytest.approx(4 * mean + half, abs=0.06)
    assert found.data_weight == pytest.approx(1 - 1 / precision / PRIOR.sd**2, abs=0.01)
    assert math.log2(found.trials.factor) == pytest.approx(2 * 1.645 * SHAPE, abs=0.05)


def test_a_run_as_long_as_the_trials_takes_their_answer():
    found = answer(posterior(rounds(-0.2), BETWEEN_ROUNDS), 0.0)
    assert found.run == found.trials


@pytest.mark.parametrize("asymmetry", [0.5, 1.0, 4.0])
def test_the_answer_is_the_learning_rate_of_the_least_expected_loss(asymmetry):
    """Against 200,000 draws of a normal place of the minimum and a search by brute force."""
    found = answer(known(-0.1, asymmetry), octaves=3.0)
    sd = math.log2(found.run.high / found.run.low) / (2 * 1.645)
    places = np.random.default_rng(0).normal(math.log2(found.run.value), sd, 200_000)
    candidates = math.log2(found.run.value) + np.arange(-2, 2, 0.02)
    expected = [np.mean((x - places) ** 2 * np.where(x > places, asymmetry, 1.0)) for x in candidates]
    assert math.log2(found.lr) == pytest.approx(candidates[np.argmin(expected)], abs=0.04)
    assert (found.lr < 0.9 * found.run.value) == (asymmetry > 1)

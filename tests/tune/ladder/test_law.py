"""The scaling law: planted numbers come back, as another optimizer finds them, and intervals hold what they promise."""

import numpy as np
import pytest
import torch

from gpt_lightning.tune.ladder.law import HUBER, fit_law

EPOCH = (1.8172, 482.01, 0.3478, 2085.43, 0.3658)  # arXiv 2404.10102
SIZES = [3e7, 1e8, 3e8, 1e9]
TOKENS = [1e9, 4e9, 16e9, 64e9]


def planted(n, d, p=1.0):
    e, a, alpha, b, beta = EPOCH
    return e + ((a / n**alpha) ** p + (b / d**beta) ** p) ** (1 / p)


def grid(noise: float = 0.0, seed: int = 0, p: float = 1.0):
    pairs = [(n, d) for n in SIZES for d in TOKENS]
    random = np.random.default_rng(seed)
    return *zip(*pairs, strict=True), [planted(n, d, p) * np.exp(random.normal(0, noise)) for n, d in pairs]


@pytest.mark.parametrize("is_kaplan", [False, True])
def test_exact_losses_give_the_planted_numbers_and_the_form_back(is_kaplan):
    law = fit_law(*grid(p=1 / EPOCH[-1] if is_kaplan else 1.0), highest_e=2.0)
    assert law.is_kaplan == is_kaplan
    for name, value in zip("EAaBb", EPOCH, strict=True):
        assert law.numbers()[name].value == pytest.approx(value, rel=2e-3), name


def test_runs_far_above_it_do_not_say_what_e_is():
    """Where they ask for more than is known to be possible, it is the most that is."""
    e = fit_law(*grid(0.003), highest_e=1.0).numbers()["E"]
    assert e.value == pytest.approx(1.0) and 0 < e.low <= e.high == pytest.approx(1.0)
    free, told = (fit_law(*grid(0.003), highest_e=highest_e).numbers()["E"].value for highest_e in (None, 4.0))
    assert told == free == pytest.approx(EPOCH[0], rel=0.15)


def test_the_fit_costs_no_more_than_that_of_another_optimizer():
    """L-BFGS of torch, from its best start of many, on the sum of Huber losses of log L."""
    n, d, losses = grid(0.01)
    x = torch.log(torch.tensor([n, d], dtype=torch.float64))
    y = torch.log(torch.tensor(losses, dtype=torch.float64))

    def cost(p):
        terms = torch.stack([p[0].expand(len(y)), p[1] - p[2] * x[0], p[3] - p[4] * x[1]])
        return torch.nn.functional.huber_loss(terms.logsumexp(0), y, delta=HUBER, reduction="sum")

    lowest = np.inf
    for start in ((0.5, 6.0, 0.35, 7.0, 0.35), (0.2, 4.0, 0.2, 5.0, 0.3), (0.6, 8.0, 0.5, 9.0, 0.5)):
        p = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([p], max_iter=2000, line_search_fn="strong_wolfe", tolerance_change=1e-14)

        def closure(p=p, optimizer=optimizer):
            optimizer.zero_grad()
            value = cost(p)
            value.backward()
            return value

        optimizer.step(closure)
        lowest = min(lowest, cost(p).item())
    law = fit_law(n, d, losses)
    assert not law.is_kaplan
    ours = torch.tensor([law.loss(*pair) for pair in zip(n, d, strict=True)], dtype=torch.float64).log()
    found = torch.nn.functional.huber_loss(ours, y, delta=HUBER, reduction="sum").item()
    assert found <= lowest * 1.001


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "p"), [(0.003, 1.0), (0.01, 1.0), (0.01, 1 / EPOCH[-1])])
def test_the_interval_holds_a_run_of_16_times_the_compute_as_often_as_it_says(noise, p):
    held, errors = [], []
    for seed in range(40):
        law = fit_law(*grid(noise, seed, p), seed=seed)
        run = planted(4e9, 256e9, p) * np.exp(np.random.default_rng(1000 + seed).normal(0, noise))
        found = law.predicted(4e9, 256e9)
        held.append(found.low <= run <= found.high)
        errors.append(abs(found.value / run - 1))
    assert np.mean(held) > 0.8, np.mean(held)
    assert np.median(errors) < 3 * noise


def test_outliers_do_not_pull_the_fit():
    n, d, losses = grid(0.001)
    losses[5] *= 1.2
    assert fit_law(n, d, losses).loss(4e9, 256e9) == pytest.approx(planted(4e9, 256e9), rel=0.01)


def test_the_optimum_is_that_of_the_formula():
    law = fit_law(*grid())
    flops = 1e21
    sizes = np.geomspace(1e8, 1e10, 200)
    first, others = law.best_of([(n, flops / 6 / n) for n in sizes])
    e, a, alpha, b, beta = EPOCH
    expected = (alpha * a / (beta * b)) ** (1 / (alpha + beta)) * (flops / 6) ** (beta / (alpha + beta))
    assert sizes[first] == pytest.approx(expected, rel=0.03)
    assert min(sizes[others]) <= expected <= max(sizes[others])


def test_of_exact_losses_a_run_still_differs_by_its_seed():
    found = fit_law(*grid()).predicted(4e9, 256e9)
    assert 1.002 < found.high / found.low < 1.03


def test_too_few_runs_are_refused():
    with pytest.raises(ValueError, match="5 runs of 2 sizes and 3 lengths; a law of 5 numbers needs more runs"):
        fit_law([1e7, 1e7, 1e7, 1e8, 1e8], [1e9, 2e9, 3e9, 1e9, 2e9], [3.0] * 5)

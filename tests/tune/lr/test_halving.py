"""The search finds planted optima, says how sure it is, and widens at an edge; the range test brackets."""

import math

import numpy as np
import pytest
import torch

from gpt_lightning.tune.lr.halving import fit_minimum, search
from gpt_lightning.tune.lr.range_test import HIGHEST, LOWEST, RaiseLearningRate, RangeTest, has_risen, smooth


def planted(best: float, noise: float = 0.0, diverges_at: float = math.inf):
    """Loss of a run: a quadratic in log2 lr, steeper above the optimum, the same offset for every lr of a seed."""
    random, calls = np.random.default_rng(0), []

    def loss(lr: float, tokens: int, seed: int) -> float:
        calls.append((lr, tokens, seed))
        x = math.log2(lr / best)
        value = 3 + 0.02 * x * x * (1.5 if x > 0 else 1) + 0.5 * seed + noise * random.standard_normal()
        return math.inf if lr > diverges_at else value

    return loss, calls


@pytest.mark.parametrize("best", [1e-4, 7e-4, 5e-3, 2e-2])
def test_a_planted_optimum_is_found_within_a_tenth_and_trials_stay_under_budget(best):
    loss, calls = planted(best)
    found = search(loss, upper=8e-3, tokens=1000, seeds=2)
    assert found.minimum.lr == pytest.approx(best, rel=0.15) and not found.edge
    assert sum(tokens for _, tokens, _ in calls) <= 14_500


@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize("steepness", [1.0, 1.5])
def test_the_interval_holds_the_optimum_nine_times_in_ten(steepness, seeds):
    """Also where the loss is steeper above the optimum than below, as it is in training."""
    held = 0
    for i in range(100):
        random = np.random.default_rng(i)
        best = 2.0 ** random.uniform(-9.5, -8.5)

        def loss(lr: float, tokens: int, seed: int, best=best, random=random) -> float:
            x = math.log2(lr / best)
            return 3 + 0.02 * x * x * (steepness if x > 0 else 1) + 0.3 * seed + 0.01 * random.standard_normal()

        minimum = search(loss, 2.0**-7, 1000, seeds).minimum
        held += minimum.low <= best <= minimum.high
    assert held >= 81  # 90 of 100 expected, three standard deviations below


def test_what_a_quadratic_misses_widens_the_interval_though_seeds_agree():
    shapes = {"quadratic": lambda x: x * x, "steeper above": lambda x: x * x * (4 if x > 0 else 1)}
    widths = {}
    for name, shape in shapes.items():
        minimum = fit_minimum({2.0**i: [0.02 * shape(i + 0.3) + s for s in range(3)] for i in (-2, -1, 0, 1)})
        widths[name] = math.log2(minimum.high / minimum.low)
    assert widths["steeper above"] > 2 * widths["quadratic"]


def test_three_points_and_one_seed_say_nothing_of_the_noise():
    minimum = fit_minimum({2.0**i: [0.02 * i * i] for i in (-1, 0, 1)})
    assert (minimum.low, minimum.high) == pytest.approx((0.5, 2.0))


def test_more_noise_gives_a_wider_interval():
    widths = []
    for noise in (0.001, 0.02):
        minimum = search(planted(3e-3, noise)[0], 1e-2, 1000, 2).minimum
        widths.append(math.log2(minimum.high / minimum.low))
    assert widths[1] > 2 * widths[0]


def test_an_offset_of_a_seed_drops_out():
    losses = {2.0**i: [0.02 * i * i, 5 + 0.02 * i * i] for i in (-2, -1, 0, 1, 2)}
    minimum = fit_minimum(losses)
    assert minimum.lr == pytest.approx(1.0, abs=1e-9)
    assert math.log2(minimum.high / minimum.low) == pytest.approx(0.5), "more than the least there is"


def test_an_edge_widens_the_search_once_and_an_optimum_far_away_is_a_warning():
    found = search(planted(1e-1)[0], upper=2e-2, tokens=1000, seeds=1)
    assert found.widened and not found.edge and found.minimum.lr == pytest.approx(1e-1, rel=0.15)
    far = search(planted(1e3)[0], upper=2e-2, tokens=1000, seeds=1)
    assert far.widened and far.edge == 1 and max(far.rounds[0].losses) == pytest.approx(2e-2 * 8)


def test_a_trial_that_diverges_is_a_result():
    found = search(planted(4e-3, diverges_at=5e-3)[0], upper=3.2e-2, tokens=1000, seeds=2)
    assert found.minimum.lr <= 5e-3 and not math.isnan(found.minimum.lr)
    with pytest.raises(ValueError, match="every trial stopped being finite"):
        search(planted(1e-3, diverges_at=0.0)[0], upper=1e-2, tokens=1000, seeds=1)


class Quadratic(torch.nn.Module):
    """0.5 h w^2 in two parameter groups; plain gradient descent diverges where lr x ratio x h > 2."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.ParameterList([torch.ones(1), torch.ones(1)])

    def forward(self) -> torch.Tensor:
        return 0.5 * (10 * self.w[0] ** 2 + 1 * self.w[1] ** 2).sum()


class Run:
    """What RaiseLearningRate reads of a Trainer."""

    accumulate_grad_batches, should_stop = 1, False


def test_the_range_test_ends_where_a_quadratic_diverges_and_keeps_an_8_to_1_ratio_of_groups():
    """h lr = 2 for the first parameter, lr 0.2; the second, at an eighth of the rate, would stand lr 16."""
    model = Quadratic()
    optimizer = torch.optim.SGD([{"params": [model.w[0]], "lr": 0.8}, {"params": [model.w[1]], "lr": 0.1}])
    peak = [group["lr"] for group in optimizer.param_groups]
    ramp, ratios = RaiseLearningRate(lr=0.8, n_steps=30), []
    while not Run.should_stop and len(ramp.losses) < 30:
        for group, lr in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = lr  # as the scheduler does at every step
        optimizer.zero_grad()
        loss = model()
        loss.backward()
        ramp.on_before_optimizer_step(Run, None, optimizer)
        ratios.append(optimizer.param_groups[0]["lr"] / optimizer.param_groups[1]["lr"])
        assert optimizer.param_groups[0]["lr"] == pytest.approx(ramp.lrs[len(ramp.losses)])
        optimizer.step()
        ramp.on_train_batch_end(Run, None, {"loss": loss.detach()}, None, len(ramp.losses))
        if ramp.losses[-1] > 1e6:
            break
    assert ratios == pytest.approx([8.0] * len(ratios))
    assert 0.2 / 4 < ramp.result().upper < 0.2 * 4  # steps of 1.5 and the smoothing blur it


def test_the_rates_rise_evenly_in_log():
    lrs = RaiseLearningRate(lr=1.0, n_steps=11).lrs
    assert lrs[0] == LOWEST and lrs[-1] == pytest.approx(HIGHEST)
    assert [b / a for a, b in zip(lrs, lrs[1:], strict=False)] == pytest.approx([(HIGHEST / LOWEST) ** 0.1] * 10)


def test_smoothing_starts_at_the_first_loss_and_the_bound_is_where_it_is_lowest():
    assert smooth([4.0, 4.0, 4.0]) == pytest.approx([4.0] * 3)
    assert RangeTest([1.0, 2.0, 4.0, 8.0], [5.0, 1.0, 9.0, 9.0]).upper == 2.0
    assert has_risen([5.0, 4.0, math.nan]) and has_risen([9.0, 5.0, 5.0, 12.0]) and not has_risen([9.0, 8.0, 7.0, 7.1])

"""The search finds planted optima, widens at every edge, makes trials longer where it must; the range test brackets."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gpt_lightning.tune.lr.halving import WIDE, search
from gpt_lightning.tune.lr.range_test import HIGHEST, LOWEST, RaiseLearningRate, RangeTest, has_risen, smooth


def planted(best: float, diverges_at: float = math.inf):
    """Loss of a run: a quadratic in log2 lr, steeper above the optimum, the same offset for every lr of a seed."""
    calls = []

    def loss(lr: float, tokens: int, seed: int) -> float:
        calls.append((lr, tokens, seed))
        x = math.log2(lr / best)
        value = 3 + 0.02 * x * x * (1.5 if x > 0 else 1) + 0.5 * seed
        return math.inf if lr > diverges_at else value

    return loss, calls


@pytest.mark.parametrize("best", [1e-4, 7e-4, 5e-3, 2e-2])
def test_a_planted_optimum_is_found_within_a_tenth_and_trials_stay_under_budget(best):
    loss, calls = planted(best)
    found = search(loss, 8e-3, tokens=1000, seeds=2, max_tokens=1000)
    assert found.answer.trials.value == pytest.approx(best, rel=0.15) and not found.edge
    assert found.vague is False and found.lengthened is False  # bools of Python: result.json holds them
    assert sum(tokens for _, tokens, _ in calls) <= 14_500


def test_an_edge_widens_the_round_and_an_optimum_far_away_is_a_warning():
    found = search(planted(1e-1)[0], 2e-2, tokens=1000, seeds=1, max_tokens=1000)
    assert found.widened and not found.edge and found.answer.trials.value == pytest.approx(1e-1, rel=0.15)
    far = search(planted(1e3)[0], 2e-2, tokens=1000, seeds=1, max_tokens=1000)
    assert far.widened and far.edge == 1 and max(far.rounds[0].losses) == pytest.approx(2e-2 * 8)


def test_an_edge_in_a_later_round_widens_again():
    """The optimum falls from round to round: the last two meet it beyond their smallest learning rate, and go there."""
    middle = {250: -8.0, 500: -10.4, 1000: -11.4}

    def loss(lr: float, tokens: int, seed: int) -> float:
        return 3 + 0.05 * (math.log2(lr) - middle[tokens]) ** 2

    found = search(loss, 2.0**-7, tokens=1000, seeds=1, max_tokens=1000)
    assert [len(done.losses) for done in found.rounds] == [7, 5, 5] and found.widened
    lowest = [math.log2(min(done.losses)) for done in found.rounds]
    assert lowest == [-13, -11, -12] and not found.edge


def noisy(noise: float):
    """Losses about an optimum of 3e-3 for every length."""
    random, calls = np.random.default_rng(2), []

    def loss(lr: float, tokens: int, seed: int) -> float:
        calls.append((lr, tokens, seed))
        return 3 + 0.04 * math.log2(lr / 3e-3) ** 2 + noise * random.standard_normal()

    return loss, calls


def test_an_interval_wider_than_a_factor_of_8_is_answered_by_longer_trials_once():
    """For a run of 16 times the tokens, trials of 4 times the tokens know more of the exponent, and have less to go."""
    loss, calls = noisy(0.005)
    found = search(loss, 2e-2, tokens=1000, seeds=2, max_tokens=16_000)
    assert found.lengthened and found.rounds[-1].tokens == 4000
    assert not found.vague and found.answer.run.low < 3e-3 < found.answer.run.high
    assert 3 <= sum(tokens == 4000 for _, tokens, _ in calls) <= 4
    assert {seed for _, tokens, seed in calls if tokens == 4000} == {0}


def test_an_interval_that_stays_wide_is_said_so_and_not_tried_again():
    loss, calls = noisy(0.2)
    found = search(loss, 2e-2, tokens=1000, seeds=2, max_tokens=100_000)
    assert found.lengthened and found.vague and found.answer.run.factor > WIDE
    assert sum(tokens > 1000 for _, tokens, _ in calls) <= 4


def test_longer_trials_are_no_longer_than_the_run():
    loss, calls = noisy(0.5)
    search(loss, 2e-2, tokens=2000, seeds=1, max_tokens=3000)
    assert max(tokens for _, tokens, _ in calls) == 3000


def test_a_trial_that_diverges_is_a_result():
    found = search(planted(4e-3, diverges_at=5e-3)[0], 3.2e-2, tokens=1000, seeds=2, max_tokens=1000)
    assert found.answer.trials.value <= 5e-3 and not math.isnan(found.answer.trials.value)
    with pytest.raises(ValueError, match="every trial stopped being finite"):
        search(planted(1e-3, diverges_at=0.0)[0], 1e-2, tokens=1000, seeds=1, max_tokens=1000)


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
        module = SimpleNamespace(step=SimpleNamespace(loss=loss.detach()))
        ramp.on_train_batch_end(Run, module, None, None, len(ramp.losses))
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

"""Another batch learns as much per token: by half-lives, and by noisy quadratics trained with the real optimizers."""

import math
from collections import defaultdict

import pytest
import torch

from gpt_lightning.optim.muon import muon_step
from gpt_lightning.optim.optimizer import adamw_step
from gpt_lightning.optim.rescale import StepSettings, ramp_overlay, rescaled, rounded

ADAMW = {"lr": 2e-3, "lr_ratio": 1.0, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "fused": False}
MUON = {"lr": 2e-3, "lr_ratio": 1.0, "weight_decay": 0.1, "momentum": 0.95, "adjust_lr": "match_rms_adamw"}
MUON |= {"cautious": False, "parts": (8,) * 32}


def half_life(keep: float) -> float:
    """Steps after which half is forgotten."""
    return math.log(0.5) / math.log(keep)


def test_beta2_and_the_weights_keep_their_memory_in_tokens():
    """Half-life of 0.95: 13.51 steps; of a quarter of the batch 54.05. Of the weights: ln 2 / (lr x decay) steps."""
    new = rescaled({"lr": 4e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}, 1 / 4)
    assert new["lr"] == pytest.approx(2e-3) and new["betas"][0] == 0.9
    assert half_life(new["betas"][1]) == pytest.approx(54.05, rel=1e-3)
    assert 1 / (new["lr"] * new["weight_decay"]) == pytest.approx(4 / (4e-3 * 0.1))


@pytest.mark.parametrize("rule", ["sqrt", "linear"])
def test_weight_decay_follows_every_rule_of_lr(rule):
    new = rescaled({"lr": 1.0, "weight_decay": 0.1}, 1 / 9, rule)
    assert new == {
        "lr": pytest.approx({"sqrt": 1 / 3, "linear": 1 / 9}[rule]),
        "weight_decay": pytest.approx(0.1 / 9 / new["lr"]),
    }


def test_only_what_is_there_and_is_a_number_changes():
    group = {"lr": 1.0, "momentum": 0.95, "weight_decay": "timescale", "eps": 1e-8}
    assert rescaled(group, 4) == {"lr": 2.0}
    assert rescaled({"lr": 1.0, "betas": (0.9, 0.95), "weight_decay": 0.1}, 4, "none", False) == {"lr": 1.0}


def test_yaml_has_readable_numbers_that_keep_the_memory():
    found = rounded(rescaled({"lr": 1e-2, "betas": (0.9, 0.999), "weight_decay": 0.1}, 1 / 64))
    assert found == {"lr": 0.00125, "betas": [0.9, 0.999984367], "weight_decay": 0.0125}
    assert half_life(found["betas"][1]) == pytest.approx(64 * half_life(0.999), rel=1e-4)


def test_a_steps_own_settings_are_gone_after_it_but_lr_which_the_scheduler_sets():
    groups = [
        {"lr": 1.0, "betas": (0.9, 0.95), "weight_decay": 0.1},
        {"lr": 2.0, "momentum": 0.95, "weight_decay": 0.0},
    ]
    before, step = [dict(group) for group in groups], StepSettings()
    step.rescale(groups, 4)
    assert groups[0] == {"lr": 2.0, "betas": (0.9, pytest.approx(0.95**4)), "weight_decay": pytest.approx(0.2)}
    assert groups[1] == {"lr": 4.0, "momentum": 0.95, "weight_decay": 0.0}
    step.restore(groups)
    assert [{**group, "lr": one["lr"]} for group, one in zip(groups, before, strict=True)] == before
    groups[0]["betas"] = (0.5, 0.5)
    step.restore(groups)
    assert groups[0]["betas"] == (0.5, 0.5), "restored twice"


def noisy_quadratic(settings: dict, ratio: float, tokens: int = 1024) -> float:
    """Loss after so many tokens, a batch being `ratio` of them, where gradients are 30 times more noise than signal."""
    torch.manual_seed(0)
    step = muon_step if "momentum" in settings else adamw_step
    target = 0.3 * torch.randn(32 * 8, 8)
    weights = torch.nn.Parameter(torch.zeros_like(target))
    group, state = {**settings, "params": [weights]}, defaultdict(dict)
    with torch.no_grad():
        for _ in range(int(tokens / ratio)):
            noise = 10 / math.sqrt(ratio) * torch.randn_like(target)
            weights.grad = weights - target + noise
            step(group, state, None)
    return (weights - target).square().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [ADAMW, MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("ratio", [1 / 2, 4])
def test_a_rescaled_optimizer_is_as_far_after_the_same_tokens(settings, ratio):
    """And with a first moment over the same tokens Muon is not: that would want lr x ratio."""
    same = noisy_quadratic(settings, 1)
    found = noisy_quadratic({**settings, **rescaled(settings, ratio)}, ratio)
    assert found == pytest.approx(same, rel=0.02)
    assert noisy_quadratic(settings, ratio) != pytest.approx(same, rel=0.05), "the batch alone makes no difference here"
    if "momentum" in settings:
        over_tokens = {**settings, **rescaled(settings, ratio), "momentum": settings["momentum"] ** ratio}
        assert noisy_quadratic(over_tokens, ratio) != pytest.approx(same, rel=0.05)


def test_a_ramp_gets_a_start_that_fits_the_new_batch():
    ramp = {"ramp_tokens": 1000, "start_batch_tokens": 64}
    assert ramp_overlay(ramp, 32, 256) == {} and ramp_overlay({**ramp, "ramp_tokens": 0}, 128, 256) == {}
    assert ramp_overlay(ramp, 128, 256) == {"batch_ramp": {"start_batch_tokens": 128}}
    assert ramp_overlay(ramp, 16, 32) == {"batch_ramp": {"start_batch_tokens": 32}}

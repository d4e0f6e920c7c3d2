"""Schedules against GPT-3's published token marks and values worked out by hand."""

import math

import pytest

from gpt_lightning.optim.schedules import ScheduleConfig, lr_multiplier

GPT3 = ScheduleConfig(name="cosine", warmup_tokens=375_000_000, decay_tokens=260_000_000_000, min_lr_ratio=0.1)
HORIZON = 300_000_000_000


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (0, 0.0),
        (187_500_000, 0.5),  # half the warm-up
        (375_000_000, 1.0),
        (375_000_000 + (260_000_000_000 - 375_000_000) // 2, 0.55),  # half of the cosine: (1 + 0.1) / 2
        (260_000_000_000, 0.1),
        (280_000_000_000, 0.1),  # the flat tail
        (300_000_000_000, 0.1),
    ],
)
def test_gpt3_schedule_at_the_papers_token_marks(tokens, expected):
    assert lr_multiplier(GPT3, tokens, HORIZON) == pytest.approx(expected, abs=1e-6)


def test_cosine_is_the_cosine():
    config = ScheduleConfig(name="cosine", min_lr_ratio=0.0)
    assert lr_multiplier(config, 25, 100) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("linear", [0.0, 1.0, 0.5, 0.0]),
        ("constant", [0.0, 1.0, 1.0, 1.0]),
        ("wsd", [0.0, 1.0, 1.0, 0.0]),
    ],
)
def test_shapes_at_start_peak_middle_and_end(name, values):
    config = ScheduleConfig(name=name, warmup_tokens=100, min_lr_ratio=0.0)
    assert [lr_multiplier(config, tokens, 1100) for tokens in (0, 100, 600, 1100)] == pytest.approx(values)


def test_wsd_decays_over_its_decay_tokens_only():
    config = ScheduleConfig(name="wsd", decay_tokens=200, min_lr_ratio=0.5)
    values = [lr_multiplier(config, tokens, 1000) for tokens in (799, 800, 900, 1000, 1200)]
    assert values == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.5])


def test_the_default_wsd_decay_is_the_last_fifth():
    config = ScheduleConfig(name="wsd", min_lr_ratio=0.0)
    assert lr_multiplier(config, 799, 1000) == 1.0
    assert lr_multiplier(config, 900, 1000) == pytest.approx(0.5)


@pytest.mark.parametrize("options", [{"warmup_tokens": -1}, {"decay_tokens": 0}, {"min_lr_ratio": 1.5}])
def test_impossible_settings_are_refused_by_name(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        ScheduleConfig(**options)

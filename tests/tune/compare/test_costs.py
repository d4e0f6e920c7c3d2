"""Costs: arms take turns, the least disturbed trial counts, and memory is that of the trial alone."""

from types import SimpleNamespace

import pytest
import torch

from gpt_lightning.run.stack import read_stack
from gpt_lightning.tune.compare.costs import Cost, PeakMemory, measure, measure_in_turns
from tests.fixtures import arguments

CPU = torch.device("cpu")


def test_arms_take_turns_and_the_fastest_trial_counts():
    order, seconds = [], iter([3.0, 8.0, 9.0, 2.0, 4.0, 7.0])

    def timed(stack: str) -> Cost:
        order.append(stack)
        return Cost(next(seconds), 5, 1, 1.0)

    arms = [SimpleNamespace(name=name, stack=name) for name in ("a", "b")]
    first, second = measure_in_turns(arms, timed)
    assert "".join(order) == "abbaab"
    assert (first["seconds_per_token"], second["seconds_per_token"]) == (2.0, 7.0)


def test_peak_memory_is_what_a_trial_adds_whatever_was_used_before():
    def uses(megabytes: int) -> float:
        memory = PeakMemory()
        used = torch.ones(megabytes * 2**18)
        peak = memory.peak_bytes(CPU)
        del used
        if peak is None:
            pytest.skip("this system does not tell the peak")
        return peak / 2**20

    assert [uses(megabytes) for megabytes in (200, 60, 100)] == pytest.approx([200, 60, 100], abs=8)


def test_where_the_kernel_does_not_tell_it_is_not_measured(monkeypatch):
    monkeypatch.setattr("gpt_lightning.tune.compare.costs._status", lambda name: {"VmRSS": 0, "VmHWM": 2**30}[name])
    assert PeakMemory().peak_bytes(CPU) is None, "the peak was not reset"


@pytest.mark.slow
def test_a_trial_is_priced_and_does_not_diverge_whatever_its_lr(folder):
    flags = {"data.corpus": "text.txt", "model.optim.lr": 1e30, "model.gpt.dropout": 0.0}
    stack, _ = read_stack(arguments(flags), "tune none")
    cost = measure(stack)
    D, V, T = 16, 257, 16
    assert cost.n_params == V * D + T * D + 2 * (12 * D * D + 13 * D) + 2 * D
    assert cost.flops_per_token == 6 * (2 * 12 * D * D + V * D) + 2 * 12 * D * (T + 1) / 2
    assert 0 < cost.seconds_per_token < 1

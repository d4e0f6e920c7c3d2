"""Verdicts: a stack beside itself has no winner, a planted difference is found, and it asks for enough seeds."""

import math

from gpt_lightning.tune.compare.verdict import Comparison, compare, judge

# Final validation bits per byte of 24 seeds of one stack (2 layers x 64, 0.25 million tokens of the standard library).
LOSSES: list[float] = []
BITS = "bits per byte"


def verdict(arm: list[float], baseline: list[float], level: float = 0.05) -> Comparison:
    return judge([compare("arm", arm, baseline, level)], level)[0]


def words(one: Comparison) -> str:
    return one.sentence(BITS, 0.05, 1, "after 5 tokens")


def test_each_verdict_has_its_sentence():
    baseline = [1.00, 1.02, 0.98]
    cases = [
        (
            [0.90, 0.93, 0.88],
            "lower",
            "lower here by 0.0967 bits per byte (9.67%) after 5 tokens; 95% interval -0.1110",
        ),
        ([1.10, 1.13, 1.08], "higher", "higher here by 0.1033"),
        ([1.001, 1.021, 0.982], "no difference", "interval -0.0001 to +0.0028 lies within 0.5% of the baseline's mean"),
        (baseline, "no difference", "all pairs of runs are equal, 3 seeds"),
        ([1.05, 0.98, 0.975], "cannot tell", "more than 100 further seeds would be needed"),
        ([1.05, 1.03, 0.99], "cannot tell", "further seeds would tell"),
        ([1.0, math.inf, 1.0], "diverged", "1 of 3 runs diverged (loss no longer finite), 0 of the baseline"),
    ]
    for arm, kind, text in cases:
        found = verdict(arm, baseline)
        assert found.kind == kind and text in words(found), words(found)
        assert "better" not in words(found)
    alone = verdict([0.9], [1.0])
    assert alone.kind == "one seed" and "cannot tell from one seed: 0.1000" in words(alone)
    assert verdict([1.0, 1.0], [math.inf, 1.0]).kind == "diverged"

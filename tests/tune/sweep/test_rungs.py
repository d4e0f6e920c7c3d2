"""Rungs: how long each is, and who goes on."""

import random

import pytest

from gpt_lightning.tune.sweep.rungs import promoted, rung_tokens


def test_the_last_rung_is_the_whole_run_and_one_too_short_is_refused():
    assert rung_tokens(900, 3, 3, 100) == [100, 300, 900]
    assert rung_tokens(900, 1, 3, 100) == [900]
    with pytest.raises(ValueError, match="tune.rungs 4: the first would have 33 tokens, fewer than 100"):
        rung_tokens(900, 4, 3, 100)


def climbed(scores: list[float], factor: int, n_rungs: int) -> tuple[dict[int, list[float]], list[int]]:
    """One worker trains all, then whoever is to go on; the scores, and how many ended each rung."""
    known = {trial: [score] for trial, score in enumerate(scores)}
    while (trial := promoted(known, (), factor, n_rungs)) is not None:
        known[trial].append(scores[trial])
    return known, [sum(len(theirs) > rung for theirs in known.values()) for rung in range(n_rungs)]


@pytest.mark.parametrize(
    ("n", "counts"), [(27, [27, 9, 3]), (18, [18, 6, 2]), (8, [8, 2, 1]), (2, [2, 1, 1]), (1, [1, 1, 1])]
)
def test_a_third_goes_on_and_at_least_one_to_the_end(n, counts):
    scores = [random.Random(n).random() for _ in range(n)]
    known, found = climbed(scores, 3, 3)
    assert found == counts
    best = sorted(range(n), key=scores.__getitem__)
    for rung, count in enumerate(counts):
        assert {trial for trial, theirs in known.items() if len(theirs) > rung} == set(best[:count])


def test_a_diverged_trial_counts_and_does_not_go_on():
    inf = float("inf")
    assert climbed([inf, inf, 2.0, inf, inf, inf], 3, 2)[1] == [6, 1]
    assert climbed([inf, inf], 3, 2)[1] == [2, 0]


def test_beside_others_at_work_only_a_whole_third_goes_on_and_nobody_twice():
    known = {0: [1.0], 1: [2.0], 2: [3.0]}
    assert promoted({0: [1.0], 1: [2.0]}, {2}, 3, 3) is None, "of two a third is none yet"
    assert promoted(known, {3}, 3, 3) == 0
    assert promoted({**known, 0: [1.0, 0.9]}, {3}, 3, 3) is None
    assert promoted(known, {0, 3}, 3, 3) is None, "it has been taken"

"""Packing: every example once, none cut, and as few rows as best fit makes."""

import numpy as np
import pytest

from gpt_lightning.data.examples.packing import pack


def brute_force(lengths, room):
    """Best fit by looking at every row, the longest first."""
    rows = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = [row for row in rows if sum(lengths[j] for j in row) + lengths[i] <= room]
        if fits:
            max(fits, key=lambda row: sum(lengths[j] for j in row)).append(i)
        else:
            rows.append([i])
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_it_is_best_fit_decreasing(seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 65, 200).tolist()
    rows = pack(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(200))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 64
    assert len(rows) == len(brute_force(lengths, 64)) <= 1.05 * -(-sum(lengths) // 64)


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="an example of 65 tokens does not fit a row of 64"):
        pack([3, 65], 64)


def test_a_hundred_thousand_examples_take_seconds():
    lengths = np.random.default_rng(0).integers(1, 257, 100_000).tolist()
    assert len(pack(lengths, 256)) < 1.02 * sum(lengths) / 256

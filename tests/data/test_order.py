"""The sample order: exact mixture, every window once per epoch, the same from any start and on any number of ranks."""

import itertools

import numpy as np
import pytest

from gpt_lightning.data.order import BLOCK, Order, block_counts, permute

GPT3_MIX = [0.60, 0.22, 0.08, 0.08, 0.03]  # Brown et al. 2020, table 2.2 (sums to 1.01)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 63, 64, 65, 1000, 4097, 100_003])
@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_the_permutation_is_one(size, key):
    image = permute(np.arange(size), size, np.full(size, key, dtype=np.uint64))
    assert np.array_equal(np.sort(image), np.arange(size))


def test_all_orders_of_four_windows_are_about_equally_likely():
    keys = np.random.SeedSequence(1).generate_state(24_000, np.uint64)
    images = permute(np.tile(np.arange(4), len(keys)), 4, np.repeat(keys, 4)).reshape(-1, 4)
    counts = np.array([(images == order).all(axis=1).sum() for order in itertools.permutations(range(4))])
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 49.7  # 23 degrees of freedom, p = 0.001


def test_neighbours_do_not_stay_neighbours():
    size = 100_000
    image = permute(np.arange(size), size, np.full(size, 7, dtype=np.uint64))
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(image, np.arange(size))[0, 1]) < 0.02


@pytest.mark.parametrize("weights", [[1.0], GPT3_MIX, [1, 1, 1], [1, 1e-5], [1e-4] * 5000, [0.999, 0.0005, 0.0005]])
def test_blocks_are_full_and_weights_exact_in_the_long_run(weights):
    counts = block_counts(weights)
    shares = np.array(weights) / np.sum(weights)
    assert (counts >= 0).all() and (counts.sum(axis=1) == BLOCK).all()
    assert np.abs(counts - shares * BLOCK).max() < 1 + 1e-9
    assert np.abs(counts.sum(axis=0) - shares * BLOCK * len(counts)).max() < 1.5


def test_the_mixture_keeps_its_weights_over_any_stretch():
    order = Order(0, GPT3_MIX, [500, 400, 300, 200, 100])
    for start, count in [(0, 20_480), (777, 20_480), (10**12, 20_480)]:
        ids, _ = order.samples(start, count)
        shares = np.bincount(ids, minlength=5) / count
        assert np.abs(shares - np.array(GPT3_MIX) / 1.01).max() < 0.005


@pytest.mark.parametrize("sizes", [[5], [3000], [7, 2048, 11]])
def test_every_window_comes_once_per_epoch_and_epochs_differ(sizes):
    order = Order(3, [1.0] * len(sizes), sizes)
    ids, windows = order.samples(0, 3 * len(sizes) * max(sizes) + BLOCK)
    for corpus, size in enumerate(sizes):
        mine = windows[ids == corpus]
        epochs = mine[: len(mine) // size * size].reshape(-1, size)
        assert len(epochs) >= 3
        assert (np.sort(epochs, axis=1) == np.arange(size)).all()
        assert not np.array_equal(epochs[0], epochs[1])


def test_any_stretch_can_be_asked_for_without_the_ones_before():
    whole = np.stack(Order(5, [2, 1], [1000, 70]).samples(0, 3 * BLOCK))
    draw = np.random.default_rng(0)
    for _ in range(50):
        start, count = int(draw.integers(0, 2 * BLOCK)), int(draw.integers(1, BLOCK))
        fresh = np.stack(Order(5, [2, 1], [1000, 70]).samples(start, count))
        assert np.array_equal(fresh, whole[:, start : start + count])


def test_far_blocks_continue_the_epochs_of_the_near_ones():
    """Counters are closed-form: across sample 2 million no window of a long epoch comes twice."""
    period = 1024 * BLOCK
    ids, windows = Order(1, [3, 1], [1000, 10**6]).samples(period - 4 * BLOCK, 8 * BLOCK)
    long = windows[ids == 1]
    assert len(np.unique(long)) == len(long) == 8 * BLOCK // 4
    short = windows[ids == 0]
    first = -(period - 4 * BLOCK) * 3 // 4 % 1000  # where the next epoch of the short corpus begins
    assert np.array_equal(np.sort(short[first : first + 1000]), np.arange(1000))


def test_seed_selects_the_order():
    def first(seed):
        return np.stack(Order(seed, [1, 1], [10_000, 10_000]).samples(0, 500))

    assert np.array_equal(first(0), first(0))
    assert (first(0) != first(1)).mean() > 0.5


@pytest.mark.parametrize(
    "arguments",
    [(-1, [1], [5]), (0, [1, 1], [5]), (0, [1], [0]), (0, [0, 1], [5, 5]), (0, [-1], [5]), (0, [float("nan")], [5])],
)
def test_arguments_without_meaning_are_refused(arguments):
    with pytest.raises(ValueError, match="expected|needs"):
        Order(*arguments)

"""Which window is sample number g: a pure function of (seed, g), so no index file, no state, no worker or rank in it.

Samples come in blocks of 2048. A block holds a fixed number of each corpus (weights x 2048, rounding carried from block
to block), in an order drawn from (seed, block). Corpus c's own k-th sample is window permutation(k mod size) of its
epoch k // size, so every window is seen once per epoch, and the 10^12th sample is found as fast as the first.
The permutation is a Feistel cipher over the next power of four with cycle-walking (Black & Rogaway 2002, "Ciphers with
arbitrary finite domains"), keyed by (seed, corpus, epoch): no memory, where a shuffled index needs 8 bytes
per window.
"""

from collections.abc import Sequence

import numpy as np

BLOCK = 2048
_PERIOD = 1024  # blocks after which the rounding of the weights repeats
_ROUNDS = 8


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer (Steele, Lea & Flood 2014): each input bit flips about half of the output bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(positions: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Image of each position [n] in [0, size) under the permutation that its key (uint64 [n]) selects; int64 [n]."""
    half = np.uint64(((size - 1).bit_length() + 1) // 2)
    mask = (np.uint64(1) << half) - np.uint64(1)
    x, keys = positions.astype(np.uint64), keys.astype(np.uint64)
    todo = np.arange(len(x))
    while len(todo):  # what lands in the rest of the power of four is sent through again
        left, right, key = x[todo] >> half, x[todo] & mask, keys[todo]
        for round_ in range(_ROUNDS):
            left, right = right, left ^ (_mix(right ^ _mix(key + np.uint64(round_))) & mask)
        x[todo] = (left << half) | right
        todo = todo[x[todo] >= size]
    return x.astype(np.int64)


def block_counts(weights: Sequence[float]) -> np.ndarray:
    """int64 [_PERIOD, n]: samples of each corpus in each block; every row sums to 2048, every column's mean is exact.

    Systematic sampling: points u, u + 1, ... are laid over the corpora's intervals of [0, 2048), with another u per
    block, so that a weight below 1/2048 still gets its share and no count is more than one off.
    """
    edges = np.concatenate([[0.0], np.cumsum(np.asarray(weights, dtype=np.float64)) / np.sum(weights)]) * BLOCK
    edges[-1] = BLOCK
    # Multiples of an odd number run through all residues, far apart from one block to the next.
    offsets = ((np.arange(_PERIOD) * 633 % _PERIOD) + 0.5) / _PERIOD
    return np.diff(np.ceil(edges[None, :] - offsets[:, None]), axis=1).astype(np.int64)


class Order:
    """The endless sample order of a weighted mixture.

    Args:
        seed: selects the order, at least 0.
        weights: share of samples of each corpus, positive; only their ratios matter.
        sizes: windows in each corpus, at least 1.
    """

    def __init__(self, seed: int, weights: Sequence[float], sizes: Sequence[int]) -> None:
        if seed < 0:
            raise ValueError(f"seed is {seed}; expected 0 or more")
        if len(weights) != len(sizes) or not sizes or min(sizes) < 1:
            raise ValueError(f"order needs one weight per corpus and at least one window in each; got {sizes}")
        if not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"corpus weights are {list(weights)}; expected positive numbers")
        self.seed, self.sizes = seed, [int(size) for size in sizes]
        self._counts = block_counts(weights)
        self._before = np.concatenate([[0 * self._counts[0]], np.cumsum(self._counts, axis=0)])
        self._keys = np.random.SeedSequence(seed).generate_state(len(sizes), np.uint64)
        self._cached: tuple[int, np.ndarray, np.ndarray] | None = None

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Corpus ids and windows, int64 [2048] each; the last block is kept, for batches are read in order."""
        if self._cached and self._cached[0] == block:
            return self._cached[1:]
        period, row = divmod(block, _PERIOD)
        first = period * self._before[-1] + self._before[row]
        corpus_ids = np.repeat(np.arange(len(self.sizes)), self._counts[row])
        corpus_ids = np.random.default_rng((self.seed, block)).permutation(corpus_ids)
        windows = np.empty(BLOCK, dtype=np.int64)
        for corpus, size in enumerate(self.sizes):
            where = np.flatnonzero(corpus_ids == corpus)
            epochs, positions = np.divmod(first[corpus] + np.arange(len(where)), size)
            keys = _mix(self._keys[corpus] + _mix(epochs.astype(np.uint64) + np.uint64(1)))
            windows[where] = permute(positions, size, keys)
        self._cached = (block, corpus_ids, windows)
        return corpus_ids, windows

    def samples(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Corpus ids and windows of samples [start, start + count), int64 [count] each."""
        blocks = range(start // BLOCK, -(-(start + count) // BLOCK))
        parts = [self._block(block) for block in blocks]
        skip = start - blocks.start * BLOCK
        corpus_ids, windows = (np.concatenate(column)[skip : skip + count] for column in zip(*parts, strict=True))
        return corpus_ids, windows

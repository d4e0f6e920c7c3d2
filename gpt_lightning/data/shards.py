"""Memory-mapped shards of token ids and the windows that training and validation read from them.

A window never crosses a shard border; inside a shard documents are joined and windows are always full (GPT-3 packing).

    shard     t0 t1 t2 t3 t4 t5 t6 t7 t8      T = 4
    window 0  [t0 t1 t2 t3] -> [t1 t2 t3 t4]
    window 1              [t4 t5 t6 t7] -> [t5 t6 t7 t8]

A shard of n tokens holds (n - 1) // T training windows. Validation adds a last, padded one, so that each of the n - 1
targets is scored exactly once. Only what a window covers is read, and nothing is copied before the int64 cast.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

IGNORED_TARGET = -100  # torch's mark of a target that does not count, written here where torch is not imported


def map_file(path: Path, dtype: np.dtype | str, offset: int = 0, count: int | None = None) -> np.ndarray:
    """A read-only memory map as a plain array (slicing np.memmap itself costs 1.6 us, this 0.5)."""
    dtype = np.dtype(dtype)
    count = (path.stat().st_size - offset) // dtype.itemsize if count is None else count
    if count == 0:
        return np.zeros(0, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,)).view(np.ndarray)


class Windows(NamedTuple):
    """int64 [n, context_length] each. positions: of each token in its own document; None where it sees all others."""

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray | None = None

    @property
    def rows(self) -> np.ndarray:
        """Of text, where targets are the tokens that follow: int64 [n, context_length + 1]."""
        return np.concatenate([self.tokens, self.targets[:, -1:]], axis=1)


@dataclass(frozen=True)
class Shard:
    """`tokens`: ids [n_tokens]; `ends`: end of each document [n_documents], None where the format has none."""

    name: str
    tokens: np.ndarray
    ends: np.ndarray | None = None
    n_bytes: int | None = None


@dataclass(frozen=True)
class Split:
    """The shards of one split, read as one numbered list of windows."""

    shards: tuple[Shard, ...]

    @property
    def n_tokens(self) -> int:
        return sum(len(shard.tokens) for shard in self.shards)

    @property
    def n_documents(self) -> int | None:
        """None where a format does not mark documents."""
        ends = [shard.ends for shard in self.shards]
        return None if any(e is None for e in ends) else sum(len(e) for e in ends if e is not None)

    @property
    def n_bytes(self) -> int | None:
        """Bytes of text, `<|endoftext|>` not counted; None where a format does not record it."""
        sizes = [shard.n_bytes for shard in self.shards]
        return None if any(size is None for size in sizes) else sum(size for size in sizes if size is not None)

    @cached_property
    def _targets(self) -> np.ndarray:
        return np.array([max(0, len(shard.tokens) - 1) for shard in self.shards], dtype=np.int64)

    def n_windows(self, context_length: int) -> int:
        """How many full windows of context_length + 1 tokens there are."""
        return int((self._targets // context_length).sum())

    def windows(self, indices: Sequence[int] | np.ndarray, context_length: int) -> Windows:
        """Window w of a shard is its tokens [w T, w T + T), and the targets are those that follow each."""
        firsts = np.cumsum(self._targets // context_length)
        rows = np.empty((len(indices), context_length + 1), dtype=np.int64)
        shards = np.searchsorted(firsts, indices, side="right")
        for row, index, shard in zip(rows, indices, shards, strict=True):
            before = firsts[shard - 1] if shard else 0
            start = (int(index) - int(before)) * context_length
            row[:] = self.shards[shard].tokens[start : start + context_length + 1]
        return Windows(rows[:, :-1], rows[:, 1:])

    def n_validation_windows(self, context_length: int) -> int:
        """How many windows score every target of the split once; the last of each shard may be padded."""
        return int((-(-self._targets // context_length)).sum())

    def validation_windows(self, context_length: int, indices: Sequence[int] | np.ndarray | None = None) -> Windows:
        """The given validation windows (default: all).

        Padding is token 0 with target -100. An index past the last window gives a row that is all padding.
        """
        n_windows = -(-self._targets // context_length)
        lasts = np.cumsum(n_windows)
        indices = np.arange(lasts[-1] if len(lasts) else 0) if indices is None else np.asarray(indices)
        tokens = np.zeros((len(indices), context_length), dtype=np.int64)
        targets = np.full((len(indices), context_length), IGNORED_TARGET, dtype=np.int64)
        for row, shard in enumerate(np.searchsorted(lasts, indices, side="right")):
            if shard < len(self.shards):
                start = int(indices[row] - lasts[shard] + n_windows[shard]) * context_length
                piece = self.shards[shard].tokens[start : start + context_length + 1]
                tokens[row, : len(piece) - 1] = piece[:-1]
                targets[row, : len(piece) - 1] = piece[1:]
        return Windows(tokens, targets)

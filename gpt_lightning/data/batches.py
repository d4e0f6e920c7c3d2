"""Windows grouped into batches: endless shuffled ones for training, every target once for validation.

Plain iterables rather than torch DataLoaders: reading a memory map costs microseconds, and worker processes would only
slow it down. World size enters in one way: a micro-step takes the next micro_batch_size x world_size samples, rank r
every world_size-th of them from r on, so the samples of a step do not depend on how many ranks share them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from gpt_lightning.data.examples.packed import AnySplit
from gpt_lightning.data.order import Order
from gpt_lightning.data.shards import Windows

Batch = TypeVar("Batch")
Finish = Callable[[Windows], Batch]  # -> what the trainer wants
Rearrange = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (rows, their sample numbers) -> rows of the same shape


class BatchShape(NamedTuple):
    """What one rank reads: rows per batch, tokens per row, and its place among the data-parallel ranks."""

    micro_batch_size: int
    context_length: int
    rank: int = 0
    world_size: int = 1


def micro_step_tokens(micro_batch_size: int, context_length: int, world_size: int = 1) -> int:
    """Tokens of one micro-step over all devices."""
    return micro_batch_size * context_length * world_size


def accumulation(batch_tokens: int, micro_batch_size: int, context_length: int, world_size: int) -> int:
    """Micro-steps per optimizer step. Raises ValueError naming the nearest batch_tokens that divide evenly."""
    unit = micro_step_tokens(micro_batch_size, context_length, world_size)
    if batch_tokens > 0 and batch_tokens % unit == 0:
        return batch_tokens // unit
    below, above = batch_tokens // unit * unit, (batch_tokens // unit + 1) * unit
    nearest = f"{below} or {above}" if below > 0 else f"{unit}"
    raise ValueError(
        f"batch_tokens is {batch_tokens}; expected a multiple of micro_batch_size x context_length x devices = "
        f"{micro_batch_size} x {context_length} x {world_size} = {unit}, such as {nearest}"
    )


def document_positions(tokens: np.ndarray, eot_id: int) -> np.ndarray:
    """Where each token [n, T] stands in its own document, int64 [n, T].

    tokens      c  d  |  e  f  g  |  |  h        | is eot_id, and belongs to the document that it ends
    positions   0  1  2  0  1  2  3  0  0        a row's first token is at 0, also in the middle of a document
    """
    here = np.arange(tokens.shape[1])
    begins = np.zeros(tokens.shape, dtype=np.int64)
    begins[:, 1:] = np.where(tokens[:, :-1] == eot_id, here[1:], 0)
    return here - np.maximum.accumulate(begins, axis=1)


class TrainBatches(Generic[Batch]):
    """Endless batches of one rank.

    `start` tells, when an iteration begins, how many samples all ranks have consumed; `finish` makes a batch of
    micro_batch_size windows; `rearrange`, if any, changes them before that, as rows of context_length + 1 tokens.
    """

    def __init__(
        self,
        order: Order,
        splits: Sequence[AnySplit],
        shape: BatchShape,
        start: Callable[[], int],
        finish: Finish[Batch],
        rearrange: Rearrange | None = None,
    ) -> None:
        self._order, self._splits, self._shape = order, splits, shape
        self._start, self._finish, self._rearrange = start, finish, rearrange

    def __iter__(self) -> Iterator[Batch]:
        shape, consumed = self._shape, self._start()
        count = shape.micro_batch_size * shape.world_size
        while True:
            corpus_ids, windows = self._order.samples(consumed, count)
            mine = slice(shape.rank, None, shape.world_size)
            found = self._windows(corpus_ids[mine], windows[mine])
            if self._rearrange is not None:
                rows = self._rearrange(found.rows, np.arange(consumed, consumed + count)[mine])
                found = Windows(rows[:, :-1], rows[:, 1:])
            yield self._finish(found)
            consumed += count

    def _windows(self, corpus_ids: np.ndarray, windows: np.ndarray) -> Windows:
        tokens, targets = (np.empty((len(windows), self._shape.context_length), dtype=np.int64) for _ in range(2))
        positions: np.ndarray | None = None
        for i, split in enumerate(self._splits):
            mine = corpus_ids == i
            found = split.windows(windows[mine], self._shape.context_length)
            tokens[mine], targets[mine] = found.tokens, found.targets
            if found.positions is not None:  # text beside them is one document per row
                positions = np.tile(np.arange(tokens.shape[1]), (len(tokens), 1)) if positions is None else positions
                positions[mine] = found.positions
        return Windows(tokens, targets, positions)


class FixedBatches(Generic[Batch]):
    """Every target of `split` once, over all ranks; as many full batches on each rank, padded with ignored rows."""

    def __init__(self, split: AnySplit, shape: BatchShape, finish: Finish[Batch]) -> None:
        self._split, self._shape, self._finish = split, shape, finish

    def __len__(self) -> int:
        n_windows = self._split.n_validation_windows(self._shape.context_length)
        return -(-n_windows // (self._shape.micro_batch_size * self._shape.world_size))

    def __iter__(self) -> Iterator[Batch]:
        shape = self._shape
        for batch in range(len(self)):
            rows = batch * shape.micro_batch_size + np.arange(shape.micro_batch_size)
            windows = self._split.validation_windows(shape.context_length, rows * shape.world_size + shape.rank)
            yield self._finish(windows)

"""Packed examples on disk, memory-mapped: rows of context_length tokens, their targets, and positions.

    corpus/  manifest.json  tokenizer.json  train-00000.bin  train-00000.targets  train-00000.positions  val-...

    tokens      <user> hi <end> <bot> hey <end>  <user> ...     ids, uint16 or uint32; padding is <|endoftext|>
    targets       -100 -100 -100  hey <end> -100   -100 ...     int32: the id to predict, a label's number, or -100
    positions        0    1    2    3    4    5      0 ...      uint32: of each token in its own example
    where       a line per example, in the order of the rows: the file and row that it is from

A split of them is read as one of text is (data/shards.py): windows are the rows, in training as in validation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt_lightning.data.shards import IGNORED_TARGET, Split, Windows, map_file

SUFFIXES = {"bin": None, "targets": "<i4", "positions": "<u4"}  # of the ids: as the manifest says
WHERE = "where"


@dataclass(frozen=True)
class PackedShard:
    """tokens, targets, positions: [n_rows * context_length] each. where: the file that names the examples.

    n_documents: examples. n_bytes: of all text.
    """

    name: str
    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    where: Path
    n_documents: int
    n_bytes: int

    @property
    def ends(self) -> np.ndarray:
        """The end of each example, and of the padding of each row."""
        return np.append(np.flatnonzero(self.positions[1:] == 0) + 1, len(self.positions))


@dataclass(frozen=True)
class PackedSplit:
    """The shards of one split, read as one numbered list of rows of `row_tokens` tokens."""

    shards: tuple[PackedShard, ...]
    row_tokens: int

    @property
    def n_tokens(self) -> int:
        return sum(len(shard.tokens) for shard in self.shards)

    @property
    def n_documents(self) -> int:
        return sum(shard.n_documents for shard in self.shards)

    @property
    def n_bytes(self) -> int:
        return sum(shard.n_bytes for shard in self.shards)

    def n_windows(self, context_length: int) -> int:
        """How many rows there are. Raises ValueError where they are not of that length."""
        if context_length != self.row_tokens:
            raise ValueError(
                f"these examples are packed into rows of {self.row_tokens} tokens, and data.context_length is "
                f"{context_length}; give their file as data.corpus, to be packed anew"
            )
        return self.n_tokens // self.row_tokens

    n_validation_windows = n_windows

    def names(self) -> list[str]:
        """File and row of every example, in the order of the rows."""
        return [line for shard in self.shards for line in shard.where.read_text(encoding="utf-8").splitlines()]

    def windows(self, indices: Sequence[int] | np.ndarray, context_length: int) -> Windows:
        """The rows with these numbers; one past the last is all padding."""
        self.n_windows(context_length)
        shape = (len(indices), context_length)
        tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        targets = np.full(shape, IGNORED_TARGET, np.int64)
        lasts = np.cumsum([len(shard.tokens) // context_length for shard in self.shards])
        for row, shard in enumerate(np.searchsorted(lasts, indices, side="right")):
            if shard < len(self.shards):
                before = lasts[shard - 1] if shard else 0
                start = int(indices[row] - before) * context_length
                here = slice(start, start + context_length)
                part = self.shards[shard]
                tokens[row], targets[row], positions[row] = part.tokens[here], part.targets[here], part.positions[here]
        return Windows(tokens, targets, positions)

    def validation_windows(self, context_length: int, indices: Sequence[int] | np.ndarray) -> Windows:
        """The same rows."""
        return self.windows(indices, context_length)


AnySplit = Split | PackedSplit


def joined(splits: Sequence[AnySplit]) -> AnySplit:
    """Splits of several corpora as one. Raises ValueError where some are text and some examples."""
    texts = [split for split in splits if isinstance(split, Split)]
    packed = [split for split in splits if isinstance(split, PackedSplit)]
    if texts and packed:
        raise ValueError("validation of text and of examples cannot be one score; name one with data.val_corpus")
    if texts:
        return Split(tuple(shard for split in texts for shard in split.shards))
    return PackedSplit(tuple(shard for split in packed for shard in split.shards), packed[0].row_tokens)


def open_packed(path: Path, entry: dict[str, int | str], dtype: np.dtype) -> PackedShard:
    """A shard by its entry in the manifest. Raises ValueError naming a file that is missing or of another size."""
    parts = []
    for suffix, kind in SUFFIXES.items():
        file, kept = path / f"{entry['name']}.{suffix}", dtype if kind is None else np.dtype(kind)
        n_bytes = int(entry["tokens"]) * kept.itemsize
        if not file.is_file() or file.stat().st_size != n_bytes:
            found = f"{file.stat().st_size} bytes" if file.is_file() else "nothing"
            raise ValueError(f"{file}: expected {n_bytes} bytes, found {found}; prepare the examples again")
        parts.append(map_file(file, kept))
    tokens, targets, positions = parts
    return PackedShard(
        str(entry["name"]),
        tokens,
        targets,
        positions,
        path / f"{entry['name']}.{WHERE}",
        int(entry["documents"]),
        int(entry["text_bytes"]),
    )

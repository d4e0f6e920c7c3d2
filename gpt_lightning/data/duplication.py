"""How much of a corpus is there twice: exact copies of documents, and repeated spans of 64 tokens at any offset.

Token ids are hashed to 64 bits by numpy, without Python loops over documents or tokens. A huge corpus is sampled, so
that the time is bounded. Copies of a document have its length, so documents are sampled by length: all copies of one
are in the sample, or none, and the share stays right. Repeated spans are looked for in evenly spaced pieces, which
gives a lower bound.
"""

import math
from dataclasses import dataclass

import numpy as np

from gpt_lightning.data.shards import Split

SPAN_TOKENS = 64
SAMPLE_TOKENS = 1 << 22  # about 0.3 s
SAMPLE_DOCUMENTS = 1 << 22
PIECE_TOKENS = 1 << 16
_KEPT_BITS = 3  # one span in 8 is looked at, chosen by its own hash, so the same text is chosen wherever it stands


@dataclass(frozen=True)
class Duplication:
    """Shares between 0 and 1; None where a format marks no documents or there is no whole span.

    documents: exact copies of an earlier document. spans: 64-token spans seen before. sampled_tokens: what was read
    for `documents` and `spans`, out of n_tokens.
    """

    documents: float | None
    spans: float | None
    sampled_tokens: tuple[int, int]
    n_tokens: int


def duplication(split: Split, sample_tokens: int = SAMPLE_TOKENS) -> Duplication:
    """Shares of duplicates in a split; at most about `sample_tokens` are read for each of the two."""
    documents, read_documents = _documents(split, sample_tokens) if split.n_documents is not None else (None, 0)
    spans, read_spans = _spans(split, sample_tokens)
    return Duplication(documents, spans, (read_documents, read_spans), split.n_tokens)


def mix(values: np.ndarray) -> np.ndarray:
    """64 well-mixed bits per value (splitmix64, Steele et al. 2014)."""
    x = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _documents(split: Split, sample_tokens: int) -> tuple[float | None, int]:
    """Share of copies among the sampled documents, and the tokens of these; only equal lengths need be compared."""
    shards = [(shard.tokens, *_borders(shard.ends, split.n_documents or 0)) for shard in split.shards]
    lengths = np.concatenate([ends - starts for _, starts, ends in shards] or [np.zeros(0, np.int64)])
    if lengths.sum() > sample_tokens:
        lengths = lengths[mix(lengths) <= np.uint64(sample_tokens / lengths.sum() * (2**64 - 2**12))]
    if not len(lengths):
        return None, 0
    sizes, counts = np.unique(lengths, return_counts=True)
    shared = sizes[counts > 1]
    hashes = []
    for tokens, starts, ends in shards:
        chosen = np.isin(ends - starts, shared)
        hashes.append(_hash_documents(tokens, starts[chosen], ends[chosen]))
    every = np.concatenate(hashes)
    return (len(every) - len(np.unique(every))) / len(lengths), int(lengths.sum())


def _borders(ends: np.ndarray | None, n_documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of a shard's documents; of the first ones where the corpus has very many."""
    assert ends is not None
    share = min(1.0, SAMPLE_DOCUMENTS / max(n_documents, 1))
    kept = np.asarray(ends[: math.ceil(len(ends) * share)], dtype=np.int64)
    return np.concatenate(([0], kept))[: len(kept)], kept


def _hash_documents(tokens: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """uint64 [n_documents]: sum of mixed (id, place in the document), and the length."""
    lengths = ends - starts
    hashes = mix(lengths)
    whole = np.flatnonzero(lengths > 0)
    for group in np.array_split(whole, max(1, int(lengths.sum()) // SAMPLE_TOKENS)):
        if not len(group):
            continue
        sizes = lengths[group]
        first = np.concatenate(([0], np.cumsum(sizes)[:-1]))
        place = np.arange(int(sizes.sum())) - np.repeat(first, sizes)
        ids = tokens[place + np.repeat(starts[group], sizes)]
        hashes[group] += np.add.reduceat(mix(mix(place) ^ ids.astype(np.uint64)), first)
    return hashes


def _spans(split: Split, sample_tokens: int) -> tuple[float | None, int]:
    """Share of repeated spans among those looked at, and the tokens read."""
    n_pieces = max(1, sample_tokens // PIECE_TOKENS)
    every = max(1.0, split.n_tokens / (n_pieces * PIECE_TOKENS))
    hashes, read, position = [], 0, 0
    for shard in split.shards:
        step = PIECE_TOKENS if every == 1.0 else int(PIECE_TOKENS * every)
        for start in range(-position % step if every > 1 else 0, len(shard.tokens), step):
            piece = shard.tokens[start : start + PIECE_TOKENS + (SPAN_TOKENS - 1 if every == 1.0 else 0)]
            hashes.append(_hash_spans(piece))
            read += min(len(piece), PIECE_TOKENS)
        position += len(shard.tokens)
    found = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    return (1 - len(np.unique(found)) / len(found) if len(found) else None), read


def _hash_spans(tokens: np.ndarray) -> np.ndarray:
    """Hashes of the spans looked at: polynomials in an odd base, modulo 2^64, as differences of running sums."""
    n_spans = len(tokens) - SPAN_TOKENS + 1
    if n_spans < 1:
        return np.zeros(0, np.uint64)
    base, inverse = np.uint64(0x9E3779B97F4A7C15), np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))
    powers = np.cumprod(np.concatenate(([np.uint64(1)], np.full(len(tokens) - 1, base))), dtype=np.uint64)
    sums = np.concatenate(([np.uint64(0)], np.cumsum(mix(tokens) * powers, dtype=np.uint64)))
    back = np.cumprod(np.concatenate(([np.uint64(1)], np.full(n_spans - 1, inverse))), dtype=np.uint64)
    hashes = mix((sums[SPAN_TOKENS:] - sums[:n_spans]) * back)
    return hashes[hashes >> np.uint64(64 - _KEPT_BITS) == 0]

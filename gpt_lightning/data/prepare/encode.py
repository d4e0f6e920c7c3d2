"""Documents -> splits, tokenizer, token ids; encoded on every core, in order, in bounded memory.

    documents --split by name--> chunks of 1 MB --threads--> ids --in the order of the chunks-->

Threads, not processes: tiktoken encodes outside the GIL, so two threads kept two cores busy (17 MB/s against 11 on one,
stdlib, end to end), copy no text and leave no orphans behind a kill -9. Results come in order and few chunks are in
flight, so the output does not depend on the number of threads and the memory does not depend on the size of the corpus
(one document has to fit).
"""

import hashlib
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from gpt_lightning.data.prepare.sources import Document, Source
from gpt_lightning.data.tokenizer import Tokenizer

HASHES = 1 << 64
_CHUNK_CHARACTERS = 1 << 20


class Encoded(NamedTuple):
    """Some documents of one split: ids joined; per document its tokens and its bytes of text, without separator."""

    tokens: np.ndarray
    lengths: np.ndarray
    text_bytes: np.ndarray


def name_hash(name: str, use: str = "split") -> int:
    """Uniform in [0, 2^64), the same on every machine; another `use` gives an independent number."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8, person=use.encode()).digest())


class Splitter:
    """Decides a document's split from its name alone, so that adding documents never moves the others.

        hash   0 ... val | test | train ... 2^64

    With few documents a split may stay empty: then its border is moved just past the document nearest to it. Names
    are read until every split has one. Raises ValueError for fewer documents than splits.
    """

    def __init__(self, source: Source, val_fraction: float, test_fraction: float = 0.0) -> None:
        self._val, self._test = int(val_fraction * HASHES), int((val_fraction + test_fraction) * HASHES)
        self.splits = ("train", "val", "test") if test_fraction else ("train", "val")
        hashes, seen = [], set()
        for name, _ in source.read(lambda _: True):
            hashes.append(name_hash(name))
            seen.add(self.split_of(name))
            if len(seen) == len(self.splits):
                return
        self._move_borders(sorted(hashes))

    def _move_borders(self, hashes: list[int]) -> None:
        n_splits = len(self.splits)
        if len(hashes) < n_splits:
            found = ("no text", "one document", "two documents")[len(hashes)]
            needed = ("two", "three")[n_splits - 2]
            raise ValueError(f"the corpus has {found}; at least {needed} documents are needed, one for each split")
        self._val = min(max(self._val, hashes[0] + 1), hashes[1 - n_splits])
        above = next(hashed for hashed in hashes if hashed >= self._val) if n_splits == 3 else -1
        self._test = min(max(self._test, self._val, above + 1), hashes[-1])

    def split_of(self, name: str) -> str:
        hashed = name_hash(name)
        return "val" if hashed < self._val else "test" if hashed < self._test else "train"


def train_tokenizer(source: Source, splitter: Splitter, vocab_size: int, sample_bytes: int) -> Tokenizer:
    """From training documents only: sampled by hash over all of them where the size is known, else the first ones."""
    share = min(1.0, sample_bytes / source.n_bytes) if source.n_bytes else 1.0

    def is_train(name: str) -> bool:
        return splitter.split_of(name) == "train"

    def is_sampled(name: str) -> bool:
        return is_train(name) and name_hash(name, "tokenizer") < share * HASHES

    def capped(texts: Iterable[str]) -> Iterator[str]:
        left = sample_bytes
        for text in texts:
            yield text[:left]
            left -= len(text.encode())
            if left <= 0:
                return

    texts = (text for _, text in source.read(is_sampled))
    first = next(texts, None)
    if first is None:  # a handful of documents, none of them sampled
        return Tokenizer.train(capped(text for _, text in source.read(is_train)), vocab_size)
    return Tokenizer.train(capped(itertools.chain([first], texts)), vocab_size)


def _chunks(documents: Iterable[Document], splitter: Splitter) -> Iterator[tuple[str, list[str]]]:
    texts: dict[str, list[str]] = {split: [] for split in splitter.splits}
    sizes = dict.fromkeys(splitter.splits, 0)
    for name, text in documents:
        split = splitter.split_of(name)
        texts[split].append(text)
        sizes[split] += len(text)
        if sizes[split] >= _CHUNK_CHARACTERS:
            yield split, texts[split]
            texts[split], sizes[split] = [], 0
    yield from ((split, rest) for split, rest in texts.items() if rest)


def encode(tokenizer: Tokenizer, texts: list[str]) -> Encoded:
    """Ids of the documents, each followed by `<|endoftext|>`."""
    eot = np.array([tokenizer.eot_id], dtype=np.uint32)
    documents = [tokenizer.encode_array(text) for text in texts]
    lengths = np.array([len(ids) + 1 for ids in documents], dtype=np.int64)
    n_bytes = np.array([len(text) if text.isascii() else len(text.encode()) for text in texts], dtype=np.int64)
    return Encoded(np.concatenate([part for ids in documents for part in (ids, eot)]), lengths, n_bytes)


def n_cores() -> int:
    """Cores this process may use; macOS only tells how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encode_splits(
    source: Source, tokenizer: Tokenizer, splitter: Splitter, n_threads: int | None = None
) -> Iterator[tuple[str, Encoded]]:
    """`(split, ids)` of every document of `source`, in the same order whatever `n_threads` (None: one per core)."""
    chunks = _chunks(source.read(lambda _: True), splitter)
    n_threads = n_threads or n_cores()
    if n_threads == 1:
        for split, texts in chunks:
            yield split, encode(tokenizer, texts)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        pending: deque[tuple[str, Future[Encoded]]] = deque()
        for split, texts in chunks:
            pending.append((split, pool.submit(encode, tokenizer, texts)))
            if len(pending) > n_threads + 1:  # one chunk waits, so that no thread does
                split, future = pending.popleft()
                yield split, future.result()
        for split, future in pending:
            yield split, future.result()

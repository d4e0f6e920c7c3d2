"""Documents -> token ids, on every core, in order, in bounded memory.

    documents --split by name--> chunks of 1 MB --threads--> ids --in the order of the chunks-->

Threads, not processes: tiktoken encodes outside the GIL, so two threads kept two cores busy (17 MB/s against 11 on one,
stdlib, end to end), copy no text and leave no orphans behind a kill -9. Results come in order and few chunks are in
flight, so the output does not depend on the number of threads and the memory does not depend on the size of the corpus
(one document has to fit).
"""

import hashlib
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

    With few documents a split may stay empty. `rebalance` then moves the border just past the document nearest to
    it, and the documents are to be read again.
    """

    def __init__(self, val_fraction: float) -> None:
        self._border = int(val_fraction * HASHES)
        self._lowest, self._highest, self._n_documents = HASHES, -1, 0

    def split_of(self, name: str) -> str:
        hashed = name_hash(name)
        self._lowest, self._highest = min(self._lowest, hashed), max(self._highest, hashed)
        self._n_documents += 1
        return "val" if hashed < self._border else "train"

    def rebalance(self) -> bool:
        """Whether a split stayed empty and the border was moved. Raises ValueError for fewer than two documents."""
        if self._n_documents < 2:
            found = "one document" if self._n_documents else "no text"
            raise ValueError(f"the corpus has {found}; at least two documents are needed, one for each split")
        if self._lowest < self._border <= self._highest:
            return False
        self._border = self._lowest + 1 if self._lowest >= self._border else self._highest
        self._lowest, self._highest, self._n_documents = HASHES, -1, 0
        return True


def _chunks(documents: Iterable[Document], splitter: Splitter) -> Iterator[tuple[str, list[str]]]:
    texts: dict[str, list[str]] = {"train": [], "val": []}
    sizes = {"train": 0, "val": 0}
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


def _n_cores() -> int:
    """Cores this process may use; macOS only tells how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encode_splits(
    source: Source, tokenizer: Tokenizer, splitter: Splitter, n_threads: int | None = None
) -> Iterator[tuple[str, Encoded]]:
    """`(split, ids)` of every document of `source`, in the same order whatever `n_threads` (None: one per core)."""
    chunks = _chunks(source.read(lambda _: True), splitter)
    n_threads = n_threads or _n_cores()
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

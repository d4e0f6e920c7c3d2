"""Held-out documents that are copied from another split: found, and moved or dropped.

A model that has read a document scores well on its copy, whatever it learned. So each held-out document's overlap is
measured: the share of its 13-word spans (word_spans.py) that also stand in training text, for a test document in
validation text too. Splits are ordered train, val, test; a document with too large an overlap goes down to the split
that it copies, until none is left: what moves to train may be what another one copies.

The held-out spans are held in memory, the training text streams past them, each piece once. Beyond MAX_SPANS (about
25 MB of held-out text) every document is judged by its spans of smallest hash, as many as fit: still no document
unjudged, and copies of each other are judged by the same spans.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_lightning.data.corpus import SPLITS
from gpt_lightning.data.prepare.word_spans import SPAN_WORDS, WordSpans
from gpt_lightning.data.shards import Split
from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.terminal import progress, short

DROPPED = -1
LISTED = 100
MAX_SPANS = 1 << 22  # some 200 MB
_PIECE_TOKENS = 1 << 18


class HeldOut:
    """Spans of documents, at most about `max_spans` of them in all, and which of them were met in other text."""

    def __init__(self, max_spans: int = MAX_SPANS) -> None:
        self._max_spans = self._per_document = max_spans
        self._parts: list[np.ndarray] = []  # hash, document, number in its document: uint64 [3, n_spans]

    def add(self, hashes: np.ndarray, documents: np.ndarray) -> None:
        """Spans of whole documents, numbered upwards over all calls."""
        order = np.lexsort((hashes, documents))
        part = np.stack((hashes[order], documents[order].astype(np.uint64)))
        part = part[:, np.append(True, np.any(part[:, 1:] != part[:, :-1], axis=0))[: part.shape[1]]]
        number = np.arange(part.shape[1]) - np.searchsorted(part[1], part[1])
        part = np.vstack((part, number.astype(np.uint64)))
        self._parts.append(part[:, number < self._per_document])
        while sum(part.shape[1] for part in self._parts) > self._max_spans and self._per_document > 1:
            self._per_document //= 2
            self._parts = [part[:, part[2] < self._per_document] for part in self._parts]

    def seal(self, n_documents: int) -> None:
        """All documents are there; from now on other text is met."""
        hashes, documents, _ = np.concatenate(self._parts, axis=1)
        self._documents = documents.astype(np.int64)
        self._hashes, self._inverse = np.unique(hashes, return_inverse=True)
        self._n_spans = np.bincount(self._documents, minlength=n_documents)
        self.met = np.zeros(len(self._hashes), dtype=bool)
        # Most spans of other text are new; a table of the hashes' first bits says so without a search.
        n_bits = len(self._hashes).bit_length() + 4
        self._shift = np.uint64(64 - n_bits)
        self._filter = np.zeros(1 << n_bits, dtype=bool)
        self._filter[self._hashes >> self._shift] = True
        self._parts = []

    def meet(self, hashes: np.ndarray) -> None:
        """Mark spans that other text has; several threads may."""
        hashes = hashes[self._filter[hashes >> self._shift]]
        places = np.searchsorted(self._hashes, hashes)
        places[places == len(self._hashes)] = 0
        self.met[places[self._hashes[places] == hashes]] = True

    def spans_of(self, documents: np.ndarray) -> np.ndarray:
        """Which spans the chosen documents (bool [n_documents]) have, as `met`."""
        chosen = np.zeros(len(self._hashes), dtype=bool)
        chosen[self._inverse[documents[self._documents]]] = True
        return chosen

    def overlaps(self, met: np.ndarray) -> np.ndarray:
        """Share of each document's spans that are among `met`; 0 for a document without words."""
        found = np.bincount(self._documents, weights=met[self._inverse], minlength=len(self._n_spans))
        return found / np.maximum(self._n_spans, 1)


@dataclass(frozen=True)
class NearCopies:
    """Per held-out document, val before test: its split, where it should go (numbers of SPLITS) and its overlap.

    The overlap is the one that a document was found with, else its last one. `is_kept`: all stay where they are.
    """

    splits: np.ndarray
    goals: np.ndarray
    overlaps: np.ndarray
    is_kept: bool = False

    @property
    def destinations(self) -> np.ndarray:
        return self.splits if self.is_kept else self.goals

    @property
    def emptied(self) -> list[str]:
        """Splits in which no document would be left."""
        return [SPLITS[number] for number in np.unique(self.splits) if not np.any(self.goals == number)]


def decide(held: HeldOut, splits: np.ndarray, overlap: float, drop: bool) -> NearCopies:
    """Where documents with at least `overlap` go: down to the split that they copy, or out."""
    goals, shares = splits.copy(), np.zeros(len(splits))
    met = held.met.copy()
    for lower in (0, 1):
        if lower:
            met |= held.spans_of(goals == lower)
        while True:
            above = goals > lower
            shares[above] = held.overlaps(met)[above]
            found = above & (shares >= overlap)
            if not found.any():
                break
            goals[found] = DROPPED if drop else lower
            if not drop:
                met |= held.spans_of(found)
    return NearCopies(splits, goals, shares)


def find(written: Mapping[str, Split], tokenizer: Tokenizer, overlap: float, drop: bool, n_threads: int) -> NearCopies:
    """Compare all splits, in which each document ends with `<|endoftext|>`, and decide."""
    word_spans, held = WordSpans(tokenizer), HeldOut()
    splits: list[int] = []
    for name in SPLITS[1:]:
        if name in written:
            for first, tokens in _pieces(written[name]):
                hashes, documents = word_spans(tokens)
                held.add(hashes, documents + first + len(splits))
            splits += [SPLITS.index(name)] * (written[name].n_documents or 0)
    held.seal(len(splits))

    def meet(piece: tuple[int, np.ndarray]) -> int:
        held.meet(word_spans(piece[1])[0])
        return len(piece[1])

    with progress() as bar, ThreadPoolExecutor(n_threads) as pool:
        task = bar.add_task("near copies", total=written["train"].n_tokens)
        for n_tokens in pool.map(meet, _pieces(written["train"])):
            bar.advance(task, n_tokens)
    return decide(held, np.array(splits), overlap, drop)


def held_out_documents(written: Mapping[str, Split]) -> Iterator[np.ndarray]:
    """Token ids of each document, val before test."""
    for name in SPLITS[1:]:
        for shard in written[name].shards if name in written else ():
            assert shard.ends is not None
            yield from np.split(shard.tokens, shard.ends[:-1].astype(np.int64))


def report(copies: NearCopies, written: Mapping[str, Split], tokenizer: Tokenizer, overlap: float) -> dict[str, Any]:
    """What the manifest tells: settings, counts, and the LISTED documents of largest overlap."""
    found: list[dict[str, Any]] = []
    n_bytes = dict.fromkeys(SPLITS[1:], 0)
    for number, tokens in enumerate(held_out_documents(written)):
        split, goal = SPLITS[copies.splits[number]], copies.destinations[number]
        size = int(tokenizer.token_bytes[tokens].sum())
        n_bytes[split] += size
        if copies.goals[number] != copies.splits[number]:
            place = "dropped" if goal == DROPPED else "kept" if copies.is_kept else SPLITS[goal]
            starts = " ".join(tokenizer.decode(tokens[:50].tolist()).split())[:60]
            share = round(float(copies.overlaps[number]), 4)
            found.append({"split": split, "to": place, "overlap": share, "text_bytes": size, "starts": starts})
    found.sort(key=lambda document: document["overlap"], reverse=True)
    return {
        "span_words": SPAN_WORDS,
        "overlap": overlap,
        "held_out_documents": len(copies.splits),
        "held_out_bytes": sum(n_bytes.values()),
        "found_bytes": sum(document["text_bytes"] for document in found),
        "found": dict(Counter(f"{document['split']} -> {document['to']}" for document in found)),
        "largest": found[:LISTED],
        "emptied": copies.emptied,
    }


def describe(made: Mapping[str, Any]) -> str:
    """A report in one line."""
    n_found = sum(made["found"].values())
    share, span_words = f"{made['overlap']:.0%}", made["span_words"]
    what = (
        f"of {made['held_out_documents']:,} held-out documents share {share} of their {span_words}-word spans or more"
    )
    if not n_found:
        return f"none {what} with another split"
    moved = ", ".join(f"{where} {count:,}" for where, count in made["found"].items())
    size = f"{short(made['found_bytes'])} of {short(made['held_out_bytes'])} bytes"
    line = f"{n_found:,} {what} with another split ({size}): {moved}"
    if made["emptied"]:
        line += f"; nothing else was left of {' and '.join(made['emptied'])}, whose scores are those of copied text"
    return line


def _pieces(split: Split) -> Iterator[tuple[int, np.ndarray]]:
    """Pieces of a split in order, cut at document ends if one is near: number of the first document, tokens."""
    before = 0
    for shard in split.shards:
        start, ends = 0, shard.ends
        assert ends is not None
        while start < len(shard.tokens):
            n_ended = int(np.searchsorted(ends, start, side="right"))
            n_inside = int(np.searchsorted(ends, start + _PIECE_TOKENS, side="right"))
            stop = int(ends[n_inside - 1]) if n_inside > n_ended else start + _PIECE_TOKENS
            yield before + n_ended, shard.tokens[start:stop]
            start = min(stop, len(shard.tokens))
        before += len(ends)

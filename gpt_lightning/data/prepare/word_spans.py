"""Token ids -> hashes of spans of 13 words, the unit in which GPT-3 looked for copied text.

Brown et al. 2020, appendix C: lower-case words without punctuation, 13 in a row. There blanks alone separate words;
here punctuation does too, for source code has few blanks. From U+3000 on every character is a word, since Chinese and
Japanese have no blanks. Capitals beyond ASCII stay as they are. A document of fewer than 13 words is one span, whole.

Hashing goes by token, not by byte: what a token adds to a word is looked up, so 1 MB of text costs about 10 ms. A word
has one hash however it was cut into tokens, for it is a polynomial in its bytes. No Python loop over tokens.
"""

import re
from functools import cached_property

import numpy as np

from gpt_lightning.data.duplication import mix
from gpt_lightning.data.tokenizer import Tokenizer

SPAN_WORDS = 13  # Brown et al. 2020, appendix C
_BASE = 0x9E3779B97F4A7C15  # odd, so that its powers do not run into zero
_POWERS = 1 << 16  # a word longer than that, in bytes, has a weaker hash
_NORMAL = bytes(byte if byte >= 128 or chr(byte).isalnum() else 32 for byte in range(256)).lower()
_FRAGMENT = re.compile(rb"[\xe3-\xf4]?[^ \xe3-\xf4]+|[\xe3-\xf4]")  # \xe3 to \xf4: first bytes from U+3000 on


class WordSpans:
    """The table of a tokenizer: what each of its ids adds to the words of a text, as fragments of words."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        pieces = [tokenizer.decode_bytes([i]).translate(_NORMAL) for i in range(tokenizer.vocab_size)]
        fragments = [list(_FRAGMENT.finditer(piece)) for piece in pieces]
        flat = [fragment for found in fragments for fragment in found]
        self._eot_id = tokenizer.eot_id
        self._n_fragments = np.array([len(found) for found in fragments])
        self._first = np.cumsum(self._n_fragments) - self._n_fragments
        # After a token that ends inside a word, the next one may go on with it.
        self._is_open = np.array([piece[-1:] not in (b"", b" ") for piece in pieces])
        self._begins = np.array([f.start() > 0 or f[0][0] >= 0xE3 for f in flat], dtype=bool)
        self._sizes = np.array([len(f[0]) for f in flat], dtype=np.int64)
        self._values = np.array([_polynomial(f[0]) for f in flat], dtype=np.uint64)

    def __call__(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of the spans in ids [n_tokens], uint64 [n_spans], and how many `<|endoftext|>` stand before each."""
        words, documents = self._words(tokens)
        if not len(words):
            return words, documents
        # Empty words after each document keep a span from running into the next one.
        places = np.arange(len(words)) + (SPAN_WORDS - 1) * documents
        padded = np.zeros(places[-1] + SPAN_WORDS, dtype=np.uint64)
        padded[places] = words
        spans = np.zeros(places[-1] + 1, dtype=np.uint64)
        for k in range(SPAN_WORDS):
            spans *= np.uint64(_BASE)
            spans += padded[k : k + len(spans)]
        kept = np.concatenate(([True], documents[1:] != documents[:-1]))  # the first one, be it short
        kept[: 1 - SPAN_WORDS] |= documents[SPAN_WORDS - 1 :] == documents[: 1 - SPAN_WORDS]
        return mix(spans[places[kept]]), documents[kept]

    def _words(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hash and document of each word."""
        counts = self._n_fragments[tokens]
        of_token = np.repeat(np.arange(len(tokens)), counts)
        inner = np.arange(len(of_token)) - np.repeat(np.cumsum(counts) - counts, counts)
        fragments = self._first[tokens[of_token]] + inner
        follows = np.concatenate(([False], self._is_open[tokens[:-1]]))
        starts = np.flatnonzero(self._begins[fragments] | ((inner == 0) & ~follows[of_token]))
        if not len(starts):
            return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
        sizes = self._sizes[fragments]
        offsets = np.cumsum(sizes) - sizes  # of each fragment, in bytes of words; below, in its own word
        offsets -= np.repeat(offsets[starts], np.diff(starts, append=len(fragments)))
        weighed = self._values[fragments] * self._powers[offsets % _POWERS]
        documents = np.cumsum(tokens == self._eot_id)[of_token[starts]]
        return mix(np.add.reduceat(weighed, starts)), documents

    @cached_property
    def _powers(self) -> np.ndarray:
        powers = np.full(_POWERS, _BASE, dtype=np.uint64)
        powers[0] = 1
        return np.cumprod(powers, dtype=np.uint64)


def _polynomial(fragment: bytes) -> int:
    """Sum of mixed byte times base^place, modulo 2^64."""
    total = 0
    for byte in reversed(fragment):
        total = (total * _BASE + _BYTES[byte]) % 2**64
    return total


_BYTES = [int(value) for value in mix(np.arange(256))]

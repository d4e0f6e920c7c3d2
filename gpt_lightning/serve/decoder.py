"""Tokens as text, piece by piece, up to the first stop string.

Tokens are not characters: one character may be spread over several tokens, and a stop string may begin in the middle
of one and end in another. So bytes are decoded as they become whole characters, and the end of the text is held back
as long as it may be the beginning of a stop string; what has been printed is never taken back.
"""

import codecs
from collections.abc import Sequence


class TextDecoder:
    """Bytes of tokens in, whole characters out, up to the first stop string."""

    def __init__(self, stop: Sequence[str] = ()):
        if isinstance(stop, str) or not all(stop):
            raise ValueError(f"stop {stop!r}: expected a list of strings that are not empty")
        self.stop = tuple(stop)
        self.stopped = False
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # may be the beginning of a stop string

    def push(self, data: bytes, final: bool = False) -> str:
        """The text that `data` makes certain; with `final`, all that is left."""
        if self.stopped:
            return ""
        text = self._held + self._utf8.decode(data, final)
        # The stop string that is complete first, however the text came in pieces.
        found = [(text.index(stop) + len(stop), text.index(stop)) for stop in self.stop if stop in text]
        if found:
            self.stopped = True
            return text[: min(found)[1]]
        n_held = 0 if final else self._n_held(text)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def _n_held(self, text: str) -> int:
        longest = max(map(len, self.stop), default=1) - 1
        for n in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self.stop):
                return n
        return 0

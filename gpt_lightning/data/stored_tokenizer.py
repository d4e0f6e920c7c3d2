"""What every tokenizer has: the bytes behind each id, and the `tokenizer.json` that it is stored as."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from gpt_lightning.data.markers import ChatIds, FimIds
from gpt_lightning.files import write_text


class StoredTokenizer:
    """`json` is the canonical text of the file; ids that stand for no text have no bytes.

    `fim_ids` and `chat_ids` are None where the tokenizer has no such markers.
    """

    json: str
    eot_id: int | None
    fim_ids: FimIds | None = None
    chat_ids: ChatIds | None = None
    _bytes: list[bytes]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end what a model writes: `<|endoftext|>` and the chat markers, which begin another's turn."""
        return (*([] if self.eot_id is None else [self.eot_id]), *(self.chat_ids or ()))

    def save(self, path: Path | str) -> None:
        write_text(Path(path), self.json)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the canonical JSON: two files with one digest give the same ids."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """int64 [vocab_size]: how many bytes of UTF-8 each id stands for; 0 for `<|endoftext|>` and markers."""
        return np.array([len(piece) for piece in self._bytes], dtype=np.int64)

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The exact bytes behind `tokens`; `<|endoftext|>` and markers give none."""
        return b"".join([self._bytes[i] for i in tokens])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text behind `tokens`; bytes that are not UTF-8 become U+FFFD, `<|endoftext|>` and markers nothing."""
        return self.decode_bytes(tokens).decode(errors="replace")

"""Writing a corpus so that a half-written one can never be mistaken for a whole one.

Shards and manifest are written into a hidden folder beside the destination, which then takes its name in one rename.
A lock beside it makes processes that prepare the same corpus wait for the first one. It dies with its process, so a
kill -9 leaves at most the hidden folder, and the next call removes that (files.py).
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt_lightning.data.shards import Shard, Split, map_file
from gpt_lightning.files import HashingFile, lock, write_text

FORMAT, VERSION = "gpt-lightning corpus", 1


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 where every id fits, uint32 otherwise; both little-endian."""
    return np.dtype("<u2" if vocab_size <= 65536 else "<u4")


class SplitWriter:
    """Appends documents to `<split>-00000.bin/.idx`, `-00001`, ...; a document never spans two shards."""

    def __init__(self, folder: Path, split: str, vocab_size: int, shard_tokens: int) -> None:
        self._folder, self._split, self._vocab_size, self._shard_tokens = folder, split, vocab_size, shard_tokens
        self._dtype = token_dtype(vocab_size)
        self._open: tuple[HashingFile, HashingFile] | None = None
        self.shards: list[dict[str, Any]] = []

    def append(self, tokens: np.ndarray, lengths: np.ndarray, text_bytes: np.ndarray) -> None:
        """Documents joined, `<|endoftext|>` included: ids [n_tokens]; tokens and text bytes of each [n_documents].

        Raises ValueError for an id outside the vocabulary: an id never wraps into the file's integers.
        """
        if len(tokens) and (int(tokens.max()) >= self._vocab_size or int(tokens.min()) < 0):
            raise ValueError(f"token ids up to {tokens.max()} do not fit a vocabulary of {self._vocab_size}")
        ends = np.cumsum(lengths)
        document = 0
        while document < len(lengths):
            begin = int(ends[document - 1]) if document else 0
            room = self._shard_tokens - (self.shards[-1]["tokens"] if self._open else 0)
            # As many documents as the shard still takes, the one that fills it included.
            stop = min(int(np.searchsorted(ends, begin + room)) + 1, len(lengths))
            n_bytes = int(text_bytes[document:stop].sum())
            self._write(tokens[begin : int(ends[stop - 1])], ends[document:stop] - begin, n_bytes)
            document = stop

    def _write(self, tokens: np.ndarray, ends: np.ndarray, n_bytes: int) -> None:
        if self._open is None:
            name = f"{self._split}-{len(self.shards):05d}"
            self._open = self._file(f"{name}.bin"), self._file(f"{name}.idx")
            counts = {"tokens": 0, "documents": 0, "text_bytes": 0, "max_id": 0}
            self.shards.append({"name": name, "split": self._split} | counts)
        shard = self.shards[-1]
        self._open[0].write(tokens.astype(self._dtype).data)
        self._open[1].write((shard["tokens"] + ends).astype("<u8").data)
        shard["tokens"] += len(tokens)
        shard["documents"] += len(ends)
        shard["text_bytes"] += n_bytes
        shard["max_id"] = max(shard["max_id"], int(tokens.max()))
        if shard["tokens"] >= self._shard_tokens:
            self.close()

    def written(self) -> Split:
        """What there is so far, to be read."""
        for file in self._open or ():
            file.flush()
        shards = []
        for shard in self.shards:
            path = self._folder / shard["name"]
            tokens, ends = map_file(path.with_suffix(".bin"), self._dtype), map_file(path.with_suffix(".idx"), "<u8")
            shards.append(Shard(shard["name"], tokens, ends, shard["text_bytes"]))
        return Split(tuple(shards))

    def _file(self, name: str) -> HashingFile:
        return HashingFile((self._folder / name).open("wb"))

    def close(self) -> None:
        """End the current shard; the next append starts another."""
        if self._open is not None:
            self.shards[-1]["bin_sha256"], self.shards[-1]["idx_sha256"] = (file.close() for file in self._open)
            self._open = None


def folder_name(source: str, identity: Mapping[str, Any]) -> str:
    """NAME-DIGITS of a corpus prepared on first use; the digits cover all that decides it."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", source).strip("-").lower()[:40] or "corpus"
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"{slug}-{digest[:8]}"


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Last file of a corpus; `manifest` without format and version."""
    text = json.dumps({"format": FORMAT, "version": VERSION} | manifest, indent=1)
    write_text(folder / "manifest.json", text + "\n")


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the lock of `output`, waiting for whoever holds it; nothing but `output` itself is left behind."""
    missing = [folder for folder in output.parents if not folder.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    path = output.parent / f".{output.name}.lock"
    while True:
        held = lock(path, wait=True)
        # The previous holder may have removed the file that we waited on.
        if path.exists() and os.fstat(held.fileno()).st_ino == path.stat().st_ino:
            break
        held.close()
    try:
        yield
    finally:
        path.unlink()
        held.close()
        with contextlib.suppress(OSError):  # not empty: something was made
            for folder in missing:
                folder.rmdir()

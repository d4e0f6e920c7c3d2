"""Writing a corpus so that a half-written one can never be mistaken for a whole one.

Shards and manifest are written into a hidden folder beside the destination, which then takes its name in one rename.
A lock beside it makes processes that prepare the same corpus wait for the first one. The lock is the kernel's (flock):
it dies with its process, so a kill -9 leaves at most the hidden folder, and the next call removes that.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

FORMAT, VERSION = "gpt-lightning corpus", 1


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 where every id fits, uint32 otherwise; both little-endian."""
    return np.dtype("<u2" if vocab_size <= 65536 else "<u4")


class _HashedFile:
    """A file that knows the SHA-256 of what was written to it."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb")
        self._hash = hashlib.sha256()

    def write(self, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array).data.cast("B")
        self._file.write(data)
        self._hash.update(data)

    def close(self) -> str:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._hash.hexdigest()


class SplitWriter:
    """Appends documents to `<split>-00000.bin/.idx`, `-00001`, ...; a document never spans two shards."""

    def __init__(self, folder: Path, split: str, vocab_size: int, shard_tokens: int) -> None:
        self._folder, self._split, self._vocab_size, self._shard_tokens = folder, split, vocab_size, shard_tokens
        self._dtype = token_dtype(vocab_size)
        self._open: tuple[_HashedFile, _HashedFile] | None = None
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
            self._open = _HashedFile(self._folder / f"{name}.bin"), _HashedFile(self._folder / f"{name}.idx")
            counts = {"tokens": 0, "documents": 0, "text_bytes": 0, "max_id": 0}
            self.shards.append({"name": name, "split": self._split} | counts)
        shard = self.shards[-1]
        self._open[0].write(tokens.astype(self._dtype, copy=False))
        self._open[1].write((shard["tokens"] + ends).astype("<u8"))
        shard["tokens"] += len(tokens)
        shard["documents"] += len(ends)
        shard["text_bytes"] += n_bytes
        shard["max_id"] = max(shard["max_id"], int(tokens.max()))
        if shard["tokens"] >= self._shard_tokens:
            self.close()

    def close(self) -> None:
        """End the current shard; the next append starts another."""
        if self._open is not None:
            self.shards[-1]["bin_sha256"], self.shards[-1]["idx_sha256"] = (file.close() for file in self._open)
            self._open = None


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Last file of a corpus; `manifest` without format and version."""
    text = json.dumps({"format": FORMAT, "version": VERSION} | manifest, indent=1)
    with (folder / "manifest.json").open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the lock of `output`, waiting for whoever holds it; nothing but `output` itself is left behind."""
    missing = [folder for folder in output.parents if not folder.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    path = output.parent / f".{output.name}.lock"
    while True:
        lock = path.open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The previous holder may have removed the file that we waited on.
        if path.exists() and os.fstat(lock.fileno()).st_ino == path.stat().st_ino:
            break
        lock.close()
    try:
        yield
    finally:
        path.unlink()
        lock.close()
        with contextlib.suppress(OSError):  # not empty: something was made
            for folder in missing:
                folder.rmdir()


@contextlib.contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A fresh folder to write into, which becomes `output` if the block ends well and disappears if it does not."""
    partial = output.parent / f".{output.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

"""Files that are whole or absent: written beside their place, flushed, and renamed over what was there.

A kill at any moment leaves the old file or the new one. Locks are the kernel's (flock): they die with their process,
so that a dead owner's folder is free.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO


class InUse(ValueError):
    """Another process holds the folder."""


class HashingFile:
    """A binary file that knows the SHA-256 of what was written to it; written from start to end, without seeking."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._hash = hashlib.sha256()
        self.n_bytes = 0

    def write(self, data: Any) -> int:
        self._hash.update(data)
        n_bytes = self._file.write(data)
        self.n_bytes += n_bytes
        return n_bytes

    def flush(self) -> None:
        self._file.flush()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def close(self) -> str:
        """Put it on the disk and give its digest."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self.sha256


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[HashingFile]:
    """A file to write, which becomes `path` if the block ends well, and disappears if it does not.

    It is on the disk before it takes the name.
    """
    for left_over in path.parent.glob(f".{path.name}.*.tmp"):  # of a process that was killed
        left_over.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as raw:
            file = HashingFile(raw)
            yield file
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def link(source: Path, target: Path) -> None:
    """Give the file `source` the second name `target`, in place of what was there, without writing it again.

    Whoever then replaces one of the names leaves the other. A copy where the file system has no hard links.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            with replacing(target) as file, source.open("rb") as original:
                shutil.copyfileobj(original, file, 1 << 20)
        else:
            os.replace(temporary, target)
            sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)  # it stays when both names already were the same file


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A fresh folder to write into, which becomes `path` if the block ends well, and disappears if it does not.

    Raises OSError when `path` is there and not an empty folder.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; nothing when there is none, or another process removes it."""
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def lock(path: Path, wait: bool = False, shared: bool = False) -> IO[str]:
    """Hold the lock file `path` until the returned file is closed; shared: with others that share it.

    Raises BlockingIOError when another process holds it.
    """
    file = path.open("w")
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        file.close()
        raise
    return file


def claim(folder: Path, option: str, shared: bool = False) -> IO[str]:
    """Make `folder` and hold its lock until the returned file is closed; shared: with others that share it.

    Raises InUse when another process holds it, ValueError when it cannot be written; both name the `option` that
    chooses another one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return lock(folder / ".lock", shared=shared)
    except BlockingIOError:
        raise InUse(f"{folder} is in use by another process; choose another {option}") from None
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}; choose another {option}") from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

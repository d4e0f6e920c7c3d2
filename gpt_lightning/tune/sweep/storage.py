"""Where a study is kept: a journal file in its folder, an RDB, or behind a gRPC proxy."""

import warnings
from pathlib import Path
from typing import IO

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from gpt_lightning import files

GRPC_SECONDS = 30


class _Lock(BaseJournalFileLock):
    """Held by a process and gone with it; Optuna's own locks outlive one that is killed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: IO[str] | None = None

    def acquire(self) -> bool:
        self._held = files.lock(self._path, wait=True)
        return True

    def release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.close()


def open_storage(folder: Path, url: str | None) -> BaseStorage:
    """The journal file in `folder`, or what a URL names. Raises ValueError where it cannot be reached."""
    if url is None:
        lock = _Lock(folder / ".journal.lock")
        return JournalStorage(JournalFileBackend(str(folder / "journal.log"), lock_obj=lock))
    try:
        if not url.startswith("grpc://"):
            return RDBStorage(url)
        from optuna.storages import GrpcStorageProxy

        host, _, port = url.removeprefix("grpc://").partition(":")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            proxy = GrpcStorageProxy(host=host, port=int(port or 13000))
            proxy.wait_server_ready(timeout=GRPC_SECONDS)
        return proxy
    except ImportError as error:
        raise ValueError(
            f"tune.storage {url}: {error}; pip install 'gpt-lightning[grpc]', or the database's driver"
        ) from error
    except Exception as error:
        raise ValueError(f"tune.storage {url}: {' '.join(str(error).split())}") from error

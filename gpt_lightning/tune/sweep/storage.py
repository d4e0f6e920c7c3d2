"""Where a study is kept: a journal file in its folder, an RDB, or behind a gRPC proxy.

The proxy is a process of its own beside the database or the journal, which `PROXY` starts.
"""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from gpt_lightning import files

GRPC_SECONDS = 30
PROXY = "from optuna.storages import *; run_grpc_proxy_server(RDBStorage('sqlite:///study.db'), host='0.0.0.0')"


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
        start = f'; is the proxy there? python -c "{PROXY}" starts one' if url.startswith("grpc://") else ""
        raise ValueError(f"tune.storage {url}: {_in_words(error)}{start}") from error


@contextlib.contextmanager
def answering(url: str | None) -> Iterator[None]:
    """Raise ValueError in place of what a storage raises that no longer answers."""
    try:
        yield
    except Exception as error:
        grpc: Any = sys.modules.get("grpc")  # loaded late, and only where a proxy is used
        if not isinstance(error, (optuna.exceptions.StorageInternalError, *([grpc.RpcError] if grpc else []))):
            raise
        raise ValueError(
            f"tune.storage {url} no longer answers ({_in_words(error)}); when it does, the same command goes on"
        ) from error


def _in_words(error: BaseException) -> str:
    details = getattr(error, "details", None)  # of gRPC's, which say a page otherwise
    return " ".join(str(details() if details else error).split())

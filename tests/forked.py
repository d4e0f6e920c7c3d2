"""Commands in processes of their own that start at once, for they are forked from one that has imported Lightning.

Each gets its own process id, working folder, signals and exit code. For several devices, each rank is a process
started as torchrun starts it; the tests of Lightning's own launcher run the command itself.
"""

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preloaded"])
ROOT = str(Path(__file__).parents[1])


class Forked:
    """`gpt-lightning WORDS` in `folder`; with the methods of subprocess.Popen that the tests use."""

    def __init__(self, words: list[str], folder: Path, variables: dict[str, str] | None = None):
        handle, outputs = tempfile.mkstemp()
        os.close(handle)
        self._files = [Path(outputs), Path(outputs + ".errors")]
        self._process = CONTEXT.Process(target=_work, args=(words, folder, self._files, variables or {}))
        with pytest.MonkeyPatch.context() as patch:  # the server's first start is in a test's folder
            patch.setenv("PYTHONPATH", ROOT)
            self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float = 240) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._process.exitcode

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        self.wait(timeout)
        output, errors = (file.read_text(encoding="utf-8") for file in self._files)
        for file in self._files:
            file.unlink()
        return output, errors


def run(words: list[str], folder: Path, n_ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """`gpt-lightning WORDS` to its end: what rank 0 writes, and the first exit code that is not 0."""
    port = _free_port()
    variables = [_rank(rank, n_ranks, port) for rank in range(n_ranks)] if n_ranks > 1 else [{}]
    processes = [Forked(words, folder, rank) for rank in variables]
    deadline = time.monotonic() + 240
    while any(p.poll() is None for p in processes) and not any(p.poll() for p in processes):
        assert time.monotonic() < deadline, "the ranks do not end"
        time.sleep(0.01)
    failed = [p.poll() for p in processes if p.poll()]
    for process in processes if failed else []:
        process.kill()  # the others would wait for it
    outputs = [process.communicate() for process in processes]
    return subprocess.CompletedProcess(words, failed[0] if failed else 0, *map("".join, zip(*outputs, strict=True)))


def _work(words: list[str], folder: Path, files: list[Path], variables: dict[str, str]) -> None:
    import torch
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from gpt_lightning import cli

    os.chdir(folder)
    os.environ.update(variables)
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    torch.set_num_threads(1)
    rank_zero_only.rank = int(variables.get("RANK", 0))  # Lightning reads the variable when it is imported
    code = cli.main(words)
    sys.stdout.flush()
    sys.exit(code)


def _rank(rank: int, n_ranks: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets."""
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests", "GROUP_RANK": 0}
    counts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n_ranks, "LOCAL_WORLD_SIZE": n_ranks}
    return {key: str(value) for key, value in {**names, **counts}.items()}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]

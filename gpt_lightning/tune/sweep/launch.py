"""More workers on this machine: the same command, each with its share of the cores, or with a GPU of its own."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from gpt_lightning.terminal import say

SECONDS = 5.0  # that a worker has to end by itself


@contextlib.contextmanager
def start_workers(n: int, folder: Path) -> Iterator[None]:
    """All but the first of n workers, which is this process; they end with the block."""
    if n == 1:
        yield
        return
    threads = max(torch.get_num_threads() // n, 1)
    torch.set_num_threads(threads)
    (folder / "workers").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "gpt_lightning", "tune", "sweep", f"--config={folder}/config.yaml"]
    n_gpus = torch.cuda.device_count()
    processes, logs = [], [folder / "workers" / f"{i + 1}.log" for i in range(1, n)]
    for i, log in enumerate(logs, 1):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if n_gpus:
            given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
            environment["CUDA_VISIBLE_DEVICES"] = given[i % len(given)] if given else str(i % n_gpus)
        with log.open("ab") as file:
            processes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=file))
    stop = threading.Event()
    threading.Thread(target=_watch, args=(processes, logs, stop), daemon=True).start()
    try:
        yield
    except BaseException:
        stop.set()
        _wait(processes, SECONDS)  # Ctrl-C is sent to all of them; a second signal would not let them save
        for process in processes:
            process.terminate()
        raise
    else:
        for process in processes:
            process.wait()
    finally:
        stop.set()


def _wait(processes: list[subprocess.Popen[bytes]], seconds: float) -> None:
    until = time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(until - time.monotonic(), 0))


def _watch(processes: list[subprocess.Popen[bytes]], logs: list[Path], stop: threading.Event) -> None:
    """Say once which of them have failed; the others go on with what they trained."""
    reported: set[int] = set()
    while not stop.wait(1.0):
        for i, process in enumerate(processes):
            if process.poll() not in (None, 0) and i not in reported:
                reported.add(i)
                say(f"worker {i + 2} ended with code {process.returncode}: {logs[i]}")

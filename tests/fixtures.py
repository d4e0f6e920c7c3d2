"""Runs of a tiny model on a tiny corpus, for the tests of whole runs."""

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tests import forked

if TYPE_CHECKING:
    from gpt_lightning.run.build import Run

WORDS = ["the", "model", "reads", "a", "text", "and", "learns", "which", "word", "comes", "next", "in", "language"]

TINY = {
    "max_tokens": 1024,
    "val_interval_tokens": 256,
    "model.gpt.n_layers": 2,
    "model.gpt.n_heads": 2,
    "model.gpt.d_model": 16,
    "model.gpt.dropout": 0.1,
    "model.optim.lr": 0.01,
    "data.context_length": 16,
    "data.micro_batch_size": 2,
    "data.batch_tokens": 64,
    "data.prepare.tokenizer": "bytes",
    "trainer.precision": "32-true",
    "trainer.log_every_n_steps": 1,
    "trainer.accelerator": "cpu",
    "samples.max_new_tokens": 4,
}


def run_in(folder: Path, options: dict) -> Path:
    """A whole run in `folder`, on a text.txt that is written there; the folder."""
    import gpt_lightning as gl

    with contextlib.chdir(folder):
        write_text(folder / "text.txt")
        gl.run([], options)
    return folder


def write_text(path: Path, n_words: int = 3000) -> Path:
    """A text of random words, in paragraphs so that it can be split into documents."""
    numbers = random.Random(0)
    words = [numbers.choice(WORDS) + ("\n\n" if i % 50 == 49 else " ") for i in range(n_words)]
    path.write_text("".join(words), encoding="utf-8")
    return path


def error_lines(stderr: str) -> list[str]:
    """What a command complains of: all but the lines in which a raw corpus announces itself."""
    return [line for line in stderr.strip().splitlines() if not line.startswith(("prepared ", "near copies: none"))]


def arguments(options: dict) -> list[str]:
    """Command-line flags for TINY with `options` laid over it."""
    return [f"--{name}={value}" for name, value in {**TINY, **options}.items()]


def build(options: dict, flags: Sequence[str] = ()) -> "Run":
    """The run of TINY with `options` laid over it, not started; its folder is made."""
    from gpt_lightning.run import build
    from gpt_lightning.run.folder import RunDir
    from gpt_lightning.run.stack import read_stack

    stack, _ = read_stack([*arguments(options), *flags], "fit")
    folder = RunDir(Path(stack["run_dir"]))
    folder.path.mkdir(parents=True, exist_ok=True)
    return build.build(stack, folder=folder)


def command(verb: str, options: dict) -> list[str]:
    """The whole command of a verb, to be run in a process of its own."""
    return [sys.executable, "-m", "gpt_lightning", verb, *arguments(options)]


def environment() -> dict[str, str]:
    """One thread per process: tiny models are slower on two, and bitwise comparisons want one order of sums."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}


def fit_in_process(folder: Path, options: dict) -> subprocess.CompletedProcess[str]:
    """`gpt-lightning fit` in `folder`, in a process of its own, or in one for each device."""
    return forked.run(["fit", *arguments(options)], folder, options.get("trainer.devices", 1))


def read(path: Path) -> dict:
    """A checkpoint's contents."""
    return torch.load(path, weights_only=True, map_location="cpu")


def assert_equal(a, b, path: str = "checkpoint") -> None:
    """Two nested structures are bit for bit the same."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}[{i}]")
    else:
        assert a == b, path

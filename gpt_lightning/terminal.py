"""What the user reads: lines, tables, bars, short numbers, and errors of one line."""

import argparse
import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

KNOWN_WARNINGS = (
    ".*does not have many workers.*",  # memory maps are faster without workers (data/datamodule.py)
    ".*LeafSpec.*",  # torch 2.13 about its own pytree
    ".*isinstance\\(treespec.*",
    ".*Checkpoint directory .* exists and is not empty.*",  # the run folder guards that
    ".*Trying to infer the `batch_size`.*",
    ".*Precision bf16-mixed is not supported by the model summary.*",
    ".*The `lr_scheduler.step\\(\\)`.*",
)


def say(line: str) -> None:
    """One line for the user."""
    print(line, flush=True)


def console(stderr: bool = False) -> Console:
    """A Rich console that prints tables and lines as they are."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


class Parser(argparse.ArgumentParser):
    """Of a verb with a few flags of its own; what is wrong with them is one line, printed by cli.py."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise ValueError(message)


class Bars(Progress):
    """Progress bars, and `above` them what is to be seen as it grows."""

    above: Callable[[], RenderableType] | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.above is not None:
            yield self.above()
        yield from super().get_renderables()


def progress(*columns: ProgressColumn) -> Bars:
    """A bar on a terminal, which disappears at its end; nothing in a log file or a notebook."""
    errors = Console(stderr=True)
    shown = columns or (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    return Bars(*shown, console=errors, transient=True, disable=not errors.is_terminal)


def short(count: float) -> str:
    """A count in three or four characters: 3.4M, 175B, 512."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"


def duration(seconds: float) -> str:
    """4 min 42 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def fail(message: str) -> int:
    """One line on stderr, and the exit code of bad input."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's and torch's tips and known deprecations off the screen; problems still show."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for pattern in KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=pattern)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)

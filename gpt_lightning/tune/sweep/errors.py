"""What ended a worker in the middle of a trial: a line each in the trial's folder, until there are too many of them.

A trial that ends one worker may be the victim of a full disk or a bad card, and is taken again; but not for ever, or
no sweep with it would come to an end. One that does not fit into memory is not tried again.
"""

import os
from pathlib import Path

import torch

MOST = 3


class TrialErrors:
    """Of a rung in `folder`; each rank under torchrun has a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, error: Exception) -> None:
        """Write it down."""
        self.folder.mkdir(parents=True, exist_ok=True)
        times = MOST if isinstance(error, torch.cuda.OutOfMemoryError) else 1
        with (self.folder / f"errors-{os.environ.get('RANK', 0)}.txt").open("a", encoding="utf-8") as file:
            file.write(f"{in_a_line(error)}\n" * times)

    @property
    def given_up(self) -> str:
        """The last error where there have been too many; empty where it is worth another try."""
        for path in sorted(self.folder.glob("errors-*.txt")):
            lines = path.read_text(encoding="utf-8").splitlines()
            if len(lines) >= MOST:
                return lines[-1]
        return ""


def in_a_line(error: Exception) -> str:
    """Its words, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__

"""The shape of a tuning verb, and the one program that runs them all.

    settings -> measure(Job) -> Result -> runs/NAME/{result.json, figure.png, tuned.yaml}, table, recommendation

A verb is a dataclass of settings, a function that measures, and a frozen result. Folder, resume, progress, files and
what is printed are the same for all; a new verb touches its own folder and one line of cli.py's table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.table import Table

from gpt_lightning.run.stack import Stack, read_stack
from gpt_lightning.terminal import Bars, console, progress, quiet
from gpt_lightning.tune.results import TuneFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Result(Protocol):
    """What a verb has found, frozen."""

    @property
    def recommendation(self) -> str:
        """One line: what to set."""

    @property
    def explanation(self) -> str:
        """A line or two: what the overlay is for, and what is known of it."""

    def notes(self) -> Sequence[str]:
        """Further lines for the reader: facts, warnings."""

    def to_dict(self) -> dict[str, Any]:
        """The numbers of result.json."""

    def table(self) -> Table:
        """What was measured, for the terminal."""

    def figure(self) -> "Figure":
        """The same as a picture."""

    def overlay(self) -> dict[str, Any]:
        """Nested settings of the stack, only those that were decided."""


@dataclass(frozen=True)
class Job:
    """What a verb measures with: the stack, its own settings, the folder that keeps measurements, a bar.

    part: what this is a part of, when one verb uses another; its measurements are kept apart by that name.
    """

    stack: Stack
    settings: Any
    folder: TuneFolder
    progress: Bars
    part: str = ""

    def measured(self, key: str, measure: Callable[[], Any]) -> Any:
        """What the folder holds under `key`, measured now where it holds nothing."""
        return self.folder.measured(f"{self.part} {key}".strip(), measure)


@dataclass(frozen=True)
class Verb:
    """A tuning verb; calling it with the command line's arguments runs it and gives the exit code.

    settings: frozen dataclass of --tune.NAME, with `dir` and `if_exists`. identity: what decides the result, as JSON
    values; a folder made under another one is refused. light: the stack is read without Lightning. passed: whether a
    result is one to go on with; exit code 1 when not. shared: several processes may work in its folder.
    """

    name: str
    settings: type
    measure: Callable[[Job], Any]
    identity: Callable[[Stack, Any], Mapping[str, Any]]
    light: bool = False
    shared: bool = False
    passed: Callable[[Any], bool] = lambda result: True

    def run(self, arguments: Sequence[str], about: str = "") -> tuple[Any, Path]:
        """Measure what the folder does not hold yet, write the files, print; (result, folder)."""
        with quiet():
            stack, settings = read_stack(arguments, self.name, about, self.settings, self.light)
            if self.light and stack["model.block"] is not None:  # counted by building it, which takes torch anyway
                stack, settings = read_stack(arguments, self.name, about, self.settings)
        with TuneFolder(settings.dir, self.identity(stack, settings), settings.if_exists, self.shared) as folder:
            with progress() as bar:
                result: Result = self.measure(Job(stack, settings, folder, bar))
            header = f"gpt-lightning {self.name}: {result.recommendation}\n{result.explanation}".rstrip()
            about_it = {"verb": self.name, "recommendation": result.recommendation}
            overlay = result.overlay()
            folder.finish({**about_it, **result.to_dict()}, result.figure(), overlay, header)
        _report(result, f"; add --config {folder.path}/tuned.yaml" if overlay else "")
        return result, folder.path

    def __call__(self, arguments: Sequence[str], about: str = "") -> int:
        result, _ = self.run(arguments, about)
        return 0 if self.passed(result) else 1


def _report(result: Result, how: str) -> None:
    """The table, what is known, and the recommendation last, with what to do about it."""
    screen = console()
    screen.print(result.table())
    for line in filter(None, [*result.notes(), *result.explanation.splitlines()]):
        screen.print(line, markup=False)
    screen.print(f"recommendation: {result.recommendation}{how}", markup=False)

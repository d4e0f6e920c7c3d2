"""The search space: which settings of a stack are tried, and over which values.

    model.optim.lr: {low: 1e-3, high: 3e-2, log: true}    a range; of whole numbers where the setting is one
    data.batch_tokens: [1024, 2048, 4096]                 a choice of values
    shape:                                                a choice of overlays, under a name of its own
      wide: {model: {gpt: {n_layers: 2, d_model: 256}}}
      deep: configs/model/deep.yaml
    optimizer:                                            and with one of them, settings of its own
      muon: {model.optim.name: muon, space: {model.optim.lr: {low: 1e-3, high: 3e-2, log: true}}}

A point of the space is a parameter by name, as Optuna keeps it; what belongs to one overlay of a choice is named after
both, `optimizer.muon.model.optim.lr`, and is there only when that one is taken.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from gpt_lightning.run.stack import Stack, nested

Point = dict[str, Any]


class Suggests(Protocol):
    """What Optuna's Trial does."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Range:
    """A setting between two values, both possible. points: how many of them a grid has."""

    name: str
    key: str
    low: float
    high: float
    log: bool = False
    is_whole: bool = False
    points: int | None = None

    @property
    def short(self) -> str:
        """The name without the groups that it stands in."""
        return self.name.rpartition(".")[2]

    def suggest(self, trial: Suggests) -> Any:
        if self.is_whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def distribution(self) -> BaseDistribution:
        if self.is_whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def at(self, share: float) -> Any:
        """The value at a share from 0 to 1 of the way, on the scale of the range."""
        value = min(max(self.beyond(share), self.low), self.high)
        return round(value) if self.is_whole else value

    def beyond(self, share: float) -> float:
        """The same for a share below 0 or above 1 too, to four digits."""
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return round(value) if self.is_whole else float(f"{value:.4g}")

    def share(self, value: float) -> float:
        """How far a value lies from `low` to `high`, on the scale of the range."""
        scale: Callable[[float], float] = math.log if self.log else float
        return (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))

    def grid(self) -> list[Any]:
        if self.points is None:
            raise ValueError(f"tune.space {self.key}: a grid needs the number of its `points`, as {{..., points: 3}}")
        shares = [i / (self.points - 1) for i in range(self.points)] if self.points > 1 else [0.5]
        return list(dict.fromkeys(map(self.at, shares)))

    def overlay(self, value: Any) -> dict[str, Any]:
        return nested({self.key: value})


@dataclass(frozen=True)
class Choice:
    """One of several overlays by label, each with entries of its own; key: of the setting whose values they are."""

    name: str
    key: str | None
    overlays: dict[Any, dict[str, Any]]
    within: dict[Any, tuple["Entry", ...]] = field(default_factory=dict)

    @property
    def short(self) -> str:
        """The name without the groups that it stands in."""
        return self.name.rpartition(".")[2]

    def distribution(self) -> BaseDistribution:
        return CategoricalDistribution(self.labels)

    @property
    def labels(self) -> list[Any]:
        return list(self.overlays)

    def suggest(self, trial: Suggests) -> Any:
        return trial.suggest_categorical(self.name, self.labels)

    def at(self, share: float) -> Any:
        return self.labels[min(int(share * len(self.labels)), len(self.labels) - 1)]

    def grid(self) -> list[Any]:
        return self.labels

    def overlay(self, value: Any) -> dict[str, Any]:
        return self.overlays[value]


Entry = Range | Choice


@dataclass(frozen=True)
class Space:
    """The entries in order; those within a choice follow it where it takes them."""

    entries: tuple[Entry, ...]

    @property
    def n_dimensions(self) -> int:
        """Of all entries, those that exclude each other included."""
        return sum(1 for _ in self.all())

    def all(self) -> Iterator[Entry]:
        """Every entry, whatever is chosen."""
        return _all(self.entries)

    def suggest(self, trial: Suggests) -> Point:
        """A point that the trial's sampler picks."""
        return self._point(lambda entry: entry.suggest(trial))

    def at(self, shares: Sequence[float]) -> Point:
        """The point at shares from 0 to 1, one for every entry of `all`."""
        by_name = {entry.name: share for entry, share in zip(self.all(), shares, strict=True)}
        return self._point(lambda entry: entry.at(by_name[entry.name]))

    def grid(self) -> Iterator[Point]:
        """Every combination. Raises ValueError for a range without `points`."""
        return _grid(self.entries)

    def active(self, point: Mapping[str, Any]) -> list[Entry]:
        """The entries that a point has a value of."""
        return [entry for entry in self.all() if entry.name in point]

    def overlays(self, point: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What makes the point's stack of the common one, overlay by overlay."""
        return [entry.overlay(point[entry.name]) for entry in self.active(point)]

    def of(self, stack: Stack) -> Point | None:
        """The point that leaves the stack as it is; None where the space does not hold it."""
        here = stack.flat()

        def own(entry: Entry) -> Any:
            if isinstance(entry, Range):
                value = stack[entry.key]
                return value if isinstance(value, int | float) and entry.low <= value <= entry.high else None
            same = [label for label, overlay in entry.overlays.items() if stack.over(overlay).flat() == here]
            return same[0] if same else None

        point = self._point(own)
        unheld = [
            e
            for e in self.active(point)
            if point[e.name] is None and not (isinstance(e, Choice) and None in e.overlays)
        ]
        return None if unheld else point

    def stack(self, common: Stack, point: Mapping[str, Any]) -> Stack:
        """The stack of a point. Raises ValueError where its settings make no run together."""
        return common.over(*self.overlays(point))

    def _point(self, pick: Callable[[Entry], Any]) -> Point:
        point: Point = {}
        queue = list(self.entries)
        while queue:
            entry = queue.pop(0)
            point[entry.name] = pick(entry)
            if isinstance(entry, Choice):
                queue = [*entry.within.get(point[entry.name], ()), *queue]
        return point


def _all(entries: Sequence[Entry]) -> Iterator[Entry]:
    for entry in entries:
        yield entry
        if isinstance(entry, Choice):
            for inner in entry.within.values():
                yield from _all(inner)


def _grid(entries: Sequence[Entry]) -> Iterator[Point]:
    options: list[list[Point]] = []
    for entry in entries:
        found: list[Point] = []
        for value in entry.grid():
            inner = entry.within.get(value, ()) if isinstance(entry, Choice) else ()
            found += [{entry.name: value, **more} for more in _grid(inner)]
        options.append(found)
    for parts in itertools.product(*options):
        yield {name: value for part in parts for name, value in part.items()}

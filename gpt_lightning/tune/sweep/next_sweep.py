"""The sweep to run next: where the best trials lie, and beyond an edge of the space where the best lies at one."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import yaml

from gpt_lightning.run.stack import flatten
from gpt_lightning.tune.sweep.read_space import read_space
from gpt_lightning.tune.sweep.result import EDGE, SweepResult, SweepTrial
from gpt_lightning.tune.sweep.space import Choice, Entry

KEPT = 3  # one of so many trials, the best, say where to look
ROOM = 0.125  # of a range, around them
WIDER = 0.25  # of a range, past an edge


def next_sweep(result: SweepResult) -> str:
    """The overlay of the next sweep as YAML."""
    lines = [
        f"# The next sweep: where the best third of {len(result.trials)} trials lies, and beyond an edge of the best.",
        f"#   gpt-lightning tune sweep --config STACK --config {result.plan.folder}/next.yaml",
    ]
    settings = {"tune": {"dir": f"{result.plan.folder}-next", "space": next_space(result)}}
    return "\n".join(lines) + "\n" + yaml.safe_dump(settings, sort_keys=False)


def next_space(result: SweepResult) -> dict[str, Any]:
    """As `tune.space` is written; empty where no trial ended."""
    ended = [trial for trial in result.ranked if trial.scores and math.isfinite(trial.scores[0])]
    top = ended[: max(len(ended) // KEPT, 1)]
    return {entry.key or entry.name: _next(entry, top, result) for entry in result.plan.space.entries} if top else {}


def _next(entry: Entry, top: Sequence[SweepTrial], result: SweepResult) -> Any:
    values = [trial.point[entry.name] for trial in top]
    if isinstance(entry, Choice):
        given = result.settings.space[entry.name]
        kept = [label for label in entry.labels if label in values]
        return {label: given[label] for label in kept} if entry.key is None else [_value(entry, one) for one in kept]
    shares = [entry.share(value) for value in values]
    best = entry.share(result.best.point[entry.name]) if result.best else 0.5
    low = min(*shares, 1.0) - ROOM
    high = max(*shares, 0.0) + ROOM
    low = min(low, -WIDER) if best < EDGE else max(low, 0.0)
    high = max(high, 1 + WIDER) if best > 1 - EDGE else min(high, 1.0)
    scale = {"log": True} if entry.log else {}
    spans = [{"low": entry.beyond(low), "high": entry.beyond(high)}, {"low": entry.at(low), "high": entry.at(high)}]
    for span in spans:  # beyond an edge there may be no settings of a run
        with contextlib.suppress(ValueError):
            read_space(result.plan.stack, {entry.key: {**span, **scale}})
            return {**span, **scale}
    return {"low": entry.low, "high": entry.high, **scale}


def _value(entry: Choice, label: Any) -> Any:
    """What a label stands for; values that are lists have their JSON for one."""
    return flatten(entry.overlay(label)).get(str(entry.key), label)

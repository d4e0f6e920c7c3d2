"""The search space as it is written in YAML (space.py has the values), read and checked on the stack it belongs to."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from gpt_lightning.run.build import check
from gpt_lightning.run.stack import Stack, flatten, nested
from gpt_lightning.tune.overlays import read_overlay, refuse_without_effect
from gpt_lightning.tune.sweep.space import Choice, Entry, Range, Space

PLAIN = (str, int, float, bool, type(None))
SAME = (  # for all trials: a sweep sets it, or scores would not compare
    *("max_tokens", "val_interval_tokens", "run_dir", "if_exists", "ckpt_path", "samples.", "trainer.logger"),
    *("seed_everything", "data.seed", "data.corpus", "data.val_corpus", "data.prepare."),
)
EXPECTED = "expected a range {low, high, log}, a list of values, or overlays by name"


def read_space(stack: Stack, given: Mapping[str, Any]) -> Space:
    """The space that a mapping describes, each of its values tried on the stack.

    Raises ValueError naming the entry, what is wrong with it and what was expected.
    """
    if not given:
        raise ValueError(
            "tune.space is empty; give settings and their values, as "
            "--tune.space '{model.optim.lr: {low: 1e-3, high: 3e-2, log: true}, data.batch_tokens: [2048, 4096]}'"
        )
    space = Space(_entries(stack, given, ""))
    names = [entry.name for entry in space.all()]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"tune.space {name}: given twice")
    return space


def _entries(stack: Stack, given: Mapping[str, Any], prefix: str) -> tuple[Entry, ...]:
    return tuple(_entry(stack, str(key), value, prefix) for key, value in given.items())


def _entry(stack: Stack, key: str, value: Any, prefix: str) -> Entry:
    try:
        if isinstance(value, Mapping) and value.keys() & {"low", "high"}:
            return _range(stack, key, value, prefix)
        if isinstance(value, list):
            return _values(stack, key, value, prefix)
        if isinstance(value, Mapping):
            return _overlays(stack, key, value, prefix)
        raise ValueError(f"is {value!r}; {EXPECTED}")
    except ValueError as error:
        raise ValueError(f"tune.space {prefix}{key}: {error}".replace(": tune.space ", ": within, ")) from error


def _range(stack: Stack, key: str, value: Mapping[str, Any], prefix: str) -> Range:
    unknown = sorted(value.keys() - {"low", "high", "log", "points"})
    if unknown:
        raise ValueError(f"has {unknown[0]}; {EXPECTED}")
    low, high = (value.get(end) for end in ("low", "high"))
    numbers = [end for end in (low, high) if isinstance(end, int | float) and not isinstance(end, bool)]
    if len(numbers) < 2 or not -math.inf < numbers[0] < numbers[1] < math.inf:
        raise ValueError(f"from {low!r} to {high!r}; expected two numbers, the lower first")
    if value.get("log") and numbers[0] <= 0:
        raise ValueError(f"from {low!r} on a log scale; expected a number above 0")
    points = value.get("points")
    if points is not None and (not isinstance(points, int) or points < 1):
        raise ValueError(f"has points {points!r}; expected a whole number of at least 1")
    lowest, _ = [_tried(stack, {key: end}) for end in (low, high)]
    is_whole = isinstance(lowest[key], int)
    return Range(prefix + key, key, numbers[0], numbers[1], bool(value.get("log")), is_whole, points)


def _values(stack: Stack, key: str, values: list[Any], prefix: str) -> Choice:
    """Values that are lists or mappings have their JSON as a label: Optuna keeps plain ones."""
    labels = [value if isinstance(value, PLAIN) else json.dumps(value) for value in values]
    if not labels or len({repr(label) for label in labels}) < len(labels):
        raise ValueError("expected a list of values, each once")
    overlays = {label: {key: value} for label, value in zip(labels, values, strict=True)}
    for overlay in overlays.values():
        _tried(stack, overlay)
    return Choice(prefix + key, key, {label: read_overlay(overlay) for label, overlay in overlays.items()})


def _overlays(stack: Stack, key: str, named: Mapping[str, Any], prefix: str) -> Choice:
    if "." in key or key in stack.config:
        raise ValueError(f"has overlays by name, and is itself a setting; {EXPECTED}, under a name of your own")
    overlays: dict[Any, dict[str, Any]] = {}
    within: dict[Any, tuple[Entry, ...]] = {}
    for label, parts in named.items():
        merged: list[dict[str, Any]] = []
        chosen = stack
        for part in parts if isinstance(parts, list) else [parts]:
            overlay = read_overlay(part)
            inner = overlay.pop("space", {})
            if not isinstance(inner, Mapping):
                raise ValueError(f"{label} has space {inner!r}; expected settings and their values")
            alone = _tried(stack, overlay)
            merged.append(overlay)
            chosen = alone if len(merged) == 1 else stack.over(*merged)
            within[label] = within.get(label, ()) + _entries(chosen, inner, f"{prefix}{key}.{label}.")
        overlays[label] = decided(stack, chosen, merged)
    if not overlays:
        raise ValueError(EXPECTED)
    return Choice(prefix + key, None, overlays, within)


def decided(stack: Stack, chosen: Stack, overlays: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One overlay for several: what they change, and what they name and leave as it is."""
    flat, there = chosen.flat(), stack.flat()
    named = {name for overlay in overlays for name in flatten(overlay)}
    return nested({name: value for name, value in flat.items() if name in named or there.get(name) != value})


def _tried(stack: Stack, overlay: Mapping[str, Any]) -> Stack:
    """The stack with it. Raises ValueError where that is no run, or not one of this sweep."""
    settings = read_overlay(overlay)
    for key in flatten(settings):
        if key in SAME or key.startswith(tuple(name for name in SAME if name.endswith("."))):
            raise ValueError(f"{key} is the same for all trials; set it for all, outside tune.space")
    refuse_without_effect(stack, settings)
    there = stack.over(settings)
    check(there)
    return there

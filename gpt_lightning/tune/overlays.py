"""Overlays that are given as values: of the arms of a comparison, of the choices of a search space."""

import copy
from pathlib import Path
from typing import Any

import yaml

from gpt_lightning.run.spelling import load_counts
from gpt_lightning.run.stack import NO_SETTINGS, Stack, flatten, nested

EXPECTED = "expected a YAML file, a list of them, or settings such as {model: {optim: {lr: 1e-3}}}"


def read_overlay(part: Any) -> dict[str, Any]:
    """The nested settings of a file, of a mapping with dots in its keys or without, or of an empty file.

    Raises ValueError for anything else.
    """
    if isinstance(part, str):
        if not Path(part).is_file():
            raise ValueError(f"no file {part!r}; {EXPECTED}")
        try:
            part = load_counts(Path(part).read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{part} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(part, dict) or not all(isinstance(key, str) for key in part):
        raise ValueError(f"{part!r}: {EXPECTED}")
    groups_first = sorted(copy.deepcopy(part).items(), key=lambda item: item[0].count("."))
    return nested(dict(groups_first))


def refuse_without_effect(stack: Stack, overlay: dict[str, Any]) -> None:
    """Raise ValueError for a key that the stack would take and not use."""
    links: Any = next(group for group in stack.parser._action_groups if group.title == "Linked arguments")
    linked = {action.target[0]: action.source[0][0] for action in links._group_actions}
    known = {action.dest.split(".")[0] for action in stack.parser._actions}
    for key, value in overlay.items():
        if key not in known or key in NO_SETTINGS:
            raise ValueError(f"{key} is no setting of a run")
        if not isinstance(value, dict) and isinstance(stack[key], type(stack["model"])):
            raise ValueError(f"{key} is {value!r}; expected a mapping of its settings")
    for key in flatten(overlay):
        if key in linked:
            raise ValueError(f"{key} follows from {linked[key]}; set that")

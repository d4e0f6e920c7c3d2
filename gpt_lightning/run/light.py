"""A stack read without Lightning: what light_parser has no place for passes by, in overlays and flags."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from gpt_lightning.run.schema import UNREAD, Devices
from gpt_lightning.run.spelling import load_counts

DEVICES = tuple(setting.name for setting in fields(Devices))


def load_light(text: str) -> Any:
    """An overlay without what is not read."""
    value = load_counts(text)
    if not isinstance(value, dict):
        return value
    value = {key: inner for key, inner in value.items() if key not in UNREAD}
    if isinstance(value.get("trainer"), dict):
        value["trainer"] = {key: inner for key, inner in value["trainer"].items() if key in DEVICES}
    return value


def without_unread(words: Sequence[str]) -> list[str]:
    """The flags without those that are not read; --trainer's own keys are kept, and what else it holds is not."""
    kept = []
    for word in words:
        key, _, value = word.partition("=")
        group, _, name = key[2:].partition(".")
        if group == "trainer" and not name:
            text = Path(value).read_text(encoding="utf-8") if Path(value).is_file() else value
            kept.append("--config=" + json.dumps({"trainer": load_counts(text)}))
        elif not (group in UNREAD or key[2:].startswith(("model.block.", "model.loss."))):
            kept += [word] if group != "trainer" or name in DEVICES else []
    return kept

"""Ids that stand for no text: only our own code writes them, and a text that spells one stays text.

They come after the last id of a tokenizer that has been trained, so every text keeps the ids that it had.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

FIM_MARKERS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
CHAT_MARKERS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")


class FimIds(NamedTuple):
    """The ids of FIM_MARKERS, which only our own code writes (data/fim.py)."""

    prefix: int
    suffix: int
    middle: int


class ChatIds(NamedTuple):
    """The ids of CHAT_MARKERS: who speaks, and where it ends."""

    system: int
    user: int
    assistant: int
    end: int


def with_markers(tokenizer: str, markers: Sequence[str], first_id: int) -> str:
    """The text of a tokenizer.json with these ids more, from `first_id` on."""
    spec = json.loads(tokenizer)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    spec["added_tokens"] += [{"id": i, "content": marker} | flags for i, marker in enumerate(markers, first_id)]
    return json.dumps(spec)


def extends(tokenizer: str, other: str) -> bool:
    """Whether a tokenizer.json is the other one, or that with further markers: then its ids mean the same here."""
    mine, theirs = json.loads(tokenizer), json.loads(other)
    added, more = (spec.pop("added_tokens", None) or [] for spec in (theirs, mine))
    return bool(mine == theirs and all(token in more for token in added))

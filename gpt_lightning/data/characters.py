"""One id per character, as in nanoGPT's character corpora, stored as a `tokenizer.json` that `tokenizers` reads alike.

The file is a WordLevel model over single characters. It has no `<|endoftext|>`, so `eot_id` is None and a text without
a prompt starts from a new line, as nanoGPT's sample.py does. What it has no id for cannot be written, and is named.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_lightning.data.stored_tokenizer import StoredTokenizer
from gpt_lightning.data.tokenizer import Tokenizer, canonical_json

_SPEC: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False},
    "post_processor": None,
    "decoder": {"type": "Fuse"},
}


def _check(vocab: Mapping[str, Any]) -> None:
    """Raise ValueError unless `vocab` gives single characters the ids 0, 1, 2, ..."""
    for character in vocab:
        if len(character) != 1 or "\ud800" <= character <= "\udfff":  # a surrogate is half a character
            raise ValueError(f"entry {character!r:.40} is not one character")
    ids = list(vocab.values())
    if not ids or not all(type(i) is int for i in ids) or sorted(ids) != list(range(len(ids))):
        raise ValueError(f"the ids of its {len(ids)} characters are not 0 to {len(ids) - 1}, each once")


class CharacterTokenizer(StoredTokenizer):
    """`vocab`: the id of each character. Raises ValueError where these are not 0, 1, 2, ... of single characters."""

    eot_id = None

    def __init__(self, vocab: Mapping[str, int]) -> None:
        _check(vocab)
        self.vocab = dict(vocab)
        self.vocab_size = len(vocab)
        self.start_id = self.vocab.get("\n", 0)
        model = {"type": "WordLevel", "vocab": self.vocab, "unk_token": "<unk>"}  # not an entry: unknown is an error
        self.json = canonical_json(json.dumps(_SPEC | {"model": model}))
        self._bytes = [character.encode() for character in sorted(vocab, key=vocab.__getitem__)]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. Raises ValueError naming the first character that has none."""
        try:
            return [self.vocab[character] for character in text]
        except KeyError as error:
            raise ValueError(
                f"{text[:40]!r} has the character {error}, which is not among the {self.vocab_size} of the corpus; "
                "leave it out"
            ) from None


AnyTokenizer = Tokenizer | CharacterTokenizer


def _characters(text: str) -> CharacterTokenizer | None:
    """That of a file written by `save`; None for one with another kind of model. Raises ValueError."""
    spec = json.loads(text)
    model = spec.get("model") if isinstance(spec, dict) else None
    if not isinstance(model, dict) or model.get("type") != "WordLevel":
        return None
    vocab = model.get("vocab")
    tokenizer = CharacterTokenizer(vocab if isinstance(vocab, dict) else {})
    if tokenizer.json != canonical_json(text):
        raise ValueError("a WordLevel model, but not of characters as gpt-lightning writes it; use byte-level BPE")
    return tokenizer


def read_tokenizer(path: Path | str) -> AnyTokenizer:
    """That of a `tokenizer.json`, byte-level BPE or characters, or of the word "bytes". Raises ValueError naming it."""
    try:
        text = "{}" if path == "bytes" else Path(path).read_text(encoding="utf-8")
        characters = _characters(text)
    except (json.JSONDecodeError, UnicodeDecodeError, OSError):
        characters = None  # Tokenizer says what is wrong with it
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return characters or Tokenizer.from_file(path)


def tokenizer_beside(path: Path | str) -> Path:
    """The tokenizer.json of a run folder, or of the run that a checkpoint in one belongs to. Raises ValueError."""
    path = Path(path)
    is_checkpoint = path.is_file() or path.suffix == ".ckpt"  # one in shards is a folder
    for folder in (path.parent, path.parent.parent) if is_checkpoint else (path,):
        if (folder / "tokenizer.json").is_file():
            return folder / "tokenizer.json"
    raise ValueError(
        f"no tokenizer.json beside {path}; keep the checkpoint in its run folder, and if it was trained on token ids "
        "that came without a tokenizer, copy theirs there"
    )

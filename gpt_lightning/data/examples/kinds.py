"""Rows -> examples: a row's fields are checked, and become turns of text, some of which the model is to write.

    chat             messages                  <|user|> text <|end|> <|assistant|> ANSWER <|end|> ...
    completion       prompt, completion        text COMPLETION <|endoftext|>
    classification   text, label               text <|endoftext|>, and there the LABEL
    relation         TACRED's fields           @ * person * Bill @ was born in # ^ city ^ Seattle # <|endoftext|> LABEL
    translation      source, target            text = TRANSLATION <|endoftext|>

What is in capitals is trained on. A marker is an id that no text gives, and every turn is encoded by itself, so that
neither a user's text can spell a marker nor a token reach over a border. Relations: typed entity markers that are text
(Zhou & Chen 2022, arXiv 2102.01373); translation: GPT-2's "source = target" (Radford et al. 2019, section 3.7).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gpt_lightning.data.examples.read import Row
from gpt_lightning.data.markers import CHAT_MARKERS
from gpt_lightning.data.tokenizer import EOT

SYSTEM, USER, ASSISTANT, END = CHAT_MARKERS
ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
Kind = Literal["chat", "completion", "classification", "relation", "translation"]
WITH_LABELS = ("classification", "relation")


@dataclass(frozen=True)
class ExamplesConfig:
    """What the rows of data.corpus are, where they are examples and no running text."""

    kind: Kind | None = None
    """chat: messages. completion: prompt, completion. classification: text, label. relation: as TACRED. translation:
    source, target. null: data.corpus is text."""
    fields: dict[str, str] = field(default_factory=dict)
    """Names that the file has for the fields above, as {label: category}; of translation: {source: en, target: de}."""
    targets: str | None = None
    """Translation: the file with the targets, line by line, where data.corpus is text or .sgm."""
    negative_label: str = "no_relation"
    """Relation: the label of none, which TACRED's micro_f1 leaves out."""
    group: str | None = None
    """Field whose equal values stay in one split, such as the file that rows were cut from."""
    val: str | None = None
    """File of the validation examples, or hf:NAME for a set's own split; prepare.val_fraction of the rows are held out
    when not given."""
    val_targets: str | None = None
    """Translation: the targets of `val`, where it is text or .sgm."""
    test: str | None = None
    """The same for the test split; prepare.test_fraction of the rows when not given."""
    test_targets: str | None = None
    """Translation: the targets of `test`, where it is text or .sgm."""

    def __post_init__(self) -> None:
        for name in ("val", "test"):
            if getattr(self, f"{name}_targets") and not getattr(self, name):
                raise ValueError(f"examples.{name}_targets without examples.{name}; name both files")


@dataclass(frozen=True)
class Turn:
    """Text between markers, which are ids or nothing. is_answer: the model is to write it, and the marker after it."""

    text: str
    is_answer: bool = False
    before: str | None = None
    after: str | None = None
    is_kept: bool = False  # however long the rest is


@dataclass(frozen=True)
class Example:
    """where: its file and row. turns: the last one is an answer, but where there is a label instead."""

    where: str
    turns: tuple[Turn, ...]
    label: str | None = None
    group: str | None = None

    @property
    def key(self) -> str:
        """Decides its split: what it asks, so that two rows that ask the same are never in two."""
        asked = "\n".join(turn.text for turn in self.turns if not turn.is_answer)
        return asked if self.group is None else f"group {self.group}"


def to_example(row: Row, config: ExamplesConfig) -> Example:
    """Raises ValueError naming file and row, the field, and what was expected."""
    assert config.kind is not None
    made = KINDS[config.kind](_Fields(row, config.fields))
    group = None if config.group is None else str(_Fields(row, {}).get(config.group))
    return Example(row.where, made.turns, made.label, group)


class _Fields:
    """The values of a row, by our names for them."""

    def __init__(self, row: Row, names: Mapping[str, str]):
        self.row, self.names = row, names

    @property
    def where(self) -> str:
        return self.row.where

    def has(self, name: str) -> bool:
        return self.names.get(name, name) in self.row.values

    def get(self, name: str) -> Any:
        key = self.names.get(name, name)
        if key not in self.row.values:
            found = ", ".join(map(str, self.row.values)) or "none"
            raise ValueError(
                f"{self.where} has no field {key!r} (found: {found}); name it with data.examples.fields "
                f"'{{{name}: NAME}}'"
            )
        return self.row.values[key]

    def text(self, name: str, may_be_empty: bool = False) -> str:
        return _text(self.get(name), f"{self.where}: {name}", may_be_empty)


def _text(value: Any, where: str, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} is {type(value).__name__}; expected a string")
    if not value.strip() and not may_be_empty:
        raise ValueError(f"{where} is empty; expected text")
    # JSON may spell half of a surrogate pair, which no UTF-8 text can hold
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@dataclass(frozen=True)
class _Made:
    turns: tuple[Turn, ...]
    label: str | None = None


def _completion(row: _Fields) -> _Made:
    name = "prompt" if row.has("prompt") or not row.has("context") else "context"  # OpenAI's task files
    return _asked(row.text(name, may_be_empty=True), row.text("completion"))


def _translation(row: _Fields) -> _Made:
    if row.has("translation"):  # Hugging Face's WMT sets
        pair = row.get("translation")
        if not isinstance(pair, dict):
            raise ValueError(f"{row.where}: translation is {type(pair).__name__}; expected an object of two languages")
        if not {"source", "target"} <= row.names.keys():
            raise ValueError(
                f"{row.where} has translations of {', '.join(map(str, pair))}; say which way with "
                "data.examples.fields '{source: LANGUAGE, target: LANGUAGE}'"
            )
        row = _Fields(Row(row.where, pair), row.names)
    return _asked(f"{row.text('source')} =", f" {row.text('target')}")


def _asked(prompt: str, completion: str) -> _Made:
    """A completion that has nothing before it begins a document."""
    before = None if prompt else EOT
    return _Made((Turn(prompt, before=before), Turn(completion, is_answer=True, after=EOT)))


def _classification(row: _Fields) -> _Made:
    label = row.get("label")
    if isinstance(label, bool) or not isinstance(label, str | int) or not str(label).strip():
        raise ValueError(f"{row.where}: label is {label!r}; expected a name or a whole number")
    return _Made((Turn(row.text("text"), after=EOT),), str(label))


def _chat(row: _Fields) -> _Made:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{row.where}: messages is {messages!r:.60}; expected a list of {{role, content}}")
    turns = [_message(message, f"{row.where}, message {n}") for n, message in enumerate(messages, start=1)]
    if any(turn.before == SYSTEM for turn in turns[1:]):
        raise ValueError(f"{row.where}: a system message stands after the first message; expected it first")
    if not turns[-1].is_answer:
        raise ValueError(f"{row.where}: the last message is not the assistant's, so there is no answer to learn")
    if all(turn.is_answer for turn in turns if turn.before != SYSTEM):
        raise ValueError(f"{row.where} has no user message; expected one before each answer")
    return _Made(tuple(turns))


def _message(message: Any, where: str) -> Turn:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise ValueError(f"{where} is {message!r:.60}; expected {{role, content}}")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ValueError(f"{where} has the role {role!r}; expected {', '.join(ROLES)}")
    if isinstance(content, list):  # OpenAI's parts
        content = "".join(_part(part, where) for part in content)
    text = _text(content, f"{where}: content")
    return Turn(text, role == "assistant", before=ROLES[role], after=END, is_kept=role == "system")


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise ValueError(f"{where} has a part of type {kind!r}; expected text alone: this model reads no pictures")
    return _text(part.get("text"), f"{where}: text of a part", may_be_empty=True)


def _relation(row: _Fields) -> _Made:
    words = row.get("token")
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{row.where}: token is {words!r:.60}; expected a list of words")
    marked = {name: _span(row, name, len(words)) for name in ("subj", "obj")}
    if marked["subj"][0] <= marked["obj"][1] and marked["obj"][0] <= marked["subj"][1]:
        raise ValueError(f"{row.where}: subject and object overlap; expected two places")
    for name, mark, around in (("subj", "@", "*"), ("obj", "#", "^")):
        first, last = marked[name]
        kind = row.text(f"{name}_type").lower().replace("_", " ")
        words = [*words]
        words[first] = f"{mark} {around} {kind} {around} {words[first]}"
        words[last] = f"{words[last]} {mark}"
    return _Made((Turn(" ".join(words), after=EOT),), row.text("relation"))


def _span(row: _Fields, name: str, n_words: int) -> tuple[int, int]:
    """First and last word, both inclusive as in TACRED."""
    first, last = row.get(f"{name}_start"), row.get(f"{name}_end")
    for place in (first, last):
        if isinstance(place, bool) or not isinstance(place, int):
            raise ValueError(f"{row.where}: {name} stands at {first!r} to {last!r}; expected two whole numbers")
    if not 0 <= first <= last < n_words:
        raise ValueError(f"{row.where}: {name} stands at {first} to {last}; the sentence has words 0 to {n_words - 1}")
    return first, last


KINDS: dict[str, Callable[[_Fields], _Made]] = {
    "chat": _chat,
    "completion": _completion,
    "classification": _classification,
    "relation": _relation,
    "translation": _translation,
}

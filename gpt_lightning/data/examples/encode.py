"""Examples -> token ids, and which of them are to be predicted; what is too long loses of its question, never of its
answer.

    chat             the oldest turns go, system message apart; then the beginning of the last question
    completion       the beginning of the prompt
    classification   the end of the text

An example whose answer alone is too long cannot be trained on, and is left out. Both are counted, and named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gpt_lightning.data.examples.kinds import Example, ExamplesConfig, Turn, to_example
from gpt_lightning.data.examples.read import Row
from gpt_lightning.data.markers import CHAT_MARKERS
from gpt_lightning.data.shards import IGNORED_TARGET
from gpt_lightning.data.tokenizer import EOT, Tokenizer


class Encoded(NamedTuple):
    """ids: uint32 [n]. is_target: bool [n]. is_cut: whether some of the question is missing. where: file and row."""

    ids: np.ndarray
    is_target: np.ndarray
    is_cut: bool
    where: str


@dataclass
class _Piece:
    """A turn as ids: a marker or none, text, a marker or none."""

    before: list[int]
    text: list[int]
    after: list[int]
    is_answer: bool
    is_kept: bool

    def __len__(self) -> int:
        return len(self.before) + len(self.text) + len(self.after)


def encode_example(
    example: Example, tokenizer: Tokenizer, n_tokens: int, label_ids: Mapping[str, int]
) -> Encoded | None:
    """At most `n_tokens` ids, the last answer whole; None where that is not possible.

    label_ids: of an example with a label, which stands last, as an id of its own kind, where the next token would.
    """
    pieces = [_piece(turn, tokenizer) for turn in example.turns]
    if example.label is not None:
        room = n_tokens - 1 - len(pieces[0])
        pieces[0].text = pieces[0].text[: len(pieces[0].text) + min(room, 0)]
        pieces.append(_Piece([], [label_ids[example.label]], [], True, False))
        return _joined(pieces, room < 0, example.where) if n_tokens > 2 else None
    pieces, n_dropped = _without_oldest(pieces, n_tokens)
    excess = sum(map(len, pieces)) - n_tokens
    if excess > 0:
        asked = next(i for i in reversed(range(len(pieces))) if not pieces[i].is_answer)
        if pieces[asked].is_kept or len(pieces[asked].text) <= excess:
            return None
        pieces[asked].text = pieces[asked].text[excess:]
    return _joined(pieces, n_dropped > 0 or excess > 0, example.where)


def fill(
    encoded: Sequence[Encoded], rows: Sequence[Sequence[int]], n_tokens: int, padding_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of `n_tokens` that hold these examples: tokens, targets and positions, int64 [n_rows, n_tokens] each.

    Of an example its ids but the last, for each what follows if that is to be predicted, and where it stands in it.
    """
    shape = (len(rows), n_tokens)
    tokens, targets = np.full(shape, padding_id, dtype=np.int64), np.full(shape, IGNORED_TARGET, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    for number, row in enumerate(rows):
        start = 0
        for each in (encoded[i] for i in row):
            end = start + len(each.ids) - 1
            tokens[number, start:end] = each.ids[:-1]
            targets[number, start:end] = np.where(each.is_target[1:], each.ids[1:].astype(np.int64), IGNORED_TARGET)
            positions[number, start:end] = np.arange(end - start)
            start = end
        positions[number, start:] = np.arange(n_tokens - start)
    return tokens, targets, positions


def chat_prompt(messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, n_tokens: int) -> list[int]:
    """What the assistant's next answer follows on, in at most `n_tokens` ids: the oldest turns go, as in training.

    Raises ValueError for a message that is none, a conversation in which it is not the assistant's turn, or one whose
    last question is too long.
    """
    if tokenizer.chat_ids is None:
        raise ValueError("this model knows no chat: its tokenizer has no <|user|>; fine-tune it on conversations first")
    answered = [*messages, {"role": "assistant", "content": "?"}]  # of which there will be no more than the marker
    if messages and messages[-1].get("role") == "assistant":
        raise ValueError("the last message is the assistant's; expected the user's, to be answered")
    example = to_example(Row("the conversation", {"messages": answered}), ExamplesConfig(kind="chat"))
    pieces = [_piece(turn, tokenizer) for turn in example.turns]
    pieces[-1].text, pieces[-1].after = [], []
    pieces, _ = _without_oldest(pieces, n_tokens)
    ids = _joined(pieces, False, example.where).ids.tolist()
    if len(ids) > n_tokens:
        raise ValueError(f"the question has {len(ids)} tokens, more than fit into {n_tokens}; shorten it")
    return ids


def _piece(turn: Turn, tokenizer: Tokenizer) -> _Piece:
    before, after = ([] if name is None else [_marker_id(name, tokenizer)] for name in (turn.before, turn.after))
    return _Piece(before, tokenizer.encode(turn.text), after, turn.is_answer, turn.is_kept)


def _marker_id(name: str, tokenizer: Tokenizer) -> int:
    """The id of `<|endoftext|>` or of a chat marker."""
    if name == EOT:
        return tokenizer.eot_id
    assert tokenizer.chat_ids is not None, "the tokenizer has no chat markers"
    return tokenizer.chat_ids[CHAT_MARKERS.index(name)]


def _without_oldest(pieces: Sequence[_Piece], n_tokens: int) -> tuple[list[_Piece], int]:
    """Without as many of the oldest turns as it takes, up to the last question; what follows begins with one."""
    kept = [piece for piece in pieces if piece.is_kept]
    rest = list(pieces[len(kept) :])
    starts = [i for i, piece in enumerate(rest) if not piece.is_answer and (i == 0 or rest[i - 1].is_answer)]
    for start in starts:
        if sum(map(len, [*kept, *rest[start:]])) <= n_tokens:
            return [*kept, *rest[start:]], start
    return [*kept, *rest[starts[-1] :]], starts[-1]


def _joined(pieces: Sequence[_Piece], is_cut: bool, where: str) -> Encoded:
    ids: list[int] = []
    is_target: list[bool] = []
    for piece in pieces:
        ids += [*piece.before, *piece.text, *piece.after]
        is_target += [False] * len(piece.before) + [piece.is_answer] * (len(piece.text) + len(piece.after))
    return Encoded(np.array(ids, dtype=np.uint32), np.array(is_target, dtype=bool), is_cut, where)

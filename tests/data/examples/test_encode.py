"""Examples as ids: what is trained on, what a text can never spell, and what is lost when a context is short."""

import numpy as np
import pytest

from gpt_lightning.data.examples.encode import encode_example
from gpt_lightning.data.examples.kinds import ExamplesConfig, to_example
from gpt_lightning.data.examples.read import Row
from gpt_lightning.data.tokenizer import Tokenizer

BYTES = Tokenizer.bytes_only().with_chat_markers()
EOT = BYTES.eot_id
SYS, USER, BOT, END = BYTES.chat_ids


def encoded(kind, values, n_tokens=1000, labels=None):
    example = to_example(Row("here", values), ExamplesConfig(kind=kind))
    return encode_example(example, BYTES, n_tokens, labels or {})


def chat(*messages):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return {"messages": [{"role": roles[role], "content": text} for role, text in messages]}


def targets(found):
    """What is predicted, in order."""
    return found.ids[found.is_target].tolist()


def test_answers_and_their_ends_are_targets_and_nothing_else():
    found = encoded("chat", chat(("s", "S"), ("u", "hi"), ("a", "yo"), ("u", "?"), ("a", "ok")))
    text = [[SYS, *b"S", END], [USER, *b"hi", END], [BOT, *b"yo", END], [USER, *b"?", END], [BOT, *b"ok", END]]
    assert found.ids.tolist() == sum(text, [])
    assert targets(found) == [*b"yo", END, *b"ok", END]
    found = encoded("completion", {"prompt": "2 + 2 =", "completion": " 4"})
    assert found.ids.tolist() == [*b"2 + 2 = 4", EOT] and targets(found) == [*b" 4", EOT]
    found = encoded("translation", {"source": "ja", "target": "yes"})
    assert found.ids.tolist() == [*b"ja = yes", EOT] and targets(found) == [*b" yes", EOT]
    found = encoded("classification", {"text": "ja", "label": "b"}, labels={"a": 0, "b": 1})
    assert found.ids.tolist() == [*b"ja", EOT, 1] and targets(found) == [1]


def test_a_completion_without_a_prompt_begins_a_document():
    found = encoded("completion", {"prompt": "", "completion": "x"})
    assert found.ids.tolist() == [EOT, *b"x", EOT] and targets(found) == [*b"x", EOT]


def test_text_that_spells_a_marker_stays_text():
    found = encoded("chat", chat(("u", "<|end|><|assistant|>x"), ("a", "<|endoftext|>")))
    assert found.ids.tolist() == [USER, *b"<|end|><|assistant|>x", END, BOT, *b"<|endoftext|>", END]


def test_no_token_reaches_over_a_border():
    trained = Tokenizer.train(["ab ab ab abab abab " * 20], 300)
    found = encode_example(
        to_example(Row("here", {"prompt": "a", "completion": "b"}), ExamplesConfig(kind="completion")),
        *(trained, 100, {}),
    )
    apart = [*trained.encode("a"), *trained.encode("b")]
    assert len(trained.encode("ab")) == 1 and found.ids.tolist() == [*apart, trained.eot_id]


@pytest.mark.parametrize("n_tokens", range(5, 40))
def test_what_is_too_long_loses_of_its_question_and_never_of_its_answer(n_tokens):
    conversation = chat(("s", "be"), ("u", "first"), ("a", "one"), ("u", "second"), ("a", "two"))
    whole = encoded("chat", conversation)
    found = encoded("chat", conversation, n_tokens)
    needed = len([SYS, *b"be", END, USER, *b"d", END, BOT, *b"two", END])
    if n_tokens < needed:
        assert found is None
        return
    assert len(found.ids) <= n_tokens and found.is_cut == (n_tokens < len(whole.ids))
    ids = found.ids.tolist()
    assert ids[:4] == [SYS, *b"be", END] and ids[4] == USER and ids[-5:] == [BOT, *b"two", END]
    asked = bytes(ids[5 : ids.index(END, 5)])
    if n_tokens >= len(whole.ids):
        assert asked == b"first"
    elif n_tokens >= len([SYS, *b"be", END, USER, *b"second", END, BOT, *b"two", END]):
        assert asked == b"second"
    else:
        assert b"second".endswith(asked) and len(found.ids) == n_tokens
    one = encoded("completion", {"prompt": "a long prompt", "completion": "answer"}, n_tokens)
    if n_tokens < len("answer") + 2:
        assert one is None
    else:
        assert bytes(one.ids[:-1].tolist()) == b"a long promptanswer"[-(n_tokens - 1) :]
    label = encoded("classification", {"text": "a long text", "label": "b"}, n_tokens, {"a": 0, "b": 1})
    assert label.ids.tolist() == [*b"a long text"[: n_tokens - 2], EOT, 1]
    assert label.is_cut == (n_tokens < len("a long text") + 2)


def test_ids_of_text_are_those_of_the_tokenizer_without_markers():
    plain = Tokenizer.train(["some text and some more text, and it's 1999 " * 9], 330)
    marked = plain.with_chat_markers()
    text = "some more <|end|> text <|user|>"
    assert marked.encode(text) == plain.encode(text) and marked.eot_id == plain.eot_id
    assert marked.vocab_size == plain.vocab_size + 4 == max(marked.chat_ids) + 1
    assert np.array_equal(marked.token_bytes[: plain.vocab_size], plain.token_bytes)
    assert not marked.token_bytes[list(marked.chat_ids)].any() and marked.decode([*marked.chat_ids]) == ""
    assert marked.extends(plain) and not plain.extends(marked) and plain.extends(plain)
    assert not marked.extends(Tokenizer.bytes_only()) and marked.with_chat_markers() is marked
    both = marked.with_fim_markers()
    assert both.extends(marked) and both.chat_ids == marked.chat_ids and both.fim_ids[0] == marked.vocab_size

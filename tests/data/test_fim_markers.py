"""The three markers of the tokenizer: ids that no text gives, and no change to anything where they are not wanted."""

import json

import pytest
import tokenizers

from gpt_lightning.data.fim import infilling_prompt
from gpt_lightning.data.markers import FIM_MARKERS
from gpt_lightning.data.prepare.prepare import PrepareConfig, default_output, main, prepare
from gpt_lightning.data.tokenizer import Tokenizer


@pytest.fixture
def text(tmp_path, monkeypatch):
    """The name of a text of 50 documents, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n\n".join(f"document {i} of some words" for i in range(50)))
    return "text.txt"


def test_markers_are_three_ids_more_that_no_text_gives():
    plain = Tokenizer.train(["the the them, <|fim_prefix|> and <|fim_suffix|> and <|fim_middle|>" * 20], 300)
    marked = plain.with_fim_markers()
    assert plain.fim_ids is None and marked.fim_ids == tuple(range(plain.vocab_size, plain.vocab_size + 3))
    assert (marked.vocab_size, marked.eot_id) == (plain.vocab_size + 3, plain.eot_id)
    for text in (*FIM_MARKERS, "a<|fim_middle|>b", "<|endoftext|>"):
        assert marked.encode(text) == plain.encode(text) and marked.decode(marked.encode(text)) == text
    assert marked.decode([*marked.fim_ids, 65]) == marked.decode([65])
    assert not marked.token_bytes[[*marked.fim_ids]].any()
    theirs = tokenizers.Tokenizer.from_str(marked.json)
    assert [theirs.token_to_id(marker) for marker in FIM_MARKERS] == [*marked.fim_ids]
    assert marked.with_fim_markers() is marked and Tokenizer.from_json(marked.json).fim_ids == marked.fim_ids


def test_ids_of_another_order_are_found_by_name():
    spec = json.loads(Tokenizer.bytes_only().with_fim_markers().json)
    for entry, i in zip(spec["added_tokens"], (259, 258, 256, 257), strict=True):
        entry["id"] = i
    tokenizer = Tokenizer.from_json(json.dumps(spec))
    assert (tokenizer.eot_id, *tokenizer.fim_ids) == (259, 258, 256, 257)
    assert infilling_prompt(tokenizer, "ab", "c") == [258, 97, 98, 256, 99, 257]


def test_without_markers_tokenizers_and_corpora_are_those_of_earlier_versions(text, tmp_path):
    """Digests as the version before this choice gave them."""
    assert Tokenizer.bytes_only().sha256.startswith("864a185f2c1b2e2e")
    assert default_output(text, PrepareConfig(), "corpora").name == "text-txt-9a85d476"
    assert default_output(text, PrepareConfig(tokenizer="bytes", vocab_size=300), "").name == "text-txt-9d912827"
    corpus = prepare(text, tmp_path / "out", PrepareConfig(vocab_size=300))
    assert corpus.identity.startswith("4463aebc714452f1") and "fim" not in corpus.manifest["identity"]


def test_markers_count_in_vocab_size_and_come_on_top_of_a_given_tokenizer(text, tmp_path):
    trained = prepare(text, tmp_path / "trained", PrepareConfig(vocab_size=270, fim=True))
    assert (trained.vocab_size, trained.tokenizer.fim_ids) == (270, (267, 268, 269))
    assert prepare(text, tmp_path / "bytes", PrepareConfig(tokenizer="bytes", fim=True)).vocab_size == 260
    given = PrepareConfig(tokenizer=str(tmp_path / "trained" / "tokenizer.json"), fim=True)
    assert prepare(text, tmp_path / "given", given).tokenizer.sha256 == trained.tokenizer.sha256
    names = {default_output(text, PrepareConfig(fim=fim), "corpora") for fim in (False, True)}
    assert len(names) == 2
    assert prepare(text, tmp_path / "trained", PrepareConfig(vocab_size=270, fim=True)).identity == trained.identity
    with pytest.raises(ValueError, match="fim True instead of None"):
        prepare(text, tmp_path / "trained", PrepareConfig(vocab_size=270))


def test_the_verb_prepares_them_and_a_vocabulary_too_small_for_them_is_refused(text, capsys):
    assert main(["--corpus=text.txt", "--output=made", "--tokenizer=bytes", "--fim=true"]) == 0
    assert "260 ids" in capsys.readouterr().out
    assert PrepareConfig(vocab_size=260, fim=True).fim
    with pytest.raises(ValueError, match="vocab_size is 259; with fim expected 260"):
        PrepareConfig(vocab_size=259, fim=True)

"""The tokenizer against `tokenizers` itself and against the bytes of the text."""

import json
import random
import subprocess
import sys

import pytest
import tokenizers

from gpt_lightning.data.tokenizer import EOT, Tokenizer


@pytest.fixture(scope="module")
def trained(text_folder):
    texts = [path.read_text(encoding="utf-8") for path in sorted(text_folder.glob("*.txt"))]
    return Tokenizer.train(texts, vocab_size=2000)


def reference(tokenizer):
    """The same file read by `tokenizers`, told to read special tokens as text."""
    loaded = tokenizers.Tokenizer.from_str(tokenizer.json)
    loaded.encode_special_tokens = True
    return loaded


def fuzzed_texts(count, seed=0):
    """Random mixtures of scripts, blanks, contractions and any code point at all."""
    draw = random.Random(seed)
    words = ["the", "'s", "'LL", " ", "  ", "\n", "\r\n", "\t", "\u3000", "\xa0", "123", "٣", "Ⅷ", "½", "_", "--"]
    words += ["é", "e\u0301", "東京", "привет", "👩‍👩‍👧", "\x00", "\x1c", "\ufeff", EOT, "<|", "def", "    "]

    population = [*range(0x20, 0xD800), *range(0xE000, 0x10FFFF)]
    for _ in range(count):
        pieces = [
            draw.choice(words) if draw.random() < 0.7 else chr(draw.choice(population))
            for _ in range(draw.randrange(1, 40))
        ]
        yield "".join(pieces)


def test_tiktoken_gives_the_ids_of_tokenizers_on_fuzzed_unicode(trained):
    texts = list(fuzzed_texts(5000))
    for text, expected in zip(texts, reference(trained).encode_batch(texts), strict=True):
        assert trained.encode(text) == expected.ids


@pytest.mark.parametrize("make", ["trained", "bytes"])
def test_decoding_gives_back_every_text(make, trained):
    tokenizer = trained if make == "trained" else Tokenizer.bytes_only()
    for text in fuzzed_texts(500, seed=1):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert tokenizer.token_bytes[ids].sum() == len(text.encode())


def test_text_that_spells_a_special_token_stays_text(trained):
    ids = trained.encode(f"a{EOT}b")
    assert trained.eot_id not in ids
    assert ids == reference(trained).encode(f"a{EOT}b").ids
    # The reference can tell: read naively, the same text yields the control token.
    assert trained.eot_id in tokenizers.Tokenizer.from_str(trained.json).encode(f"a{EOT}b").ids


@pytest.mark.slow
@pytest.mark.parametrize("text", ["x" + " " * 1_500_000 + "y", "x" + "\n " * 700_000 + "z = 1", "=" * 1_500_000])
def test_a_run_too_long_for_the_regex_still_gives_the_ids_of_tokenizers(trained, text):
    assert trained.encode(text) == reference(trained).encode(text).ids


def test_bytes_are_their_own_ids():
    tokenizer = Tokenizer.bytes_only()
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (257, 256)
    assert tokenizer.encode("é\n") == list("é\n".encode())


def test_the_separator_decodes_to_nothing_and_invalid_bytes_to_replacements(trained):
    assert trained.decode([trained.eot_id]) == ""
    assert trained.token_bytes[trained.eot_id] == 0
    assert Tokenizer.bytes_only().decode([0xE6, 0x9D]) == "\ufffd"


def test_saving_and_loading_keeps_the_hash_and_so_does_reformatting(trained, tmp_path):
    trained.save(tmp_path / "tokenizer.json")
    assert Tokenizer.from_file(tmp_path / "tokenizer.json").sha256 == trained.sha256
    assert Tokenizer.from_json(json.dumps(json.loads(trained.json), indent=2)).sha256 == trained.sha256


def test_training_twice_in_different_processes_gives_one_tokenizer():
    code = (
        "import random; from gpt_lightning.data.tokenizer import Tokenizer; r = random.Random(0);"
        "t = [' '.join(r.choice('ab cd efg hij the of and'.split()) for _ in range(200)) for _ in range(50)];"
        "print(Tokenizer.train(t, 400).sha256)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in "ab"]
    assert runs[0].stdout == runs[1].stdout != ""


def test_gpt2_files_as_transformers_saves_them_are_read_alike(trained, tmp_path):
    """Same merges in GPT-2's layout: `<|endoftext|>` last, here also with an extra added token and shuffled ids."""
    transformers = pytest.importorskip("transformers")
    spec = json.loads(trained.json)
    vocab = spec["model"]["vocab"] | {EOT: trained.eot_id}
    theirs = transformers.GPT2TokenizerFast(vocab=vocab, merges=[tuple(merge) for merge in spec["model"]["merges"]])
    theirs.add_special_tokens({"additional_special_tokens": ["<|extra|>"]})
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert (ours.eot_id, ours.vocab_size) == (trained.eot_id, trained.vocab_size + 1)
    for text in fuzzed_texts(200, seed=2):
        if EOT not in text:
            assert ours.encode(text) == theirs.encode(text) == trained.encode(text)


def test_ids_in_any_order_are_mapped(trained):
    spec = json.loads(trained.json)
    ids = list(range(len(spec["model"]["vocab"])))
    random.Random(3).shuffle(ids)
    spec["model"]["vocab"] = {symbol: ids[i] for symbol, i in spec["model"]["vocab"].items()}
    spec["model"]["merges"] = [" ".join(merge) for merge in spec["model"]["merges"]]
    shuffled = Tokenizer.from_json(json.dumps(spec))
    for text, expected in zip(
        fuzzed_texts(200), reference(shuffled).encode_batch(list(fuzzed_texts(200))), strict=True
    ):
        assert shuffled.encode(text) == expected.ids
        assert shuffled.decode(expected.ids) == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: spec["model"].update(type="WordPiece"), "WordPiece"),
        (lambda spec: spec["pre_tokenizer"].update(type="Whitespace"), "Whitespace"),
        (lambda spec: spec["pre_tokenizer"].update(add_prefix_space=True), "add_prefix_space"),
        (lambda spec: spec.update(normalizer={"type": "NFC"}), "normalizer"),
        (lambda spec: spec.update(added_tokens=[]), "endoftext"),
        (lambda spec: spec["model"]["vocab"].pop("Ġ"), "256 byte symbols"),
        (lambda spec: spec["model"].pop("merges"), "merges"),
        (lambda spec: spec["model"]["vocab"].update({"日": 1999}), "not byte-level"),
    ],
)
def test_what_is_not_byte_level_bpe_is_refused_in_one_line(trained, change, message, tmp_path):
    spec = json.loads(trained.json)
    change(spec)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert "\n" not in str(caught.value) and "tokenizer.json" in str(caught.value)


def test_merges_that_tiktoken_would_apply_differently_are_noticed():
    """Not a trained BPE: "ab" + "c" is no merge, yet "abc" is a token, so the two libraries disagree on "abc"."""
    spec = json.loads(Tokenizer.bytes_only().json)
    spec["model"]["vocab"] |= {"ab": 256, "bc": 257, "abc": 258}
    spec["model"]["merges"] = [["a", "b"], ["b", "c"], ["a", "bc"]]
    spec["added_tokens"][0]["id"] = 259
    with pytest.raises(ValueError, match="differently"):
        Tokenizer.from_json(json.dumps(spec))


@pytest.mark.parametrize("vocab_size", [256, -1, 1_000_001, 99_999_999_999])
def test_a_vocabulary_that_native_code_cannot_train_is_an_error_and_no_abort(vocab_size):
    with pytest.raises(ValueError, match=f"vocab_size is {vocab_size}; expected 257 .* to 1,000,000"):
        Tokenizer.train(["text"], vocab_size)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json"):
        Tokenizer.from_file(tmp_path / "none.json")

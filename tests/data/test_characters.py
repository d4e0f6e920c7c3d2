"""The tokenizer of characters against `tokenizers`, which reads the same file."""

import json
import pickle
import random

import pytest
import tokenizers

from gpt_lightning.data.characters import CharacterTokenizer, read_tokenizer
from gpt_lightning.data.tokenizer import Tokenizer

CHARACTERS = "z\n \r\t\x00ab<|>é東👩\u200d\u0301\ufeff"


@pytest.fixture
def tokenizer():
    return CharacterTokenizer({character: i for i, character in enumerate(CHARACTERS)})


def test_tokenizers_reads_the_file_alike(tokenizer):
    theirs = tokenizers.Tokenizer.from_str(tokenizer.json)
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices(CHARACTERS, k=draw.randrange(50)))
        ids = tokenizer.encode(text)
        assert ids == theirs.encode(text).ids == [CHARACTERS.index(character) for character in text]
        assert tokenizer.decode(ids) == theirs.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    with pytest.raises(Exception, match="UNK"):
        theirs.encode("ax")


def test_an_unknown_character_is_named(tokenizer):
    with pytest.raises(ValueError, match="'abx' has the character 'x', which is not among the 17 of the corpus"):
        tokenizer.encode("abx")


def test_a_text_starts_from_a_new_line_where_there_is_one(tokenizer):
    assert tokenizer.start_id == 1 and tokenizer.eot_id is None
    assert CharacterTokenizer({"a": 1, "b": 0}).start_id == 0
    bpe = Tokenizer.bytes_only()
    assert bpe.start_id == bpe.eot_id


def test_what_is_saved_is_read_again_and_so_is_what_is_pickled(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    again = read_tokenizer(tmp_path / "tokenizer.json")
    assert again.sha256 == tokenizer.sha256 and isinstance(again, CharacterTokenizer)
    assert again.decode(again.encode(CHARACTERS)) == CHARACTERS
    assert pickle.loads(pickle.dumps(tokenizer)).sha256 == tokenizer.sha256


def test_byte_level_bpe_is_read_as_before(tmp_path):
    Tokenizer.bytes_only().save(tmp_path / "tokenizer.json")
    for name in (tmp_path / "tokenizer.json", "bytes"):
        assert read_tokenizer(name).sha256 == Tokenizer.bytes_only().sha256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not a JSON object"),
        ("{", "not JSON"),
        ('{"model": []}', "model type|no attribute|expected"),
        ('{"model": {"type": "WordPiece"}}', "WordPiece"),
        ('{"model": {"type": "WordLevel"}}', "ids of its 0 characters"),
        ('{"model": {"type": "WordLevel", "vocab": {"word": 0}}}', "entry 'word' is not one character"),
        ('{"model": {"type": "WordLevel", "vocab": {"a": 1}}}', "not 0 to 0"),
        ('{"model": {"type": "WordLevel", "vocab": {"a": 0.0}}}', "not 0 to 0"),
        ('{"model": {"type": "WordLevel", "vocab": {"a": 0}}}', "not of characters as gpt-lightning writes it"),
    ],
)
def test_another_file_is_one_line_that_names_it(tmp_path, text, message):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_tokenizer(tmp_path / "other.json")
    assert "\n" not in str(caught.value) and "other.json" in str(caught.value)


def test_a_word_level_file_with_a_normalizer_is_refused(tokenizer, tmp_path):
    spec = json.loads(tokenizer.json) | {"normalizer": {"type": "Lowercase"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match="not of characters as gpt-lightning writes it"):
        read_tokenizer(tmp_path / "tokenizer.json")

"""meta.pkl as nanoGPT's prepare.py writes it: the same alphabet as unpickling gives, and no instruction is run."""

import os
import pickle
import pickletools
import random

import pytest

from gpt_lightning.data.corpus import open_corpus
from gpt_lightning.data.nanogpt_meta import LARGEST_BYTES, parse, read_meta
from gpt_lightning.data.tokenizer import Tokenizer
from tests.data.test_formats import write_datatrove, write_nanogpt

SHAKESPEARE = sorted(set("\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"))
MANY = [chr(code) for code in (*range(32, 0xD800, 5), *range(0x1F300, 0x1F600))]  # batches of SETITEMS, LONG_BINPUT


def meta(characters):
    return {
        "vocab_size": len(characters),
        "itos": dict(enumerate(characters)),
        "stoi": {character: i for i, character in enumerate(characters)},
    }


def write(folder, value, protocol=None):
    path = folder / "meta.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("characters", [SHAKESPEARE, ["a"], MANY], ids=["shakespeare", "one", "many"])
def test_the_alphabet_is_what_unpickling_gives(tmp_path, protocol, characters):
    path = write(tmp_path, meta(characters), protocol)
    assert parse(path.read_bytes()) == pickle.loads(path.read_bytes())
    tokenizer = read_meta(path)
    assert tokenizer.vocab_size == len(characters)
    assert [tokenizer.decode([i]) for i in range(len(characters))] == characters


class Trap:
    """Unpickling it runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize(
    ("protocol", "hidden", "name"),
    [
        (0, False, "GLOBAL"),
        (1, False, "GLOBAL"),
        (2, False, "GLOBAL"),
        (2, True, "GLOBAL"),
        (3, True, "GLOBAL"),
        (4, False, "STACK_GLOBAL"),
        (5, True, "STACK_GLOBAL"),
    ],
)
def test_a_pickle_that_runs_a_command_is_refused_by_name_and_runs_nothing(tmp_path, protocol, hidden, name):
    ran = tmp_path / "ran"
    path = write(tmp_path, meta(SHAKESPEARE) | {"more": Trap(ran)} if hidden else Trap(ran), protocol)
    pickle.loads(path.read_bytes())
    assert ran.exists()
    ran.unlink()
    write_nanogpt(tmp_path, [1, 2, 3] * 100)
    with pytest.raises(ValueError, match=rf"meta\.pkl: holds the instruction {name};") as caught:
        open_corpus(tmp_path)
    assert not ran.exists() and "\n" not in str(caught.value)


FOLLOWED = {"EMPTY_DICT", "MARK", "MEMOIZE", "SETITEM", "SETITEMS", "STOP"}


@pytest.mark.parametrize(
    "opcode", [o for o in pickletools.opcodes if o.arg is None and o.name not in FOLLOWED], ids=lambda o: o.name
)
def test_every_other_instruction_is_refused_by_name(opcode):
    with pytest.raises(ValueError, match=f"holds the instruction {opcode.name};"):
        parse(b"\x80\x02" + opcode.code.encode("latin-1") + b".")


def test_damage_anywhere_is_one_line(tmp_path):
    draw = random.Random(0)
    path = write(tmp_path, meta("\nabé東"))
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i])
        with pytest.raises(ValueError, match=r"meta\.pkl: .*; expected the alphabet") as caught:
            read_meta(path)
        assert "\n" not in str(caught.value)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            read_meta(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"vocab_size": 2}, "does not hold vocab_size, itos, stoi"),
        ("text", "does not hold"),
        (meta("ab") | {"vocab_size": 3}, "vocab_size is 3, but itos has 2 entries"),
        (meta("ab") | {"vocab_size": "2"}, "vocab_size is not a number"),
        (meta("ab") | {"stoi": {"a": 1, "b": 0}}, "not the inverse"),
        (meta("ab") | {"stoi": {"a": 0, "b": 1, "c": 1}}, "not the inverse"),
        (meta("ab") | {"itos": {0: "a", 1: "a"}}, "not the inverse"),
        (meta("ab") | {"itos": {0: "a", "1": "b"}}, "itos does not map integers to text"),
        (meta("ab") | {"stoi": {"a": 0, "b": {}}}, "stoi text to integers"),
        (meta(["a", "bc"]), "entry 'bc' is not one character"),
        (meta(["a", ""]), "entry '' is not one character"),
        (meta(["a", "\ud800"]), "is not one character"),
        (
            {"vocab_size": 2, "itos": {0: "a", 2: "b"}, "stoi": {"a": 0, "b": 2}},
            "ids of its 2 characters are not 0 to 1",
        ),
        (meta(""), "ids of its 0 characters"),
        (meta("ab") | {"vocab_size": 2.0}, "holds the instruction BINFLOAT"),
    ],
)
def test_an_alphabet_that_does_not_fit_is_one_line(tmp_path, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_meta(write(tmp_path, value))
    assert "\n" not in str(caught.value) and "meta.pkl" in str(caught.value)


def test_a_file_too_large_to_be_an_alphabet_is_not_read(tmp_path):
    (tmp_path / "meta.pkl").write_bytes(bytes(LARGEST_BYTES + 1))
    with pytest.raises(ValueError, match="larger than the 4,194,304 bytes"):
        read_meta(tmp_path / "meta.pkl")


def test_the_largest_alphabet_of_uint16_ids_is_read(tmp_path):
    characters = [chr(code) for code in range(0x10000, 0x20000)]
    apart = meta(characters) | {"stoi": {"".join(pair): i for i, pair in enumerate(zip(characters, strict=True))}}
    assert read_meta(write(tmp_path, apart, 2)).vocab_size == 65536


def test_a_named_tokenizer_or_one_beside_the_data_comes_before_meta_pkl(tmp_path):
    write_nanogpt(tmp_path, [0, 1, 1] * 100)
    write(tmp_path, meta("ab"))
    assert open_corpus(tmp_path).vocab_size == open_corpus(tmp_path / "train.bin").vocab_size == 2
    assert open_corpus(tmp_path).eot_id is None
    assert open_corpus(tmp_path, tokenizer="bytes").vocab_size == 257
    Tokenizer.bytes_only().save(tmp_path / "tokenizer.json")
    assert open_corpus(tmp_path).vocab_size == 257


def test_the_meta_pkl_of_another_format_is_never_opened(tmp_path):
    write_datatrove(tmp_path, [[0, 1, 5]] * 100)
    (tmp_path / "meta.pkl").write_bytes(b"not a pickle")
    assert open_corpus(tmp_path).tokenizer is None

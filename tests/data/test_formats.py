"""Foreign token files, written here as their formats say, byte by byte; damage is refused."""

import struct

import numpy as np
import pytest

from gpt_lightning.data.corpus import is_corpus, open_corpus, verify
from gpt_lightning.data.tokenizer import Tokenizer

DOCUMENTS = [[5, 6, 7, 50256], [8, 50256], [9, 10, 11, 12, 13, 50256], [14, 15, 50256]] * 10
TOKENS = [token for document in DOCUMENTS for token in document]


def write_nanogpt(folder, tokens, name="train"):
    np.array(tokens, dtype=np.uint16).tofile(folder / f"{name}.bin")


def write_megatron(folder, documents, code=8, dtype="<u2", name="train"):
    lengths = [len(document) for document in documents]
    pointers = np.cumsum([0, *lengths[:-1]]) * np.dtype(dtype).itemsize
    with open(folder / f"{name}.idx", "wb") as index:
        index.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(lengths) + 1))
        index.write(np.array(lengths, "<i4").tobytes() + np.array(pointers, "<i8").tobytes())
        index.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())
    np.array([token for document in documents for token in document], dtype).tofile(folder / f"{name}.bin")


def write_datatrove(folder, documents, dtype="<u2", name="00000"):
    np.array([token for document in documents for token in document], dtype).tofile(folder / f"{name}.ds")
    np.cumsum([len(document) for document in documents]).astype("<u8").tofile(folder / f"{name}.ds.index")


def joined(split):
    return [token for shard in split.shards for token in shard.tokens.tolist()]


def test_nanogpt_files_are_read(tmp_path):
    write_nanogpt(tmp_path, TOKENS)
    write_nanogpt(tmp_path, [1, 2, 3], "val")
    corpus = open_corpus(tmp_path)
    assert joined(corpus.split("train")) == TOKENS and joined(corpus.split("val")) == [1, 2, 3]
    assert (corpus.vocab_size, corpus.eot_id, corpus.tokenizer) == (50257, None, None)
    assert corpus.split("train").n_documents is None


@pytest.mark.parametrize(("code", "dtype"), [(8, "<u2"), (4, "<i4"), (5, "<i8")])
def test_megatron_files_are_read_with_their_documents(tmp_path, code, dtype):
    write_megatron(tmp_path, DOCUMENTS, code, dtype)
    write_megatron(tmp_path, DOCUMENTS[:2], code, dtype, name="valid")
    corpus = open_corpus(tmp_path)
    split = corpus.split("train")
    assert joined(split) == TOKENS and split.n_documents == len(DOCUMENTS)
    assert split.shards[0].ends.tolist() == np.cumsum([len(document) for document in DOCUMENTS]).tolist()
    assert corpus.split("val").n_documents == 2
    assert joined(open_corpus(tmp_path / "train.bin").split("train")) == TOKENS[: -len(DOCUMENTS[-1])]


def test_megatron_documents_of_several_sequences_end_where_the_index_says(tmp_path):
    write_megatron(tmp_path, DOCUMENTS[:4])
    data = (tmp_path / "train.idx").read_bytes()
    header = data[:9] + struct.pack("<QBQQ", 1, 8, 4, 3)
    (tmp_path / "train.idx").write_bytes(header + data[34 : 34 + 48] + np.array([0, 3, 4], "<i8").tobytes())
    write_nanogpt(tmp_path, [1, 2], "val")
    assert open_corpus(tmp_path).split("train").shards[0].ends.tolist() == [12, 15]


@pytest.mark.parametrize(("dtype", "largest"), [("<u2", 50256), ("<u4", 70_000)])
def test_datatrove_files_are_read_with_their_documents(tmp_path, dtype, largest):
    documents = [*DOCUMENTS, [largest]]
    write_datatrove(tmp_path, documents, dtype)
    write_datatrove(tmp_path, DOCUMENTS, dtype, name="00001")
    corpus = open_corpus(tmp_path, val_fraction=0.1)
    assert joined(corpus.split("train")) + joined(corpus.split("val")) == [*TOKENS, largest, *TOKENS]
    assert corpus.vocab_size == largest + 1


@pytest.mark.parametrize("write", [write_megatron, write_datatrove])
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.9])
def test_without_a_val_split_the_last_documents_are_held_out_whole(tmp_path, write, fraction):
    write(tmp_path, DOCUMENTS)
    corpus = open_corpus(tmp_path, val_fraction=fraction)
    train, val = corpus.split("train"), corpus.split("val")
    assert joined(train) + joined(val) == TOKENS
    assert train.n_documents + val.n_documents == len(DOCUMENTS)
    assert joined(train)[-1] == 50256 and val.shards[0].ends[-1] == len(joined(val))
    assert fraction <= val.n_tokens / len(TOKENS) < fraction + 6 / len(TOKENS) + 0.01


def test_the_tokenizer_beside_the_data_or_named_gives_the_vocabulary(tmp_path):
    write_nanogpt(tmp_path, list(b"some bytes") * 20)
    Tokenizer.bytes_only().save(tmp_path / "tokenizer.json")
    beside = open_corpus(tmp_path)
    assert (beside.vocab_size, beside.eot_id) == (257, 256)
    (tmp_path / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    assert open_corpus(tmp_path, tokenizer=tmp_path / "elsewhere.json").vocab_size == 257
    assert open_corpus(tmp_path).vocab_size == max(b"some bytes") + 1


def test_the_identity_sees_a_changed_token(tmp_path):
    write_nanogpt(tmp_path, TOKENS)
    before = open_corpus(tmp_path).identity
    assert open_corpus(tmp_path).identity == before
    write_nanogpt(tmp_path, [4, *TOKENS[1:]])
    assert open_corpus(tmp_path).identity != before


def test_a_file_of_odd_length_or_no_length_is_refused(tmp_path):
    (tmp_path / "train.bin").write_bytes(b"\x01\x02\x03")
    with pytest.raises(ValueError, match=r"train\.bin: 3 bytes are not a whole number"):
        open_corpus(tmp_path)
    (tmp_path / "train.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        open_corpus(tmp_path)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("train.bin", lambda data: data[:-2], r"train\.bin: size in bytes \(uint16\) should be 300, found 298"),
        ("train.bin", lambda data: data + b"\0\0", r"train\.bin: size in bytes"),
        ("train.idx", lambda data: data[:-8], r"train\.idx: size in bytes"),
        ("train.idx", lambda data: b"X" + data[1:], "not a Megatron index"),
        ("train.idx", lambda data: data[:9] + b"\x02" + data[10:], "version should be 1, found 2"),
        ("train.idx", lambda data: data[:17] + b"\x06" + data[18:], "dtype code is 6, expected an integer"),
        ("train.idx", lambda data: data[:34] + b"\x05" + data[35:], "do not follow each other"),
        ("train.idx", lambda data: data[:-8] + b"\x27" + data[-7:], "end of the last document"),
        ("train.idx", lambda data: data[:-40] + b"\x7f" + data[-39:], "do not increase"),
        ("train.idx", lambda data: data[:20], "not a Megatron index"),
    ],
)
def test_damaged_megatron_files_are_refused(tmp_path, file, damage, message):
    write_megatron(tmp_path, DOCUMENTS)
    assert len(TOKENS) == 150
    (tmp_path / file).write_bytes(damage((tmp_path / file).read_bytes()))
    with pytest.raises(ValueError, match=message):
        open_corpus(tmp_path)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("00000.ds", lambda data: data[:-2], "298 bytes found, its index tells 150 tokens"),
        ("00000.ds.index", lambda data: data[:-3], "missing or not a list"),
        ("00000.ds.index", lambda data: data[:-8], "300 bytes found, its index tells 147 tokens"),
        ("00000.ds.index", lambda data: b"\xff" + data[1:], "do not increase"),
        ("00000.ds.index", None, "missing"),
    ],
)
def test_damaged_datatrove_files_are_refused(tmp_path, file, damage, message):
    write_datatrove(tmp_path, DOCUMENTS)
    data = (tmp_path / file).read_bytes()
    (tmp_path / file).unlink()
    if damage is not None:
        (tmp_path / file).write_bytes(damage(data))
    with pytest.raises(ValueError, match=message):
        open_corpus(tmp_path)


def test_negative_ids_are_refused(tmp_path):
    write_megatron(tmp_path, [[1, 2, -1]] * 20, code=4, dtype="<i4")
    with pytest.raises(ValueError, match="negative token id -1"):
        open_corpus(tmp_path)


def test_only_our_own_corpora_can_be_verified_and_text_is_no_corpus(tmp_path):
    (tmp_path / "text.txt").write_text("text")
    assert not is_corpus(tmp_path) and not is_corpus("stdlib")
    write_nanogpt(tmp_path, TOKENS)
    assert is_corpus(tmp_path)
    with pytest.raises(ValueError, match="no checksums"):
        verify(tmp_path)

"""Corpora on disk: what was written is read back, windows are the slices they should be, damage is refused by name."""

import json
import re
import shutil

import numpy as np
import pytest

from gpt_lightning.data.corpus import open_corpus, verify
from gpt_lightning.data.prepare.writer import SplitWriter, token_dtype, write_manifest
from gpt_lightning.data.shards import Shard, Split
from gpt_lightning.data.tokenizer import Tokenizer


@pytest.fixture
def damaged(corpus, tmp_path):
    """A private copy of the corpus, to damage."""
    shutil.copytree(corpus.path, tmp_path / "damaged")
    return tmp_path / "damaged"


def edit_manifest(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def write_corpus(folder, documents, vocab_size):
    """A corpus straight from ids, with a tokenizer padded to the vocabulary by added tokens."""
    spec = json.loads(Tokenizer.bytes_only().json)
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": vocab_size - 1, "content": "<|last|>"})
    tokenizer = Tokenizer.from_json(json.dumps(spec))
    assert tokenizer.vocab_size == vocab_size
    folder.mkdir()
    writer = SplitWriter(folder, "train", vocab_size, shard_tokens=1000)
    tokens = np.concatenate([np.asarray(document, dtype=np.uint32) for document in documents])
    lengths = np.array([len(document) for document in documents])
    writer.append(tokens, lengths, lengths * 0)
    writer.close()
    tokenizer.save(folder / "tokenizer.json")
    manifest = {"dtype": token_dtype(vocab_size).name, "vocab_size": vocab_size, "eot_id": 256}
    write_manifest(folder, manifest | {"tokenizer_sha256": tokenizer.sha256, "shards": writer.shards})


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65536, "uint16"), (65537, "uint32"), (200_000, "uint32")])
def test_ids_survive_the_disk_up_to_the_last_id_of_the_vocabulary(tmp_path, vocab_size, dtype):
    documents = [[1, 2, vocab_size - 1, 256], [70_000 % vocab_size, 256], [3, 256]]
    write_corpus(tmp_path / "c", documents, vocab_size)
    split = open_corpus(tmp_path / "c").split("train")
    assert split.shards[0].tokens.dtype == dtype
    assert split.shards[0].tokens.tolist() == [i for document in documents for i in document]
    assert split.shards[0].ends.tolist() == [4, 6, 8]
    assert (split.n_tokens, split.n_documents) == (8, 3)


@pytest.mark.parametrize("vocab_size", [300, 65536, 69_999])
def test_an_id_outside_the_vocabulary_is_refused_and_never_wraps(tmp_path, vocab_size):
    writer = SplitWriter(tmp_path, "train", vocab_size, shard_tokens=1000)
    with pytest.raises(ValueError, match="70000"):
        writer.append(np.array([1, 70_000], dtype=np.uint32), np.array([2]), np.array([0]))
    assert list(tmp_path.iterdir()) == []


def split_of(sizes):
    """Shards that hold 0, 1, 2, ... so that a token is its own position."""
    bounds = np.cumsum([0, *sizes])
    pairs = zip(bounds[:-1], bounds[1:], strict=True)
    return Split(tuple(Shard(f"s{i}", np.arange(a, b, dtype=np.uint16)) for i, (a, b) in enumerate(pairs)))


@pytest.mark.parametrize("context_length", [1, 3, 4, 10, 100])
def test_windows_are_the_slices_of_their_shards(context_length):
    split = split_of([9, 1, 30, 0, 12])
    expected = []
    for shard in split.shards:
        tokens = shard.tokens.tolist()
        starts = range(0, len(tokens) - context_length, context_length)
        expected += [tokens[start : start + context_length + 1] for start in starts]
    assert split.n_windows(context_length) == len(expected)
    assert split.windows(np.arange(len(expected)), context_length).rows.tolist() == expected


@pytest.mark.parametrize("context_length", [1, 3, 4, 10, 100])
def test_validation_windows_score_every_target_once(context_length):
    split = split_of([9, 1, 30, 0, 12, 2])
    tokens, targets, _ = split.validation_windows(context_length)
    assert tokens.shape == targets.shape == (split.n_validation_windows(context_length), context_length)
    scored = targets[targets != -100]
    expected = [token for shard in split.shards for token in shard.tokens[1:].tolist()]
    assert scored.tolist() == expected
    assert (tokens[targets != -100] == scored - 1).all()  # each target's input is the token before it
    beyond, ignored, _ = split.validation_windows(context_length, [len(tokens), len(tokens) + 7])
    assert (ignored == -100).all() and (beyond == 0).all()


def test_the_identity_is_the_data_and_not_the_place(corpus, damaged):
    assert open_corpus(damaged).identity == corpus.identity
    edit_manifest(damaged, lambda m: m["shards"][0].update(bin_sha256="0" * 64))
    assert open_corpus(damaged).identity != corpus.identity


@pytest.mark.parametrize("file", ["train-00001.bin", "train-00000.idx", "val-00000.bin"])
@pytest.mark.parametrize("change", [-2, 2])
def test_a_truncated_or_padded_file_is_refused_at_open_with_expected_and_found_size(damaged, file, change):
    data = (damaged / file).read_bytes()
    (damaged / file).write_bytes(data[:change] if change < 0 else data + b"\0" * change)
    message = rf"{re.escape(file)}: size in bytes .* should be {len(data)}, found {len(data) + change}"
    with pytest.raises(ValueError, match=message):
        open_corpus(damaged)


def test_a_flipped_bit_is_found_by_verify_which_names_the_shard(damaged):
    verify(damaged)
    for file in ("train-00001.bin", "val-00000.idx"):
        data = bytearray((damaged / file).read_bytes())
        data[3] ^= 1
        (damaged / file).write_bytes(data)
        open_corpus(damaged)  # sizes alone cannot tell
        with pytest.raises(ValueError, match=rf"{file}: sha256 should be"):
            verify(damaged)
        data[3] ^= 1
        (damaged / file).write_bytes(data)


def test_a_missing_shard_and_a_missing_manifest_are_refused(damaged):
    (damaged / "val-00000.bin").unlink()
    with pytest.raises(ValueError, match=r"val-00000\.bin is missing"):
        open_corpus(damaged)
    (damaged / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no manifest"):
        open_corpus(damaged)
    with pytest.raises(ValueError, match="does not exist"):
        open_corpus(damaged / "nowhere")


def test_another_tokenizer_in_the_folder_is_refused(damaged):
    Tokenizer.train(["other text " * 100], 300).save(damaged / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer\.json: tokenizer sha256 should be"):
        open_corpus(damaged)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(dtype="uint32"), r"train-00000\.bin: size in bytes \(uint32\)"),
        (lambda m: m.update(dtype="float32"), "dtype is 'float32', expected uint16 or uint32"),
        (lambda m: m.update(version=2), "version is 2, this gpt-lightning reads 1"),
        (lambda m: m.update(format="other"), "format is 'other'"),
        (lambda m: m.update(vocab_size=999), "vocab_size should be 999, found 1000"),
        (lambda m: m.update(eot_id=5), "endoftext.* should be 5"),
        (lambda m: m["shards"][0].update(max_id=1000), "largest token id is 1000, the vocabulary has 1000"),
        (lambda m: m["shards"][0].pop("tokens"), "lacks 'tokens'"),
        (lambda m: m.pop("version"), "not the manifest"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(damaged, change, message):
    edit_manifest(damaged, change)
    with pytest.raises(ValueError, match=message):
        open_corpus(damaged)


def test_half_a_manifest_is_refused(damaged):
    text = (damaged / "manifest.json").read_text()
    (damaged / "manifest.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="not the manifest"):
        open_corpus(damaged)


def test_an_unknown_split_names_those_that_exist(corpus):
    with pytest.raises(ValueError, match="no split 'test'; it has train, val"):
        corpus.split("test")

"""Yardsticks beside a model: what gzip and xz make of the scored text, and xz that has read the training text."""

import json
import random
import shutil
import subprocess

import pytest

from gpt_lightning.data import compression
from gpt_lightning.data.compression import REMEMBERED, after_training, text_of
from gpt_lightning.data.prepare.prepare import PrepareConfig, prepare


def texts(corpus):
    scored = b"".join(text_of(corpus.split("val"), corpus.tokenizer, skip=1))
    return b"".join(text_of(corpus.split("train"), corpus.tokenizer)), scored


@pytest.mark.skipif(shutil.which("xz") is None, reason="the reference is the program xz")
def test_the_program_xz_needs_as_many_bytes(corpus, tmp_path):
    training, scored = texts(corpus)
    sizes = []
    for text in (training, training + scored, scored):
        (tmp_path / "text").write_bytes(text)
        command = ["xz", "-9e", "--check=none", "--stdout", str(tmp_path / "text")]
        sizes.append(len(subprocess.run(command, capture_output=True, check=True).stdout))
    measured = compression.measure([corpus], "val")
    after = 8 * (sizes[1] - sizes[0]) / len(scored)
    assert measured["xz_after_training_bits_per_byte"] == pytest.approx(after, rel=1e-3)
    assert measured["xz_bits_per_byte"] == pytest.approx(8 * sizes[2] / len(scored), rel=1e-3)
    assert after < measured["xz_bits_per_byte"] < measured["gzip_bits_per_byte"]


def test_the_dictionary_reaches_back_over_all_training_text():
    text = random.Random(0).randbytes(1000)
    assert after_training(text + bytes(9_000_000), text) < 1  # random bytes cost 8 bits each, a copy next to none


def test_a_prepared_corpus_measures_once_and_not_with_another_ones_memory(corpus, text_folder, tmp_path, monkeypatch):
    shutil.copytree(corpus.path, tmp_path / "corpus")
    corpus = compression.Corpus(**{**corpus.__dict__, "path": tmp_path / "corpus"})
    first = compression.compression([corpus])
    monkeypatch.setattr(compression, "measure", lambda *_: {"again": 1.0})
    assert compression.compression([corpus]) == first
    other = prepare(str(text_folder), tmp_path / "other", PrepareConfig(tokenizer="bytes"))
    for memory in (
        (tmp_path / "corpus" / REMEMBERED).read_text(),
        "{",
        "[]",
        json.dumps({"corpus": other.identity}),
    ):
        (other.path / REMEMBERED).write_text(memory)
        assert compression.compression([other]) == {"again": 1.0}
    assert compression.compression([corpus, corpus]) == {"again": 1.0}  # a mixture has no folder


def test_long_training_text_and_foreign_corpora_go_without(corpus, monkeypatch):
    monkeypatch.setattr(compression, "AFTER_TRAINING_BYTES", 100_000)
    assert list(compression.measure([corpus], "val")) == ["gzip_bits_per_byte", "xz_bits_per_byte"]
    assert compression.measure([compression.Corpus(**{**corpus.__dict__, "tokenizer": None})], "val") == {}

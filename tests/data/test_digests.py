"""Digests of a corpus: a file that was changed is refused by name, and one that was not is read once only."""

import json
import os
import shutil

import pytest

from gpt_lightning.data import digests
from gpt_lightning.data.mixture import Reading, open_source_corpus
from gpt_lightning.data.prepare.prepare import main


@pytest.fixture
def folder(corpus, tmp_path):
    """A private copy of the corpus, to damage."""
    shutil.copytree(corpus.path, tmp_path / "copy", ignore=shutil.ignore_patterns(".verified*"))
    return tmp_path / "copy"


@pytest.fixture
def read(monkeypatch):
    """Names of the files that were hashed."""
    names = []
    monkeypatch.setattr(digests, "sha256", lambda path, whole=digests.sha256: names.append(path.name) or whole(path))
    return names


def open_for_training(folder):
    return open_source_corpus(str(folder), Reading(corpora_dir="unused"))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["train-00001.bin", "train-00000.idx", "val-00000.bin"])
@pytest.mark.parametrize("opened_before", [False, True])
def test_a_flipped_bit_is_refused_by_name_when_a_run_opens_the_corpus(folder, file, opened_before):
    if opened_before:
        open_for_training(folder)
    flip(folder / file)
    for _ in range(2):  # it is not forgotten
        with pytest.raises(ValueError, match=rf"{file}: sha256 should be .* changed since"):
            open_for_training(folder)
    flip(folder / file)
    open_for_training(folder)


def test_each_file_is_read_once_and_again_only_when_its_time_or_size_changes(folder, read):
    open_for_training(folder)
    every = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".idx"))
    assert sorted(read) == every
    open_for_training(folder)
    assert sorted(read) == every
    os.utime(folder / "val-00000.bin")
    open_for_training(folder)
    assert read[len(every) :] == ["val-00000.bin"]
    open_for_training(folder)
    assert len(read) == len(every) + 1
    assert sorted(json.loads((folder / digests.REMEMBERED).read_text())) == every


def test_a_bit_that_flips_without_a_trace_is_found_by_verify(folder, capsys):
    open_for_training(folder)
    times = (folder / "val-00000.bin").stat()
    flip(folder / "val-00000.bin")
    os.utime(folder / "val-00000.bin", ns=(times.st_atime_ns, times.st_mtime_ns))
    open_for_training(folder)
    with pytest.raises(ValueError, match=r"val-00000\.bin: sha256"):
        main(["--verify", str(folder)])


def test_where_nothing_can_be_remembered_every_opening_checks(folder, read, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("read-only")

    monkeypatch.setattr(digests, "write_text", refuse)
    monkeypatch.setattr(digests, "lock", refuse)
    open_for_training(folder)
    first = len(read)
    open_for_training(folder)
    assert len(read) == 2 * first
    flip(folder / "train-00000.bin")
    with pytest.raises(ValueError, match=r"train-00000\.bin"):
        open_for_training(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"train-00000.bin": 3}'])
def test_a_damaged_memory_only_costs_another_look(folder, read, text):
    (folder / digests.REMEMBERED).write_text(text)
    open_for_training(folder)
    assert len(read) == len(json.loads((folder / digests.REMEMBERED).read_text()))

"""`prepare`: byte-identical results, whole or not at all, splits without overlap, clear errors."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gpt_lightning.data.corpus import open_corpus
from gpt_lightning.data.prepare.prepare import PrepareConfig, default_output, main, prepare
from gpt_lightning.data.prepare.sources import open_source
from gpt_lightning.data.tokenizer import EOT, Tokenizer

PREPARE = """
import sys
from gpt_lightning.data.prepare.prepare import PrepareConfig, prepare
config = PrepareConfig(tokenizer="bytes", shard_tokens=100_000, n_threads=int(sys.argv[3]))
prepare(sys.argv[1], sys.argv[2], config)
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """3,000 documents, 12 MB of real text, as JSONL."""
    text = "".join(text for _, text in open_source("stdlib").read(lambda name: True))
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    size = len(text) // 3000
    path.write_text("".join(json.dumps({"text": text[i * size : (i + 1) * size]}) + "\n" for i in range(3000)))
    return path


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def documents_of(corpus, split):
    """Texts of the documents of a split, cut at the recorded ends."""
    for shard in corpus.split(split).shards:
        starts = [0, *shard.ends[:-1].tolist()]
        for start, end in zip(starts, shard.ends.tolist(), strict=True):
            assert shard.tokens[end - 1] == corpus.eot_id
            yield corpus.tokenizer.decode(shard.tokens[start : end - 1].tolist())


@pytest.mark.parametrize("tokenizer", [None, "bytes"])
def test_every_document_comes_back_exactly_once(text_folder, tmp_path, tokenizer):
    config = PrepareConfig(vocab_size=500, tokenizer=tokenizer, val_fraction=0.2, shard_tokens=50_000)
    corpus = prepare(str(text_folder), tmp_path / "corpus", config)
    expected = sorted(text for _, text in open_source(str(text_folder)).read(lambda name: True))
    splits = {split: list(documents_of(corpus, split)) for split in ("train", "val")}
    assert sorted(splits["train"] + splits["val"]) == expected
    assert splits["train"] and splits["val"]
    assert sum(split.n_bytes for split in corpus.splits.values()) == sum(len(text.encode()) for text in expected)
    assert len(corpus.split("train").shards) > 1
    assert any(EOT in text for text in splits["train"] + splits["val"])


def test_more_documents_do_not_move_the_others_between_splits(tmp_path):
    folder, splits = tmp_path / "text", []
    folder.mkdir()
    for count in (100, 200):
        for i in range(count):
            (folder / f"{i}.txt").write_text(f"document {i}")
        config = PrepareConfig(tokenizer="bytes", val_fraction=0.3)
        corpus = prepare(str(folder), tmp_path / f"corpus-{count}", config)
        splits.append({split: set(documents_of(corpus, split)) for split in ("train", "val")})
    assert splits[0]["val"] <= splits[1]["val"] and splits[0]["train"] <= splits[1]["train"]
    assert 0.2 < len(splits[1]["val"]) / 200 < 0.4


@pytest.mark.slow
def test_one_and_two_threads_write_the_same_bytes(rows, tmp_path):
    for threads in (1, 2, 5):
        config = PrepareConfig(vocab_size=600, tokenizer_sample_bytes=100_000, n_threads=threads)
        prepare(str(rows), tmp_path / f"corpus-{threads}", config)
    assert contents(tmp_path / "corpus-1") == contents(tmp_path / "corpus-2") == contents(tmp_path / "corpus-5")


def test_a_shard_ends_with_the_document_that_fills_it(text_folder, tmp_path):
    config = PrepareConfig(tokenizer="bytes", shard_tokens=50_000)
    shards = prepare(str(text_folder), tmp_path / "corpus", config).split("train").shards
    assert len(shards) > 5
    for shard in shards[:-1]:
        assert len(shard.tokens) >= 50_000 and shard.ends[-1] == len(shard.tokens)
        assert len(shard.ends) == 1 or shard.ends[-2] < 50_000


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_no_corpus_and_the_next_run_is_byte_identical(rows, tmp_path):
    command = [sys.executable, "-c", PREPARE, str(rows)]
    subprocess.run([*command, str(tmp_path / "whole"), "2"], check=True)
    killed = subprocess.Popen([*command, str(tmp_path / "killed"), "2"])
    partial = tmp_path / ".killed.partial"
    deadline = time.monotonic() + 60
    while not (partial / "train-00001.bin").exists():
        assert killed.poll() is None and time.monotonic() < deadline, "finished before it could be killed"
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert partial.exists() and not (tmp_path / "killed").exists()
    with pytest.raises(ValueError):
        open_corpus(partial)
    subprocess.run([*command, str(tmp_path / "killed"), "1"], check=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]


@pytest.mark.slow
def test_processes_that_start_together_make_the_corpus_once(rows, tmp_path):
    command = [sys.executable, "-c", PREPARE, str(rows), str(tmp_path / "corpus"), "1"]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    reports = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sorted(report.count("prepared ") for report in reports) == [0, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_a_corpus_that_is_there_is_opened_untouched_and_other_settings_are_refused(text_folder, tmp_path):
    config = PrepareConfig(vocab_size=400)
    made = prepare(str(text_folder), tmp_path / "corpus", config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").iterdir()}
    again = prepare(str(text_folder), tmp_path / "corpus", PrepareConfig(vocab_size=400, n_threads=1))
    assert again.identity == made.identity
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").iterdir()}
    with pytest.raises(ValueError, match="vocab_size 400 instead of 500"):
        prepare(str(text_folder), tmp_path / "corpus", PrepareConfig(vocab_size=500))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(ValueError, match="is not a corpus"):
        prepare(str(text_folder), tmp_path / "mine", config)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"


def test_a_given_tokenizer_is_used_as_it_is(text_folder, corpus, tmp_path):
    given = prepare(str(text_folder), tmp_path / "c", PrepareConfig(tokenizer=str(corpus.path / "tokenizer.json")))
    assert given.tokenizer.sha256 == corpus.tokenizer.sha256


def test_the_tokenizer_is_trained_on_a_sample_of_the_size_asked_for(tmp_path, monkeypatch):
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(400):
        (folder / f"{i}.txt").write_text(f"{i:04d}" * 250)
    seen = []
    train = Tokenizer.train.__func__
    spy = classmethod(lambda cls, texts, size: train(cls, [seen.append(t) or t for t in texts], size))
    monkeypatch.setattr(Tokenizer, "train", spy)
    prepare(str(folder), tmp_path / "c", PrepareConfig(vocab_size=300, tokenizer_sample_bytes=100_000))
    assert 70_000 < sum(map(len, seen)) <= 100_000
    first_digits = {text[:2] for text in seen}
    assert len(first_digits) == 4  # spread over the whole folder, not its beginning


@pytest.mark.parametrize("val_fraction", [0.000001, 0.999999])
def test_two_documents_are_enough_for_two_splits(tmp_path, val_fraction):
    (tmp_path / "tiny.txt").write_text("to be, or not to be\n")
    config = PrepareConfig(tokenizer="bytes", val_fraction=val_fraction, near_copies="keep")
    corpus = prepare(str(tmp_path / "tiny.txt"), tmp_path / "corpus", config)
    texts = {split: list(documents_of(corpus, split)) for split in ("train", "val")}
    assert min(len(texts["train"]), len(texts["val"])) == 1
    assert sum(map(len, texts["train"] + texts["val"])) == 20


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": b"fine", "b.txt": b"\xff\xfe"}, r"b\.txt is not UTF-8"),
        ({"a.txt": b"only one"}, "one document"),
        ({"a.md": b"x"}, "no file that matches"),
    ],
)
def test_bad_input_leaves_nothing_behind(tmp_path, files, message):
    folder = tmp_path / "text"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        prepare(str(folder), tmp_path / "made" / "here" / "corpus", PrepareConfig(tokenizer="bytes"))
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize("setting", [{"val_fraction": 0.0}, {"val_fraction": 1.5}, {"shard_tokens": 0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        PrepareConfig(**setting)


def test_the_default_folder_tells_source_and_settings_apart(text_folder, tmp_path):
    base = default_output(str(text_folder), PrepareConfig(), tmp_path)
    assert base.parent == tmp_path and base.name.startswith("text")
    assert base == default_output(os.path.relpath(text_folder), PrepareConfig(n_threads=7), tmp_path)
    assert base != default_output(str(text_folder), PrepareConfig(vocab_size=1000), tmp_path)
    assert default_output("stdlib", PrepareConfig(), tmp_path).name.startswith("stdlib-3-")


def test_the_verb_prepares_prints_the_next_command_and_verifies(text_folder, tmp_path, capsys):
    output = str(tmp_path / "corpus")
    assert main(["--corpus", str(text_folder), "--output", output, "--vocab_size", "400"]) == 0
    assert f"--data.corpus {output}" in capsys.readouterr().out
    assert main(["--verify", output]) == 0
    assert "intact" in capsys.readouterr().out


def test_the_verb_starts_without_torch():
    code = (
        "import sys, gpt_lightning.data.prepare.prepare; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_explains_every_setting_with_its_unit(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Bytes of text, spread over the training documents" in text and "Tokens after which another shard" in text

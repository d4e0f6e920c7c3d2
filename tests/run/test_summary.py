"""What a run proposes at its end works, and what has no tokenizer says nothing of text."""

import shlex
import warnings

import numpy as np
import pytest

import gpt_lightning as gl
from gpt_lightning.cli import main
from tests.fixtures import TINY, write_text

BYTES = {"max_tokens": 64, "val_interval_tokens": 64, "run_dir": "run"}


def proposed(out: str) -> list[str]:
    """The commands after `next`."""
    lines = out.split("\nnext ")[1].splitlines()
    return [line.strip() for line in lines if line.strip().startswith("gpt-lightning")]


def test_what_is_proposed_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt")
    gl.run([], {**TINY, **BYTES, "data.corpus": "text.txt"})
    commands = proposed(capsys.readouterr().out)
    assert [command.split()[1] for command in commands] == ["generate", "export"]
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err


def test_a_run_that_no_family_holds_does_not_propose_an_export_that_would_be_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt")
    gl.run([], {**TINY, **BYTES, "model.gpt.positions": "none", "data.corpus": "text.txt"})
    assert [command.split()[1] for command in proposed(capsys.readouterr().out)] == ["generate"]


@pytest.mark.slow
def test_tokens_without_a_tokenizer_train_without_a_warning_and_propose_what_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokens").mkdir()
    ids = np.random.default_rng(0).integers(0, 50, 4000).astype("<u2")
    ids[:3000].tofile(tmp_path / "tokens" / "train.bin")
    ids[3000:].tofile(tmp_path / "tokens" / "val.bin")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        gl.run([], {**TINY, **BYTES, "data.corpus": "tokens", "data.prepare.tokenizer": "null"})
    assert not [str(w.message) for w in seen if "compute" in str(w.message)]
    (command,) = proposed(capsys.readouterr().out)
    assert command.split()[1] == "validate"
    assert main(shlex.split(command)[1:]) == 0
    capsys.readouterr()
    assert main(["generate", "--run=run"]) == 2
    assert "token ids that came without a tokenizer" in capsys.readouterr().err


def test_byte_ids_of_another_program_generate_when_they_are_said_to_be_bytes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokens").mkdir()
    ids = np.frombuffer(write_text(tmp_path / "text.txt").read_bytes(), dtype=np.uint8).astype("<u2")
    ids[:12000].tofile(tmp_path / "tokens" / "train.bin")
    ids[12000:].tofile(tmp_path / "tokens" / "val.bin")
    gl.run([], {**TINY, **BYTES, "data.corpus": "tokens", "data.prepare.tokenizer": "bytes"})
    commands = proposed(capsys.readouterr().out)
    assert commands[0].split()[1] == "generate"
    assert main(shlex.split(commands[0])[1:]) == 0


@pytest.mark.slow
def test_scores_of_a_split_stand_beside_the_compressors(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt", n_words=20_000)
    gl.run([], {**TINY, **BYTES, "data.corpus": "text.txt", "data.prepare.test_fraction": 0.1})
    capsys.readouterr()
    for verb, split in (("validate", "val"), ("test", "test")):
        assert main([verb, "--config=run/config.yaml"]) == 0
        out = capsys.readouterr().out
        assert all(words in out for words in (f"{split}/bits_per_byte", "gzip -9", "xz -9e after training text"))

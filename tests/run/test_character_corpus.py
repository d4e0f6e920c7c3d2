"""A character corpus of nanoGPT with its meta.pkl: it trains, is scored in bytes, and the run alone writes text."""

import json
import math
import pickle
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

import gpt_lightning as gl
from gpt_lightning.cli import main
from gpt_lightning.serve.text import load
from tests.fixtures import TINY, arguments, error_lines
from tests.run.test_summary import proposed

TEXT = "the naïve model reads 東京 and def writes it again\n" * 40
pytestmark = pytest.mark.slow

RUN = {"max_tokens": 128, "val_interval_tokens": 64, "run_dir": "run", "data.corpus": "chars"}


def write_corpus(folder: Path, text: str, protocol: int | None = None) -> None:
    """As nanoGPT's data/shakespeare_char/prepare.py does it."""
    characters = sorted(set(text))
    stoi = {character: i for i, character in enumerate(characters)}
    itos = {i: character for i, character in enumerate(characters)}
    folder.mkdir()
    n_train = int(len(text) * 0.9)
    for name, part in (("train", text[:n_train]), ("val", text[n_train:])):
        np.array([stoi[character] for character in part], dtype=np.uint16).tofile(folder / f"{name}.bin")
    with open(folder / "meta.pkl", "wb") as file:
        pickle.dump({"vocab_size": len(characters), "itos": itos, "stoi": stoi}, file, protocol)


def flags(options: dict) -> list[str]:
    return [flag for flag in arguments({**RUN, **options}) if not flag.startswith("--data.prepare.tokenizer")]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("protocol", [2, None])
def test_a_run_is_scored_in_bytes_and_writes_text_from_its_folder_alone(protocol, capsys):
    write_corpus(Path("chars"), TEXT, protocol)
    assert main(["fit", *flags({"samples.prompt": "def "})]) == 0, capsys.readouterr().err
    commands = proposed(capsys.readouterr().out)
    summary = json.loads(Path("run/summary.json").read_text())
    scored = TEXT[int(len(TEXT) * 0.9) + 1 :]
    nats = summary["val/loss"] * len(scored)
    assert summary["val/bits_per_byte"] == pytest.approx(nats / math.log(2) / len(scored.encode()), rel=1e-5)
    assert len(scored.encode()) > len(scored) and summary["gzip_bits_per_byte"] > 0

    samples = Path("run/samples.txt").read_text("utf-8").split("\n\n")
    assert all(len(text.split("===\n")[1]) == len("def ") + TINY["samples.max_new_tokens"] for text in samples[:2])

    shutil.rmtree("chars")
    assert [command.split()[1] for command in commands] == ["generate"]  # export needs <|endoftext|>
    assert main(shlex.split(commands[0])[1:]) == 0
    written = capsys.readouterr().out.removesuffix("\n")
    assert written.startswith("def ") and len(written) == len("def ") + 200 and set(written) <= set(TEXT)
    assert set("".join(load("run").generate(["", "東"], max_new_tokens=5))) <= set(TEXT)


def test_nothing_is_proposed_that_the_alphabet_cannot_write(capsys):
    write_corpus(Path("chars"), "123+45=168;" * 100)
    assert main(["fit", *flags({})]) == 0
    (command,) = proposed(capsys.readouterr().out)
    assert command == "gpt-lightning generate --run run"
    assert main(shlex.split(command)[1:]) == 0
    assert main(["generate", "--run=run", "--prompt=1", "--prompt=1+x"]) == 2
    assert "has the character 'x', which is not among the 10" in error_lines(capsys.readouterr().err)[-1]


def test_a_sample_that_could_not_be_written_is_refused_before_training(capsys):
    write_corpus(Path("chars"), TEXT)
    assert main(["fit", *flags({"samples.prompt": "naïve ✓"})]) == 2
    (error,) = error_lines(capsys.readouterr().err)
    assert "samples.prompt" in error and "'✓'" in error and not Path("run").exists()


def test_an_export_is_refused_in_one_line(capsys):
    write_corpus(Path("chars"), TEXT)
    assert main(["fit", *flags({})]) == 0
    capsys.readouterr()
    assert main(["export", "--run=run", "--output=out"]) == 2
    (error,) = error_lines(capsys.readouterr().err)
    assert "endoftext" in error and not Path("out").exists()


def test_a_meta_pkl_that_runs_a_command_stops_the_command_line_with_one_line(capsys):
    write_corpus(Path("chars"), TEXT)
    Path("chars/meta.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    assert main(["fit", *flags({})]) == 2
    (error,) = error_lines(capsys.readouterr().err)
    assert "chars/meta.pkl" in error and "GLOBAL" in error
    assert not Path("ran").exists() and not Path("run").exists()


def test_without_meta_pkl_the_ids_have_no_text_as_before():
    write_corpus(Path("chars"), TEXT)
    Path("chars/meta.pkl").unlink()
    result = gl.run([], {**TINY, **RUN, "data.prepare.tokenizer": "null"})
    assert "val/bits_per_byte" not in result
    assert not Path("run/tokenizer.json").exists() and not Path("run/samples.txt").exists()

"""The command line: --help at once, verbs imported when used."""

import importlib
import statistics
import subprocess
import sys
import time

import pytest

from gpt_lightning import cli
from tests.fixtures import environment


def test_help_answers_in_under_a_second():
    def seconds() -> float:
        started = time.perf_counter()
        command = [sys.executable, "-m", "gpt_lightning", "--help"]
        result = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
        assert all(verb in result.stdout for verb in cli.VERBS)
        return time.perf_counter() - started

    assert statistics.median(seconds() for _ in range(3)) < 1.0


def test_the_command_line_imports_neither_torch_nor_lightning():
    code = "import sys, gpt_lightning.cli; print(sorted({'torch', 'lightning', 'pandas'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_exists_and_has_help(verb, capsys):
    module, name = cli.VERBS[verb][0].split(":")
    assert callable(getattr(importlib.import_module(module), name))
    with pytest.raises(SystemExit) as stop:
        cli.main([*verb.split(), "--help"])
    assert stop.value.code == 0
    assert "usage: gpt-lightning " + verb in capsys.readouterr().out


def test_tune_alone_lists_its_verbs(capsys):
    for arguments, code in ((["tune"], 2), (["tune", "--help"], 0)):
        assert cli.main(arguments) == code
        out = capsys.readouterr().out
        assert all(verb in out for verb in cli.VERBS if verb.startswith("tune ")) and "  prepare" not in out


def test_help_of_fit_gives_units(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in ("Length of the run, in tokens", "Longest sequence", "sequences per device per forward"):
        assert words in text

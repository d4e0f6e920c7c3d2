"""The verbs `export` and `import`, there and back."""

from pathlib import Path

import pytest
import torch
import yaml

from gpt_lightning.checkpoint import gpt_config_to_dict, load_gpt, write_checkpoint
from gpt_lightning.cli import main as cli
from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.serve.text import load
from tests.fixtures import arguments, write_text

MISTRAL = {"positions": "rotary", "norm": "rms", "mlp": "swiglu", "bias": False, "n_kv_heads": 1, "d_ff": 48}
MISTRAL |= {"attention_pattern": ("dense", "banded"), "band_width": 5}


@pytest.fixture(params=[("GPT-2", {}), ("Ministral", MISTRAL)], ids=["GPT-2", "Ministral"])
def family(request) -> tuple[str, dict]:
    """A family's name, and what makes a model one of it."""
    return request.param


@pytest.fixture
def run_dir(tmp_path: Path, family) -> Path:
    torch.manual_seed(0)
    sizes = {"vocab_size": 257, "context_length": 16, "n_layers": 2, "n_heads": 2, "d_model": 16}
    config = GPTConfig(**sizes, dropout=0.1, init_std=0.5, **family[1])
    state = {f"gpt.{name}": value for name, value in GPT(config).state_dict().items()}
    checkpoint = {"state_dict": state, "gpt_config": gpt_config_to_dict(config)}
    write_checkpoint(checkpoint, tmp_path / "run" / "checkpoints" / "best.ckpt")
    Tokenizer.bytes_only().save(tmp_path / "run" / "tokenizer.json")
    return tmp_path / "run"


@pytest.fixture
def imported(run_dir: Path, family, tmp_path: Path, capsys) -> Path:
    assert cli(["export", "--run", str(run_dir), "--output", str(tmp_path / "hf")]) == 0
    assert cli(["import", "--input", str(tmp_path / "hf"), "--run_dir", str(tmp_path / "back")]) == 0
    out, err = capsys.readouterr()
    assert f"hf: written as {family[0]}; open it" in out and err == ""
    return tmp_path / "back"


def test_a_run_that_is_exported_and_imported_is_the_same_model(run_dir, imported, tmp_path):
    ours, back = load_gpt(run_dir), load_gpt(imported)
    assert back.config == ours.config
    for name, value in ours.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    texts = {load(path).generate("ab", seed=1) for path in (run_dir, imported, tmp_path / "hf")}
    assert len(texts) == 1


@pytest.mark.slow
def test_training_goes_on_from_an_imported_model(imported, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    overlay = yaml.safe_load((imported / "config.yaml").read_text())
    assert overlay["model"]["init_from"] == str(imported / "checkpoints" / "best.ckpt")
    options = {
        "max_tokens": 64,
        "val_interval_tokens": 64,
        "data.corpus": str(write_text(tmp_path / "text.txt")),
        "data.batch_tokens": 64,
        "run_dir": "run2",
        "model.optim.lr": 1e-9,
    }
    taken = {key: value for key, value in _flags(options).items() if not key.startswith("model.gpt")}
    del taken["data.context_length"], taken["data.prepare.tokenizer"]
    flags = [f"--{key}={value}" for key, value in taken.items()]
    assert cli(["fit", "--config", str(imported / "config.yaml"), *flags]) == 0, capsys.readouterr().err
    trained, start = load_gpt(tmp_path / "run2"), load_gpt(imported)
    assert trained.config == start.config
    torch.testing.assert_close(trained.state_dict(), start.state_dict(), atol=1e-6, rtol=0)  # with so small a lr


@pytest.mark.slow
def test_an_imported_model_is_scored_but_has_no_run_to_go_on_with(imported, family, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt")
    sizes = {"n_layers": 2, "d_model": 16, "dropout": 0.1, "init_std": 0.5, **family[1]}
    sizes = {f"model.gpt.{name}": list(value) if isinstance(value, tuple) else value for name, value in sizes.items()}
    flags = arguments({**sizes, "data.corpus": "text.txt", "run_dir": str(imported)})
    assert cli(["validate", *flags]) == 0
    assert "val/bits_per_byte" in capsys.readouterr().out
    assert cli(["fit", *flags, "--if_exists=resume"]) == 2
    assert "weights alone" in capsys.readouterr().err


def _flags(options: dict) -> dict[str, str]:
    pairs = [flag.removeprefix("--").split("=", 1) for flag in arguments(options)]
    return {key: value for key, value in pairs}


def test_neither_verb_writes_over_anything(run_dir, imported, tmp_path, capsys):
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    assert cli(["export", "--run", str(run_dir), "--output", str(imported)]) == 2
    assert cli(["import", "--input", str(tmp_path / "hf"), "--run_dir", str(run_dir)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "is not empty" in errors[0] and "already holds a run; choose another" in errors[1]
    assert before == {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("verb", [["export", "--run", "nothing", "--output", "a"], ["import", "--input", "nothing"]])
def test_what_is_not_there_is_one_line_and_nothing_is_written(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for options in (verb, [*verb, "--run_dir", "b"]):
        assert cli(options) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

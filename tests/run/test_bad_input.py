"""Bad input: one clear line on stderr, exit code 2, no traceback, and nothing written."""

import gzip
import json
from pathlib import Path

import pytest

from gpt_lightning import cli
from tests.fixtures import arguments, error_lines, write_text

CASES = {
    # options -> words that the line must have: what was given, what was expected
    "missing corpus": ({"data.corpus": "nowhere.txt"}, ["nowhere.txt"]),
    "empty corpus": ({"data.corpus": "empty.txt"}, ["empty.txt"]),
    "not UTF-8": ({"data.corpus": "latin1.txt"}, ["latin1.txt", "UTF-8"]),
    "misspelt option": ({"model.gpt.n_layer": 2}, ["n_layer", "did you mean", "n_layers"]),
    "misspelt key in YAML": ({"config": "misspelt.yaml"}, ["gtp", "did you mean"]),
    "missing YAML": ({"config": "nowhere.yaml"}, ["nowhere.yaml"]),
    "wrong type": ({"model.gpt.n_layers": "two"}, ["n_layers", "two"]),
    "heads do not divide": ({"model.gpt.n_heads": 3}, ["16", "3", "15", "18"]),
    "batch does not divide": ({"data.batch_tokens": 100}, ["100", "96", "128"]),
    "negative learning rate": ({"model.optim.lr": -1}, ["lr", "-1"]),
    "no horizon": ({"max_tokens": 0}, ["max_tokens"]),
    "steps instead of tokens": ({"trainer.max_steps": 5}, ["max_steps", "max_tokens"]),
    "unknown schedule": ({"model.schedule.name": "cosinus"}, ["cosinus"]),
    "not a tokenizer": ({"data.prepare.tokenizer": "text.txt"}, ["text.txt"]),
    "checkpoints that would be unpickled": (
        {"trainer.strategy": '{"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}'},
        ["ModelParallelStrategy", "FSDP2Strategy", "configs/trainer/fsdp2.yaml"],
    ),
    "weights to start from are missing": ({"model.init_from": "runs/none"}, ["runs/none"]),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin1.txt").write_bytes("caf\u00e9 ".encode("latin-1") * 50)
    (tmp_path / "misspelt.yaml").write_text("model: {gtp: {n_layers: 2}}\n")
    return tmp_path


def fail(verb: str, options: list[str], capsys) -> str:
    """The one line with which the command fails."""
    assert cli.main([verb, *options]) == 2
    errors = error_lines(capsys.readouterr().err)
    assert len(errors) == 1 and errors[0].startswith("error: "), errors
    return errors[0]


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_written(case, capsys):
    options, words = CASES[case]
    flags = [f for f in arguments({"data.corpus": "text.txt", **options}) if not f.startswith("--config")]
    config = [f"--config={options['config']}"] if "config" in options else []
    error = fail("fit", [*config, *flags, "--run_dir=runs/bad"], capsys)
    assert all(word in error for word in words), error
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_run_is_not_overwritten_silently_and_a_running_one_not_at_all(capsys):
    from gpt_lightning.run.folder import RunDir

    options = {"data.corpus": "text.txt", "max_tokens": 64, "run_dir": "run"}
    assert cli.main(["fit", *arguments(options)]) == 0
    before = (Path("run") / "config.yaml").read_bytes()
    capsys.readouterr()
    assert "already holds a run" in fail("fit", arguments(options), capsys)
    assert (Path("run") / "config.yaml").read_bytes() == before
    other = RunDir(Path("run"))
    other.claim("resume")
    assert "in use" in fail("fit", arguments({**options, "if_exists": "overwrite"}), capsys)
    assert (Path("run") / "checkpoints" / "last.ckpt").exists()
    other.release()


@pytest.mark.slow
def test_a_checkpoint_of_another_architecture_is_refused_by_name(capsys):
    options = {"data.corpus": "text.txt", "max_tokens": 64, "run_dir": "run"}
    assert cli.main(["fit", *arguments(options)]) == 0
    capsys.readouterr()
    wider = {**options, "model.gpt.d_model": 32, "if_exists": "resume", "max_tokens": 128}
    error = fail("fit", arguments(wider), capsys)
    assert "d_model 16 (here 32)" in error
    assert "d_model 16" in fail("validate", arguments({**wider, "if_exists": "refuse"}), capsys)


def test_a_corpus_that_changed_between_runs_is_refused(tmp_path, capsys):
    options = {"data.corpus": "text.txt", "max_tokens": 64, "run_dir": "run"}
    assert cli.main(["fit", *arguments(options)]) == 0
    write_text(tmp_path / "text.txt", n_words=2000)
    before = (tmp_path / "run" / "config.yaml").stat().st_mtime_ns
    capsys.readouterr()
    error = fail("fit", arguments({**options, "if_exists": "resume", "max_tokens": 128}), capsys)
    assert "trained with corpus" in error and (tmp_path / "run" / "config.yaml").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["truncate", "pad"])
def test_a_damaged_shard_is_refused_before_the_run(tmp_path, capsys, damage):
    assert cli.main(["prepare", "--corpus=text.txt", "--output=corpus", "--tokenizer=bytes"]) == 0
    shard = tmp_path / "corpus" / "train-00000.bin"
    data = shard.read_bytes()
    shard.write_bytes(data[:-2] if damage == "truncate" else data + b"\0\0")
    capsys.readouterr()
    error = fail("fit", arguments({"data.corpus": "corpus", "run_dir": "runs/bad"}), capsys)
    assert "train-00000.bin" in error and str(len(data)) in error and not Path("runs").exists()


def test_a_corpus_with_more_ids_than_its_tokenizer_is_refused(tmp_path, capsys):
    assert cli.main(["prepare", "--corpus=text.txt", "--output=corpus", "--tokenizer=bytes"]) == 0
    manifest = tmp_path / "corpus" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["shards"][0]["max_id"] = 300
    manifest.write_text(json.dumps(values))
    capsys.readouterr()
    error = fail("fit", arguments({"data.corpus": "corpus", "run_dir": "runs/bad"}), capsys)
    assert "300" in error and "257" in error


def test_an_unknown_verb_is_named(capsys):
    assert cli.main(["trian"]) == 2
    assert "trian" in capsys.readouterr().err


def test_compressed_json_lines_train(tmp_path):
    rows = [json.dumps({"body": f"document {i} " + "words and more words " * 20}) for i in range(40)]
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(rows))
    options = {"data.corpus": "rows.jsonl.gz", "data.prepare.text_field": "body", "max_tokens": 64, "run_dir": "run"}
    assert cli.main(["fit", *arguments({**options, "data.prepare.val_fraction": 0.2})]) == 0

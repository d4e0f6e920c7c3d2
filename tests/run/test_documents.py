"""Runs with a document mask: what they train on and are scored by is every document alone, however they are run."""

import json
import random
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import gpt_lightning as gl
from gpt_lightning import cli
from gpt_lightning.checkpoint import load_gpt
from gpt_lightning.report.metrics_csv import read_metrics
from tests.fixtures import TINY, WORDS, arguments, assert_equal, build, error_lines, fit_in_process, read

OPTIONS = {
    **TINY,
    "data.corpus": "text.jsonl",
    "run_dir": "run",
    "data.prepare.val_fraction": 0.2,
    "data.prepare.near_copies": "keep",
    "data.context_length": 48,
    "data.batch_tokens": 192,
    "val_interval_tokens": 384,
    "max_tokens": 768,
    "model.gpt.dropout": 0.0,
    "model.gpt.init_std": 0.2,
    "model.gpt.attention_pattern": ["dense", "banded"],
    "model.gpt.band_width": 7,
    "data.document_mask": True,
}
EVERYTHING = {**OPTIONS, "data.prepare.fim": True, "data.fim_rate": 0.5, "model.gpt.dropout": 0.1}


def write_documents(folder):
    """Documents of 0 to 7 words."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=i % 8)) for i in range(300)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path)
    return tmp_path


def alone(gpt, row, targets, eot_id):
    """Cross entropy of each target of a row, every document by itself in a forward pass of its own, in float64."""
    nats, begin = torch.zeros(len(row), dtype=torch.float64), 0
    for t in range(len(row)):
        if row[t] == eot_id or t == len(row) - 1:
            logits = gpt(row[None, begin : t + 1])[0]
            nats[begin : t + 1] = F.cross_entropy(logits, targets[begin : t + 1], reduction="none", ignore_index=-100)
            begin = t + 1
    return nats


def summed(gpt, loader, eot_id, n_batches=None):
    """(nats, targets) of the batches of a loader, one by one."""
    found = []
    for tokens, targets, *_ in loader:
        with torch.no_grad():
            nats = sum(alone(gpt, row, next_, eot_id).sum() for row, next_ in zip(tokens, targets, strict=True))
        found.append((float(nats), int((targets != -100).sum())))
        if len(found) == n_batches:
            break
    return found


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["learned", "rotary", "none"])
def test_the_losses_of_a_run_are_those_of_every_document_alone(positions, capsys):
    options = {**OPTIONS, "model.gpt.positions": positions}
    assert cli.main(["fit", *arguments({**options, "model.optim.lr": 1e-12})]) == 0  # so that the weights stay
    gpt, data = load_gpt("run").double(), build({**options, "if_exists": "overwrite"}).data
    found = summed(gpt, data.val_dataloader(), data.eot_id)
    val_loss = sum(nats for nats, _ in found) / sum(n for _, n in found)
    metrics = read_metrics("run")
    assert metrics["val/loss"].dropna().iloc[-1] == pytest.approx(val_loss, rel=1e-6)
    steps = summed(gpt, data.train_dataloader(), data.eot_id, n_batches=8)
    expected = [(a + b) / (n + m) for (a, n), (b, m) in zip(steps[::2], steps[1::2], strict=True)]
    assert list(metrics["train/loss"].dropna()) == pytest.approx(expected, rel=1e-6)
    capsys.readouterr()
    assert cli.main(["predict", *arguments(options)]) == 0
    rows = [line.split(",") for line in Path("run/predictions.csv").read_text().splitlines()[1:]]
    by_row = [
        float(alone(gpt, row, next_, data.eot_id).sum() / (next_ != -100).sum())
        for tokens, targets, _ in data.val_dataloader()
        for row, next_ in zip(tokens, targets, strict=True)
        if (next_ != -100).any()
    ]
    assert [float(loss) for _, loss in rows] == pytest.approx(by_row, rel=1e-5)
    unmasked = {**options, "data.document_mask": False, "run_dir": "unmasked", "model.optim.lr": 1e-12}
    assert abs(gl.run([], unmasked)["val/loss"] - val_loss) > 1e-4, "the mask changes the loss"


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_that_stopped_goes_on_bit_for_bit(folder, optimizer):
    options = {**EVERYTHING, "model.optim.name": optimizer, "model.schedule.name": "constant"}
    for run_dir, lengths in {"whole": [768], "parts": [384, 768]}.items():
        for max_tokens in lengths:
            gl.run([], {**options, "run_dir": run_dir, "max_tokens": max_tokens, "if_exists": "resume"})
    whole, parts = (read(folder / name / "checkpoints" / "last.ckpt") for name in ("whole", "parts"))
    assert_equal(whole["state_dict"], parts["state_dict"])
    assert_equal(whole["CorpusDataModule"], parts["CorpusDataModule"])


@pytest.mark.slow
def test_another_mask_or_rate_is_refused_on_resume_in_one_line(capsys):
    gl.run([], EVERYTHING)
    capsys.readouterr()
    for option, message in {"document_mask=false": "document_mask True", "fim_rate=0.1": "fim_rate 0.5"}.items():
        flags = ["--config=run/config.yaml", "--if_exists=resume", "--max_tokens=1152", f"--data.{option}"]
        assert cli.main(["fit", *flags]) == 2
        assert f"was trained with {message}, this run has" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_see_the_losses_of_one(folder):
    options = {**EVERYTHING, "model.gpt.dropout": 0.0, "data.corpus": folder / "text.jsonl"}
    found = {}
    for devices in (1, 2):
        place = folder / str(devices)
        place.mkdir()
        strategy = {"trainer.devices": 2, "trainer.strategy": "ddp"} if devices == 2 else {}
        result = fit_in_process(place, {**options, **strategy})
        assert result.returncode == 0, result.stderr
        found[devices] = read_metrics(place / "run")
    for column in ("train/loss", "train/grad_norm", "val/loss"):
        assert list(found[2][column].dropna()) == pytest.approx(list(found[1][column].dropna()), rel=1e-5), column


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_compiled_blocks_train_to_the_same_loss(folder, positions):
    options = {**EVERYTHING, "model.gpt.dropout": 0.0, "model.gpt.positions": positions, "model.optim.name": "muon"}
    plain = gl.run([], options)
    result = fit_in_process(folder, {**options, "model.compile": True, "run_dir": "compiled"})
    assert result.returncode == 0 and "Warning" not in result.stderr, result.stderr
    compiled = json.loads((folder / "compiled" / "summary.json").read_text())
    assert compiled["val/loss"] == pytest.approx(plain["val/loss"], rel=1e-5)


@pytest.mark.slow
def test_a_mixture_has_a_mask_too_and_a_corpus_without_a_separator_is_refused(folder, capsys):
    (folder / "other.jsonl").write_text((folder / "text.jsonl").read_text())
    mixture = {"text.jsonl": 2.0, "other.jsonl": 1.0}
    assert "val/loss" in gl.run([], {**EVERYTHING, "data.corpus": mixture, "run_dir": "mixed"})
    torch.arange(3000).remainder(7).to(torch.int16).numpy().tofile(folder / "train.bin")
    assert cli.main(["fit", *arguments({**OPTIONS, "data.corpus": "train.bin", "data.prepare.tokenizer": "null"})]) == 2
    out, err = capsys.readouterr()
    assert "data.document_mask needs the id that ends a document" in error_lines(err)[-1]

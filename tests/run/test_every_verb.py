"""A block and a loss of one's own, together, through every verb: one run, many checks."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from gpt_lightning.checkpoint import read_checkpoint
from gpt_lightning.cli import main
from gpt_lightning.report.metrics_csv import read_metrics
from gpt_lightning.tune import trials
from tests.fixtures import arguments, error_lines

MINE = """
import torch
from torch.nn import functional as F

from gpt_lightning.model.gpt import Block
from gpt_lightning.model.loss import TokenLoss


class MyBlock(Block):
    def __init__(self, config, scale: float = 1.0):
        super().__init__(config)
        self.residual_multiplier *= scale


class Focal(TokenLoss):
    def __init__(self, gamma: float = 1.0):
        super().__init__()
        self.gamma = gamma
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def per_token(self, logits, targets):
        nats = F.cross_entropy(logits, targets, reduction="none")
        return (1 - torch.exp(-nats)) ** self.gamma * nats

    def forward(self, step):
        self.calls += 1
        return super().forward(step)
"""
OVERLAY = {
    "model": {
        "block": {"class_path": "mine.MyBlock", "init_args": {"scale": 0.5}},
        "loss": {"class_path": "mine.Focal", "init_args": {"gamma": 2.0}},
    }
}
OPTIONS = {"data.corpus": "text.txt", "max_tokens": 512, "model.gpt.dropout": 0.0, "model.schedule.name": "constant"}


@pytest.fixture
def verb(folder, monkeypatch, capfd):
    """Run a verb over the overlay in `folder`, where mine.py is; what it prints. Nothing strange may be printed."""
    (folder / "mine.py").write_text(MINE)
    (folder / "my.yaml").write_text(yaml.safe_dump(OVERLAY))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    def call(*words: str, code: int = 0, **options) -> str:
        capfd.readouterr()
        assert main([*words, "--config=my.yaml", *arguments({**OPTIONS, **options})]) == code
        out, errors = capfd.readouterr()
        assert [line for line in error_lines(errors) if " val loss " not in line] == []
        return out

    return call


def test_a_run_of_ones_own_is_trained_scored_resumed_and_generates(verb, folder, capfd):
    verb("fit", run_dir="whole")
    verb("fit", run_dir="run", max_tokens=256)
    verb("fit", run_dir="run", if_exists="resume")
    whole, resumed = read_metrics("whole"), read_metrics("run")
    for column in ("train/loss", "train/grad_norm", "val/loss"):
        assert list(resumed[column].dropna()) == list(whole[column].dropna()), column
    state = read_checkpoint("run/checkpoints/last.ckpt")
    assert state["block"]["init_args"] == {"scale": 0.5} and state["loss"]["calls"] == 512 // 32, "micro-steps"
    plain = {"model.loss": "CrossEntropy", "run_dir": "run"}
    for name in ("validate", "test"):
        assert verb(name, run_dir="run") == verb(name, **plain), "scores are of the weights, whatever trained them"
    verb("predict", run_dir="run")
    rows = (folder / "run" / "predictions.csv").read_text().splitlines()[1:]
    assert sum(float(row.split(",")[1]) for row in rows) / len(rows) == pytest.approx(whole["val/loss"].iloc[-1], 0.01)
    assert main(["fit", *arguments({**OPTIONS, **plain, "if_exists": "resume"}), "--config=run/config.yaml"]) == 2
    assert "trained with another model.loss: its buffers are calls, those of CrossEntropy here none" in (
        capfd.readouterr().err
    )
    assert main(["generate", "--run=run", "--model.block=mine.MyBlock", "--prompt=the ", "--max_new_tokens=4"]) == 0
    assert capfd.readouterr().out.startswith("the ")
    assert main(["export", "--run=run", "--output=out"]) == 2
    assert "no Hugging Face family has the block mine.MyBlock" in capfd.readouterr().err and not Path("out").exists()


@pytest.mark.slow
def test_every_tuning_verb_measures_the_block_and_the_loss_of_the_stack(verb, folder, monkeypatch):
    monkeypatch.setattr("gpt_lightning.tune.batch.micro_batch.LARGEST", 2)
    monkeypatch.setattr("gpt_lightning.tune.verify.verb.SEEDS", 1)
    built = []
    build = trials.build
    monkeypatch.setattr(trials, "build", lambda *args: built.append(build(*args)) or built[-1])
    mup = {"model.gpt.parametrization": "mup", "model.gpt.base_d_model": 8}
    longer = {"max_tokens": 100_000, "val_interval_tokens": 100_000}
    for words, options in (
        (["tune", "suggest"], {}),
        (["tune", "lr", "--tune.seeds=1", "--tune.tokens=1280"], {}),
        (["tune", "batch", "--tune.branches=true", "--tune.tokens=9216"], longer),
        (["tune", "verify"], mup),
    ):
        assert "recommendation: " in verb(*words, **options).splitlines()[-1]
        path = folder / "runs" / words[1]
        assert "mine.Focal" in (path / "identity.json").read_text() or words[1] == "suggest"
        assert json.loads((path / "result.json").read_text())["tuned"]
    assert len(built) > 10
    for run in built:
        assert type(run.module.gpt.blocks[0]).__name__ == "MyBlock" and run.module.gpt.blocks[0].residual_multiplier
        assert (type(run.module.loss).__name__, run.module.loss.gamma) == ("Focal", 2.0) and run.module.loss.calls > 0

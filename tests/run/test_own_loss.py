"""A user's own loss, named by its place in YAML or by a flag: trained on, tuned, resumed; scores stay cross entropy."""

import sys
from pathlib import Path

import pytest

import gpt_lightning as gl
from gpt_lightning import cli
from gpt_lightning.report.metrics_csv import read_metrics
from gpt_lightning.run.stack import read_stack
from gpt_lightning.tune.trials import train
from tests.fixtures import TINY, arguments, build, read, write_text

FOCAL = '''
import torch
from torch.nn import functional as F

from gpt_lightning.model.loss import TokenLoss


class Focal(TokenLoss):
    """Tokens that are predicted well count for less (Lin et al. 2017, arXiv 1708.02002).

    Args:
        gamma: How much less; 0 is the cross entropy.
    """

    def __init__(self, gamma: float = 1.0):
        super().__init__()
        self.gamma = gamma

    def per_token(self, logits, targets):
        nats = F.cross_entropy(logits, targets, reduction="none")
        return (1 - torch.exp(-nats)) ** self.gamma * nats


class Learned(Focal):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))


print("mine was imported")
'''
OPTIONS = {"data.corpus": "text.txt", "run_dir": "run", "max_tokens": 256, "model.gpt.dropout": 0.0}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    write_text(tmp_path / "text.txt")
    (tmp_path / "mine.py").write_text(FOCAL)
    (tmp_path / "focal.yaml").write_text("model:\n  loss: {class_path: mine.Focal, init_args: {gamma: 2}}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], ("gpt_lightning.model.loss.CrossEntropy", {"chunk_tokens": None})),
        (["--model.loss.chunk_tokens=64"], ("gpt_lightning.model.loss.CrossEntropy", {"chunk_tokens": 64})),
        (["--model.loss=mine.Focal"], ("mine.Focal", {"gamma": 1.0})),
        (["--model.loss", "mine.Focal", "--model.loss.gamma", "3"], ("mine.Focal", {"gamma": 3.0})),
        (["--config=focal.yaml"], ("mine.Focal", {"gamma": 2.0})),
        (["--config=focal.yaml", "--model.loss.gamma=3"], ("mine.Focal", {"gamma": 3.0})),
        (["--config=focal.yaml", "--model.loss=CrossEntropy"], ("gpt_lightning.model.loss.CrossEntropy", {})),
    ],
    ids=str,
)
def test_it_is_named_in_yaml_or_by_a_flag(flags, expected):
    built = build(OPTIONS, flags)
    name, values = expected
    assert f"{type(built.module.loss).__module__}.{type(built.module.loss).__name__}" == name
    assert {key: getattr(built.module.loss, key) for key in values} == values
    assert built.stack.to_dict()["model"]["loss"]["class_path"] == name  # config.yaml runs it again


@pytest.mark.slow
def test_focal_loss_without_focus_is_the_cross_entropy_and_scores_are_cross_entropy_whatever_is_trained_on():
    gl.run([], {**TINY, **OPTIONS})
    gl.run([], {**TINY, **OPTIONS, "run_dir": "zero", "model.loss": "mine.Focal", "model.loss.gamma": 0})
    gl.run(["focal.yaml"], {**TINY, **OPTIONS, "run_dir": "focal", "model.optim.lr": 1e-12})
    gl.run([], {**TINY, **OPTIONS, "run_dir": "plain", "model.optim.lr": 1e-12})
    plain, zero = read_metrics("run"), read_metrics("zero")
    for column in ("train/loss", "train/grad_norm", "val/loss"):
        assert list(zero[column].dropna()) == pytest.approx(list(plain[column].dropna()), rel=1e-5), column
    focal, still = read_metrics("focal"), read_metrics("plain")
    assert list(focal["val/loss"].dropna()) == pytest.approx(list(still["val/loss"].dropna()), rel=1e-6)
    assert (focal["train/loss"].dropna().values < still["train/loss"].dropna().values).all()
    assert "train/bits_per_byte" not in focal or focal["train/bits_per_byte"].isna().all()  # it is not in nats


@pytest.mark.slow
def test_it_goes_on_after_a_stop_and_a_checkpoint_alone_imports_nothing(monkeypatch, capsys):
    whole = gl.run(["focal.yaml"], {**TINY, **OPTIONS, "run_dir": "whole", "model.schedule.name": "constant"})
    options = {**TINY, **OPTIONS, "model.schedule.name": "constant"}
    gl.run(["focal.yaml"], {**options, "max_tokens": 128})
    again = gl.run(["run/config.yaml"], {"if_exists": "resume", "max_tokens": 256})
    assert again["val/loss"] == whole["val/loss"]
    assert "mine" not in str(read(Path("run/checkpoints/last.ckpt")))
    monkeypatch.delitem(sys.modules, "mine")
    capsys.readouterr()
    gl.load("run")
    gl.run([], {**TINY, **OPTIONS, "run_dir": "from", "model.init_from": "run", "max_tokens": 64})
    assert "mine" not in sys.modules and "mine was imported" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_trial_trains_on_it_with_its_settings_and_is_scored_by_cross_entropy():
    flags = ["--model.loss=mine.Focal", "--model.loss.gamma=3", *arguments(OPTIONS)]
    stack, _ = read_stack(flags, "tune lr")
    focal = train(stack, {"model.optim.lr": 1e-12, "max_tokens": 128}, val_tokens=256)
    plain = train(read_stack(arguments(OPTIONS), "tune lr")[0], {"model.optim.lr": 1e-12, "max_tokens": 128}, 0, 256)
    assert focal.run.module.loss.gamma == 3 and max(focal.losses) < min(plain.losses)
    assert focal.val_loss == pytest.approx(plain.val_loss, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model.loss": "mine.Nope"}, ["mine", "Nope"]),
        ({"model.loss": "nowhere.Focal"}, ["nowhere"]),
        ({"model.loss": "os.system"}, ["os.system", "subclass of Loss"]),
        ({"model.loss": "mine.Focal", "model.loss.gama": 1}, ["gama"]),
        ({"model.loss": "mine.Focal", "model.loss.gamma": "much"}, ["gamma", "much"]),
        ({"model.loss": "mine.Learned"}, ["Learned has parameters"]),
        ({"model.loss.chunk_tokens": 0}, ["chunk_tokens 0"]),
    ],
    ids=str,
)
def test_a_loss_that_cannot_be_is_refused_in_one_line(capsys, options, words):
    assert cli.main(["fit", *arguments({**OPTIONS, **options})]) == 2
    raw_corpus = ("prepared ", "near copies")  # how one announces itself
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if not line.startswith(raw_corpus)]
    assert len(lines) == 1 and all(word in lines[0] for word in words), lines
    assert not Path("run").exists()

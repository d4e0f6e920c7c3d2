"""Branches are compared after the same tokens on the same samples, and train as the recommendation says."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import gpt_lightning as gl
from gpt_lightning.model.loss import TokenLoss
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.optim.optimizer import RoleOptimizer
from gpt_lightning.optim.rescale import rescaled, rounded
from gpt_lightning.run.stack import read_stack
from gpt_lightning.tune.batch import branches
from gpt_lightning.tune.batch.branches import FACTORS, compare_branches, train_branch, train_trunk, trunk_tokens
from tests.fixtures import TINY, arguments, write_text

BATCH_TOKENS, MICRO_STEP_TOKENS = 64, 32
FALL = 0.1  # nats per 8 batches: what a run of some hundred steps does early on


def planted(factor: int, monkeypatch: pytest.MonkeyPatch, price: float = 0.0) -> list[float]:
    """A branch in a world where a sample's loss depends on the tokens trained on, and on the batch by `price` alone."""
    noise = np.random.default_rng(0).normal(0, 0.3, size=10_000)  # of the samples, the same for every branch

    def train(stack: dict, options: dict, callbacks: list, checkpoint: Path) -> SimpleNamespace:
        accumulation = options["data.batch_tokens"] // MICRO_STEP_TOKENS
        group = {"lr": 1.0, "betas": (0.9, 0.95), "weight_decay": 0.1}
        optimizer = SimpleNamespace(param_groups=[group])
        trainer = SimpleNamespace(accumulate_grad_batches=accumulation, optimizers=[optimizer])
        losses, step = [], 0.0
        for callback in callbacks:
            callback.on_train_start(trainer, None)
        for i in range(options["max_tokens"] // 2 // MICRO_STEP_TOKENS):
            trained = i // accumulation * accumulation * MICRO_STEP_TOKENS
            loss = 5.0 - FALL * trained / (8 * BATCH_TOKENS) + price * math.log2(factor) + noise[i]
            step += loss / accumulation
            ends = (i + 1) % accumulation == 0
            for callback in callbacks:
                if ends:
                    callback.on_before_optimizer_step(trainer, None, optimizer)
                callback.on_train_batch_end(
                    trainer, None, {"loss": torch.tensor(loss / accumulation).double()}, None, i
                )
            losses, step = ([*losses, step], 0.0) if ends else (losses, step)
        return SimpleNamespace(losses=losses, val_loss=math.nan)

    monkeypatch.setattr(branches, "train", train)
    tokens = trunk_tokens(18 * 8 * BATCH_TOKENS, BATCH_TOKENS)
    return train_branch({"data.batch_tokens": BATCH_TOKENS}, factor, tokens, Path("trunk.ckpt"))  # type: ignore[arg-type]


def test_where_the_batch_makes_no_difference_none_is_found(monkeypatch):
    """Losses averaged over the steps of 8 batches favour the small batch by 7/16 of what they fall: 0.044 nats here."""
    found = compare_branches({factor: planted(factor, monkeypatch) for factor in FACTORS})
    assert [len(branch.losses) for branch in found] == [18] * 4
    assert [branch.difference for branch in found] == pytest.approx([0.0] * 4, abs=1e-6)
    assert all(branch.recovers for branch in found)


def test_where_every_doubling_costs_a_hundredth_of_a_nat_that_is_found(monkeypatch):
    found = compare_branches({factor: planted(factor, monkeypatch, price=0.012) for factor in FACTORS})
    assert [branch.difference for branch in found] == pytest.approx([0.0, 0.012, 0.024, 0.036], abs=1e-6)
    assert [branch.recovers for branch in found] == [True, False, False, False]


class Halved(TokenLoss):
    def per_token(self, logits, targets):
        return F.cross_entropy(logits, targets, reduction="none") / 2


def test_branches_are_compared_in_nats_whatever_is_trained_on(folder):
    options = {"data.corpus": "text.txt", "data.batch_tokens": 64, "model.optim.lr": 1e-12, "model.gpt.dropout": 0.0}
    found = {}
    for loss in ("gpt_lightning.model.loss.CrossEntropy", f"{__name__}.Halved"):
        stack = read_stack(arguments({**options, "model.loss": loss}), "tune batch")[0]
        train_trunk(stack, 512, Path("trunk.ckpt"))
        found[loss] = train_branch(stack, 2, 1024, Path("trunk.ckpt"))
    plain, halved = found.values()
    assert len(plain) > 1 and halved == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
def test_a_branch_trains_with_what_would_be_recommended_for_its_batch(tmp_path, monkeypatch):
    """With Muon, beside which AdamW has its groups too."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt")
    steps: list[list[dict]] = []
    step = RoleOptimizer.step

    def recording(self, closure=None):
        result = step(self, closure)  # Lightning's closure computes the gradients and calls the hooks before a step
        steps.append(
            [{k: v for k, v in group.items() if k not in ("params", "initial_lr")} for group in self.param_groups]
        )
        return result

    monkeypatch.setattr(RoleOptimizer, "step", recording)
    options = {"data.corpus": "text.txt", "model.optim.name": "muon", "model.optim.weight_decay": 0.2}
    options |= {"model.schedule.name": "constant", "data.batch_tokens": 64, "max_tokens": 512}
    stack = read_stack(arguments(options), "tune batch")[0]
    train_trunk(stack, 512, Path("trunk.ckpt"))
    train_branch(stack, 4, 512, Path("trunk.ckpt"))
    in_branch = steps[-1]
    assert len(steps) == 8 + 2

    optim = OptimConfig(name="muon", lr=TINY["model.optim.lr"], weight_decay=0.2)
    overlay = rounded(rescaled(vars(optim), 4))
    recommended = {f"model.optim.{key}": value for key, value in overlay.items()}
    gl.run([], {**TINY, **options, **recommended, "data.batch_tokens": 256, "run_dir": "run"})
    assert len(in_branch) == len(steps[-1]) > 2
    for found, expected in zip(in_branch, steps[-1], strict=True):
        assert found == {k: pytest.approx(v) if isinstance(v, float | tuple) else v for k, v in expected.items()}

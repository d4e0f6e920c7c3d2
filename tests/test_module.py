"""A step's gradient is that of the mean over all targets that count, in whichever micro-step and on whichever rank."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.loss import CrossEntropy, Loss, MicroStep
from gpt_lightning.model.multi_token import MultiToken
from gpt_lightning.model.step_mean import StepMean
from gpt_lightning.module import GPTModule
from gpt_lightning.optim.config import OptimConfig
from tests.fixtures import environment

COUNTS = (32, 20, 8, 26)  # targets that count in each micro-batch of 4 sequences of 8
GPT_CONFIG = GPTConfig(vocab_size=19, context_length=8, n_layers=2, n_heads=2, d_model=16, dropout=0.0)
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Weighted(Loss):
    """Cross entropy in which token 3 weighs three times as much, which counts as much too."""

    def forward(self, step):
        weights = torch.where(step.targets == 3, 3.0, 1.0) * (step.targets != -100)
        nats = F.cross_entropy(step.readout.logits(step.hidden).mT, step.targets, reduction="none")
        return (weights * nats).sum(), weights.sum()


class KeepGradients(Callback):
    """The gradients of the first step as the optimizer sees them, by name."""

    gradients: dict[str, Tensor] | None = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 1 and self.gradients is None:
            found = {name: p.grad for name, p in pl_module.gpt.named_parameters()}
            self.gradients = {n: g.full_tensor() if hasattr(g, "full_tensor") else g.clone() for n, g in found.items()}


def batches(counts=COUNTS) -> list[tuple[Tensor, Tensor]]:
    """Micro-batches of which only the first targets count."""
    random, made = torch.Generator().manual_seed(0), []
    for count in counts:
        tokens = torch.randint(19, (4, 9), generator=random)
        targets = tokens[:, 1:].reshape(-1).clone()
        targets[count:] = -100
        made.append((tokens[:, :-1], targets.view(4, 8)))
    return made


def train(micro_batches, loss: Loss | None = None, **options) -> tuple[GPTModule, dict[str, Tensor]]:
    """One step over the micro-batches of this rank: the module, and the gradients that its optimizer saw."""
    seed_everything(1, verbose=False)
    module = GPTModule(GPT_CONFIG, loss=loss or CrossEntropy(), optim=OptimConfig(lr=1e-12, weight_decay=0.0))
    keep = KeepGradients()
    options = {"accelerator": "cpu", "max_steps": 1, "use_distributed_sampler": False, **QUIET, **options}
    trainer = Trainer(accumulate_grad_batches=len(micro_batches), callbacks=[keep], **options)
    trainer.fit(module, DataLoader(micro_batches, batch_size=None))
    return module, keep.gradients


def expected(counts=COUNTS, loss=None) -> tuple[float, dict[str, Tensor]]:
    """The mean over all targets of all micro-batches at once, and its gradients, by plain autograd."""
    seed_everything(1, verbose=False)
    gpt = GPT(GPT_CONFIG)
    tokens, targets = (torch.cat(part) for part in zip(*batches(counts), strict=True))
    if loss is None:
        mean = F.cross_entropy(gpt(tokens).flatten(0, 1), targets.flatten())
    else:
        total, count = loss(MicroStep(gpt.hidden_states(tokens), gpt.readout, tokens, targets, progress=0.0))
        mean = total / count
    names, parameters = zip(*gpt.named_parameters(), strict=True)
    return mean.item(), dict(zip(names, torch.autograd.grad(mean, parameters), strict=True))


def norm(gradients: dict[str, Tensor]) -> float:
    return torch.cat([g.flatten() for g in gradients.values()]).norm().item()


def assert_equal_gradients(found: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert norm({name: found[name] - right[name] for name in right}) < 1e-6 * norm(right)


@pytest.mark.parametrize("counts", [COUNTS, (0, 1, 0, 32), (32, 32, 32, 32)], ids=str)
def test_every_target_weighs_the_same_in_whichever_micro_step_it_is(counts):
    mean, right = expected(counts)
    module, found = train(batches(counts))
    assert_equal_gradients(found, right)
    assert module.step.loss.item() == pytest.approx(mean, rel=1e-6)
    assert module.step.totals[1].item() == sum(counts)
    assert module.grad_norm.item() == pytest.approx(norm(right), rel=1e-5)


@pytest.mark.parametrize(("n_targets", "k"), [(32, 4), (3 * 7 * 11, 13), (16 * 2047, 3)])
def test_where_every_target_counts_nothing_is_rounded(n_targets, k):
    step, loss, count = StepMean(), torch.tensor(1000 / 3), torch.tensor(n_targets)
    micro = [step.add(loss, count, count, n_targets) for _ in range(k)]
    assert all(torch.equal(one, loss / n_targets) for one in micro)
    assert step.finish(k, 1).item() == 1.0


def test_the_gradient_is_clipped_by_the_norm_of_the_right_one():
    mean, right = expected()
    module, found = train(batches(), gradient_clip_val=0.1)
    assert norm(right) > 0.2 and module.grad_norm.item() == pytest.approx(norm(right), rel=1e-5)
    scale = 0.1 / (norm(right) + 1e-6)
    assert_equal_gradients(found, {name: gradient * scale for name, gradient in right.items()})


SMOOTHED = CrossEntropy(label_smoothing=0.1, z_loss=0.01, token_weights={3: 3.0, 5: 0.0})
SEVERAL = MultiToken(token_weights={3: 3.0})  # reaches over the end of the targets that count
LOSSES = {"plain": None, "several": SEVERAL}


@pytest.mark.parametrize("loss", [Weighted(), SMOOTHED, SEVERAL], ids=repr)
def test_a_loss_may_weigh_its_targets(loss):
    mean, right = expected(loss=loss)
    module, found = train(batches(), loss)
    assert_equal_gradients(found, right)
    assert module.step.loss.item() == pytest.approx(mean, rel=1e-6)


def test_scores_are_the_cross_entropy_of_the_logits_that_the_model_gives():
    module = GPTModule(replace(GPT_CONFIG, logit_softcap=0.1), loss=SMOOTHED)
    module.configure_model()
    with torch.no_grad():
        module.gpt.wte.weight.mul_(20)
    batch = batches((32,))[0]
    expected = F.cross_entropy(module.gpt(batch[0]).mT, batch[1], reduction="none")
    assert module.gpt(batch[0]).abs().max() > 0.09
    torch.testing.assert_close(module.predict_step(batch, 0), expected.mean(1).detach())


class Seen(Weighted):
    """Keeps the progress and the positions of every micro-step."""

    def __init__(self):
        super().__init__()
        self.progress, self.positions = [], []

    def forward(self, step):
        self.progress.append(step.progress)
        self.positions.append(step.positions)
        return super().forward(step)


def test_a_loss_is_told_the_share_of_the_run_before_its_step_whichever_micro_step_it_is():
    loss = Seen()
    module = GPTModule(GPT_CONFIG, loss=loss, max_tokens=5 * 32)
    options = {"accelerator": "cpu", "max_steps": 4, "accumulate_grad_batches": 2, **QUIET}
    Trainer(**options).fit(module, DataLoader(batches() + batches(), batch_size=None))
    assert loss.progress == [0, 0, 2 / 5, 2 / 5, 4 / 5, 4 / 5, 1, 1] and loss.positions == [None] * 8


def test_a_loss_is_told_where_tokens_stand_in_their_documents_where_there_is_a_mask():
    loss, positions = Seen(), torch.arange(8).remainder(3).expand(4, 8)
    train([(*batch, positions) for batch in batches()], loss)
    assert all(torch.equal(found, positions) for found in loss.positions) and len(loss.positions) == 4


def test_a_step_without_a_target_has_no_gradient_and_is_no_failure():
    module, found = train(batches((0, 0, 0, 0)))
    assert norm(found) == 0 and module.skipped_steps.item() == 0


def test_a_loss_with_parameters_is_refused():
    class Learned(Weighted):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

    with pytest.raises(ValueError, match="Learned has parameters, which nothing would train"):
        GPTModule(GPT_CONFIG, loss=Learned())


def main(strategy: str, loss: str, path: str) -> None:
    """One of two ranks, each with two of the four micro-batches."""
    import os

    strategies = {"ddp": "ddp", "fsdp2": ModelParallelStrategy(2, 1, save_distributed_checkpoint=False)}
    rank = int(os.environ.get("LOCAL_RANK", 0))
    module, gradients = train(batches()[rank::2], LOSSES[loss], devices=2, strategy=strategies[strategy])
    if rank == 0:
        torch.save({**gradients, "loss": module.step.loss, "norm": module.grad_norm}, path)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "loss"), [("ddp", "plain"), ("ddp", "several"), ("fsdp2", "plain")])
def test_every_target_weighs_the_same_on_whichever_rank_it_is(tmp_path, strategy, loss):
    command = [sys.executable, "-m", "tests.test_module", strategy, loss, str(tmp_path / "gradients.pt")]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    mean, right = expected(loss=LOSSES[loss])
    assert found.pop("loss").item() == pytest.approx(mean, rel=1e-6)
    assert found.pop("norm").item() == pytest.approx(norm(right), rel=1e-5)
    assert_equal_gradients(found, right)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""`tune verify` passes right models and fails each wrong rule, in the table and in models that users changed."""

import importlib
import json
from dataclasses import replace

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

import gpt_lightning.model.gpt
import gpt_lightning.tune.verify.checks
import gpt_lightning.tune.verify.miniature
import gpt_lightning.tune.verify.verb
from gpt_lightning.cli import main
from gpt_lightning.model.cross_entropy import IGNORED
from gpt_lightning.model.facts import Facts
from gpt_lightning.model.gpt import MLP, Block, GPTConfig
from gpt_lightning.model.loss import CrossEntropy, MicroStep, TokenLoss, linear_cross_entropy
from gpt_lightning.model.own_block import MakeBlock, import_block
from gpt_lightning.model.parametrization import parametrization
from gpt_lightning.model.readout import Readout
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.run.fit import run
from gpt_lightning.tune.verify.equivalence import SIGMAS, initial_std
from gpt_lightning.tune.verify.miniature import Miniature, batch, mean_loss
from gpt_lightning.tune.verify.verb import VerifyResult, code_digest, verify
from tests.fixtures import arguments, write_text

# Untied, so that the head has rules of its own, and with wider heads, so that the attention scale has.
MUP = GPTConfig(
    d_model=256, n_heads=8, parametrization="mup", base_d_model=64, base_d_head=8, tie_embedding=False, n_layers=4
)
COMPLETEP = replace(MUP, parametrization="completep", base_n_layers=2)
DUPLICATION = "loss difference, width x2, x4"
CLIPPED = f"{DUPLICATION}, clipped"
ADAMW, MUON = OptimConfig(), OptimConfig(name="muon")


def check(gpt: GPTConfig, optim: OptimConfig = ADAMW, block: MakeBlock = Block) -> VerifyResult:
    return verify(gpt, optim, block, seeds=1)


def measured(result: VerifyResult, name: str) -> float:
    return next(row.measured for row in result.checks if row.name == name)


def plant(monkeypatch, change) -> None:
    """Make the table what `change(config, table)` says, for the model and for the optimizer."""

    def changed(config, hidden_update="adamw"):
        return change(config, parametrization(config, hidden_update))

    for module in (gpt_lightning.model.gpt, gpt_lightning.model.initialization, gpt_lightning.tune.verify.miniature):
        monkeypatch.setattr(module, "parametrization", changed)


def role_mistake(*roles: str, **numbers):
    """The table with other numbers for some roles; a number may be a function of the width multiplier."""

    def change(config, table):
        m = config.width_multiplier
        values = {key: value(m) if callable(value) else value for key, value in numbers.items()}
        return replace(table, roles={r: replace(n, **values) if r in roles else n for r, n in table.roles.items()})

    return change


def inverse(m: float) -> float:
    return 1 / m


ALL = ("embedding", "hidden", "vector", "final_vector", "readout")
MISTAKES = {
    "hidden lr": role_mistake("hidden", lr=1.0),
    "hidden weight decay": role_mistake("hidden", weight_decay=1.0),
    "eps": role_mistake(*ALL, eps=1.0),
    "no output multiplier": lambda config, table: replace(table, readout=1.0),
    "1/sqrt(d_head)": lambda config, table: replace(table, attention_scale=(config.d_model // config.n_heads) ** -0.5),
    "embedding lr": role_mistake("embedding", lr=inverse),
    "head lr": role_mistake("readout", lr=inverse),
    "vector lr": role_mistake("vector", "final_vector", lr=inverse),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_single_mistake_in_the_table_fails(mistake, monkeypatch):
    plant(monkeypatch, MISTAKES[mistake])
    result = check(MUP)
    assert {DUPLICATION, CLIPPED} <= set(result.failed)
    assert measured(result, DUPLICATION) > 1e-3  # nine orders of magnitude above the tolerance


RIGHT = {
    "wider heads": (MUP, ADAMW),
    "more heads, tied": (replace(MUP, base_d_head=None, tie_embedding=True), ADAMW),
    "both": (replace(MUP, base_d_head=16), ADAMW),
    "banded, no bias, d_ff": (replace(MUP, attention_pattern=("dense", "banded"), bias=False, d_ff=600), ADAMW),
    "completep": (COMPLETEP, ADAMW),
    "one layer": (replace(MUP, n_layers=1), ADAMW),
    "lr_ratios": (MUP, OptimConfig(lr_ratios={"embedding": 10.0, "vector": 0.5}, decay_embeddings=False)),
    "muon": (MUP, MUON),
    "muon, original": (COMPLETEP, replace(MUON, adjust_lr="original", cautious_weight_decay=True)),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "one layer")) for n in RIGHT])
def test_right_models_pass(name):
    result = check(*RIGHT[name])
    assert result.failed == []
    assert measured(result, DUPLICATION) < 1e-13 and measured(result, CLIPPED) < 1e-13


@pytest.mark.slow
@pytest.mark.parametrize("adjust_lr", ["match_rms_adamw", "original"])
def test_muon_with_the_other_rules_learning_rate_fails(adjust_lr, monkeypatch):
    wrong = {"match_rms_adamw": 1.0, "original": lambda m: m**-0.5}[adjust_lr]
    plant(monkeypatch, role_mistake("hidden", lr=wrong, weight_decay=1.0))
    assert DUPLICATION in check(MUP, replace(MUON, adjust_lr=adjust_lr)).failed


@pytest.mark.slow
def test_a_clipping_norm_that_shrinks_with_width_fails_when_clipped(monkeypatch):
    plant(monkeypatch, role_mistake(*ALL, grad_weight=1.0))
    assert check(MUP).failed == [CLIPPED]


@pytest.mark.slow
def test_wrong_initial_weights_fail_though_training_is_right(monkeypatch):
    plant(monkeypatch, role_mistake("hidden", init_std=1.0))
    failed = check(MUP).failed
    assert "initial std over widths: hidden" in failed and not {DUPLICATION, CLIPPED} & set(failed)


@pytest.mark.parametrize(
    ("gpt", "law", "change"),
    [
        (MUP, "over widths: embedding", role_mistake("embedding", init_std=inverse)),
        (MUP, "over widths: readout", role_mistake("readout", init_std=lambda m: m**-0.5)),
        (MUP, "over depths: residual", lambda config, table: replace(table, residual_init=0.5)),
        (COMPLETEP, "over depths: residual", lambda config, table: replace(table, residual_init=config.n_layers**-0.5)),
    ],
)
def test_each_law_of_the_initial_weights_is_asserted(gpt, law, change, monkeypatch):
    plant(monkeypatch, change)
    laws = initial_std(Miniature.of(gpt, Block, n_heads=4, n_layers=2))
    assert [name for name, found in laws.items() if found["sigmas"] > SIGMAS] == [law]


@pytest.mark.slow
def test_over_depths_completep_holds_and_the_others_do_not(monkeypatch):
    stream = "movement over depths: residual stream"
    assert abs(measured(check(COMPLETEP), stream)) < 0.05
    mup = check(MUP)
    assert measured(mup, stream) > 0.7 and mup.passed  # nothing was claimed
    plant(monkeypatch, lambda config, table: replace(table, residual=table.residual**0.5))
    assert check(COMPLETEP).failed == [stream]


@pytest.mark.slow
def test_standard_does_not_transfer():
    result = check(replace(COMPLETEP, parametrization="standard"))
    expected = {DUPLICATION, CLIPPED, "initial std over widths: hidden", "movement over widths: logits"}
    assert expected <= set(result.failed)
    assert measured(result, "movement over depths: residual stream") > 0.7


class RMSBlock(Block):
    """RMSNorm instead of LayerNorm."""

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.ln_1, self.ln_2 = nn.RMSNorm(config.d_model), nn.RMSNorm(config.d_model)


class GatedMLP(MLP):
    def __init__(self, d_model: int, d_ff: int):
        super().__init__(d_model, d_ff, 0.0, bias=True)
        self.gate = nn.Linear(d_model, d_ff)
        self.scale = nn.Parameter(torch.full((d_model,), 0.5))

    def forward(self, x):
        return self.proj(F.silu(self.gate(x)) * self.fc(x)) * self.scale


class GatedBlock(Block):
    """A gated MLP with a scale per channel."""

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.mlp = GatedMLP(config.d_model, config.d_ff or 2 * config.d_model)


class WrongRoleBlock(GatedBlock):
    """Takes the gate for an embedding."""

    def parameter_facts(self):
        return {"mlp.gate.weight": Facts("embedding")}


class WrongScaleBlock(GatedBlock):
    """Attention as everywhere else."""

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.attn.scale = (config.d_model // config.n_heads) ** -0.5


class UnscaledInitBlock(GatedBlock):
    """Initialises its gate by itself, at every width alike."""

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        nn.init.normal_(self.mlp.gate.weight, std=0.02)

    def parameter_facts(self):
        return {"mlp.gate.weight": Facts("hidden", std=None)}


@pytest.mark.slow
@pytest.mark.parametrize("block", [RMSBlock, GatedBlock])
@pytest.mark.parametrize("gpt", [MUP, COMPLETEP], ids=lambda gpt: gpt.parametrization)
def test_changed_models_that_are_right_pass(block, gpt):
    assert check(gpt, block=block).failed == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "failed"),
    [
        (WrongRoleBlock, DUPLICATION),
        (WrongScaleBlock, DUPLICATION),
        (UnscaledInitBlock, "initial std over widths: hidden"),
    ],
)
def test_changed_models_that_are_wrong_fail(block, failed):
    assert failed in check(MUP, block=block).failed


class Focal(TokenLoss):
    """A right loss with all that makes copies hard to compare: state, a share of random targets, weights as counts."""

    def __init__(self, gamma: float = 1.0):
        super().__init__()
        self.gamma = gamma
        self.register_buffer("scale", torch.ones(()))

    def per_token(self, logits, targets):
        nats = F.cross_entropy(logits, targets, reduction="none")
        return (1 - torch.exp(-nats)) ** self.gamma * nats

    def forward(self, step):
        kept = torch.where(torch.rand(step.targets.shape) < 0.8, step.targets, IGNORED)
        total, count = super().forward(replace(step, targets=kept))
        self.scale += 1
        return total / self.scale, count * 1.5


class Penalised(Focal):
    """Wrong: the penalty grows with the width."""

    def forward(self, step):
        total, count = super().forward(step)
        return total + step.hidden.square().sum(), count


class OneVocabulary(TokenLoss):
    def per_token(self, logits, targets):
        return F.cross_entropy(logits, targets, torch.ones(50257, dtype=logits.dtype), reduction="none")


class Float32(TokenLoss):
    def per_token(self, logits, targets):
        return F.cross_entropy(logits.float(), targets, reduction="none")


@pytest.mark.slow
def test_a_loss_of_ones_own_is_what_the_miniatures_train_on():
    """Each starts anew with it, and draws the random numbers of the others; a loss that depends on the width fails."""
    right = verify(MUP, ADAMW, seeds=1, loss=Focal())
    assert right.failed == [] and measured(right, DUPLICATION) < 1e-13
    assert right.over_widths != check(MUP).over_widths
    assert {DUPLICATION, CLIPPED} <= set(verify(MUP, ADAMW, seeds=1, loss=Penalised()).failed)


def test_the_built_in_loss_is_bit_for_bit_the_mean_cross_entropy():
    random = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(8, 16, 8, generator=random), torch.randn(32, 8, generator=random)
    tokens, targets = batch(0)
    found = mean_loss(CrossEntropy(), MicroStep(hidden, Readout(weight), tokens, targets, 0.0))
    assert torch.equal(found, linear_cross_entropy(hidden, Readout(weight), targets))
    assert found.item() == pytest.approx(F.cross_entropy((hidden @ weight.T).mT, targets).item(), rel=1e-6)


def never(*args):
    raise AssertionError("measured again")


def command(tmp_path, *options: str) -> list[str]:
    return ["tune", "verify", *arguments({"tune.dir": tmp_path / "verify"}), *options]


@pytest.mark.slow
def test_the_verb_fails_a_standard_stack_and_writes_an_overlay_that_fit_takes(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(gpt_lightning.tune.verify.verb, "SEEDS", 1)
    assert main(command(tmp_path)) == 1
    out, err = capfd.readouterr()
    assert out.rstrip().splitlines()[-1].startswith("recommendation: FAIL: with parametrization standard") and err == ""
    tuned, result = (tmp_path / "verify" / name for name in ("tuned.yaml", "result.json"))
    assert yaml.safe_load(tuned.read_text()) == {"model": {"gpt": {"parametrization": "mup", "base_d_model": 16}}}
    assert json.loads(result.read_text())["passed"] is False and (tmp_path / "verify" / "figure.png").is_file()
    corpus = {"data.corpus": write_text(tmp_path / "text.txt"), "data.corpora_dir": tmp_path / "corpora"}
    run([f"--config={tuned}", *arguments({**corpus, "run_dir": tmp_path / "run"})])
    assert "parametrization: mup" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.slow
def test_the_verb_passes_mup_resumes_and_refuses_another_identity(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(gpt_lightning.tune.verify.verb, "SEEDS", 1)
    mup = ["--model.gpt.parametrization=mup", "--model.gpt.base_d_model=8"]
    assert main(command(tmp_path, *mup)) == 0
    first = capfd.readouterr().out
    assert (
        first.rstrip()
        .splitlines()[-1]
        .startswith("recommendation: PASS: what you tune at d_model 8 holds at other widths")
    )
    monkeypatch.setattr(gpt_lightning.tune.verify.checks, "movements", never)
    assert main(command(tmp_path, *mup, "--model.optim.lr=0.5")) == 0  # which the miniatures do not take
    assert capfd.readouterr().out == first
    assert main(command(tmp_path, *mup, "--model.optim.name=muon")) == 2
    assert "model.optim.name 'adamw' (now 'muon')" in capfd.readouterr().err


def test_a_mended_model_is_measured_anew(tmp_path, monkeypatch):
    file = tmp_path / "my_changed_block.py"
    file.write_text("from gpt_lightning.model.gpt import Block\n\n\nclass MyBlock(Block):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    my_block = import_block("my_changed_block.MyBlock")
    before = code_digest(my_block, MUP)
    assert before == code_digest(my_block, MUP) != code_digest(Block, MUP)
    file.write_text(file.read_text() + "# mended\n")
    mended = code_digest(my_block, MUP)
    assert mended != before
    (tmp_path / "my_changed_loss.py").write_text(
        "from gpt_lightning.model.loss import CrossEntropy\n\n\nclass MyLoss(CrossEntropy):\n    pass\n"
    )
    my_loss = importlib.import_module("my_changed_loss").MyLoss()
    with_loss = code_digest(my_block, MUP, my_loss)
    (tmp_path / "my_changed_loss.py").write_text("# mended\n")
    assert mended != with_loss != code_digest(my_block, MUP, my_loss)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("nowhere.MyBlock", "No module named 'nowhere'"),
        ("gpt_lightning.model.gpt.Blok", "has no attribute 'Blok'"),
        ("collections.OrderedDict", "to be a subclass of <class 'Module'>"),
        ("os.system", "to be a function that returns <class 'Module'>"),
    ],
)
def test_a_bad_block_is_one_line(block, message, tmp_path, capfd):
    assert main(command(tmp_path, f"--model.block={block}")) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "verify").exists()


@pytest.mark.parametrize(
    ("loss", "message"),
    [("OneVocabulary", "with a vocabulary of 32 it stops with RuntimeError"), ("Float32", "makes torch.float32")],
)
def test_a_loss_that_cannot_be_followed_is_one_line(loss, message, tmp_path, capfd):
    assert main(command(tmp_path, f"--model.loss={__name__}.{loss}")) == 2
    error = capfd.readouterr().err
    assert f"model.loss {loss} cannot be verified" in error and message in error and error.count("\n") == 1


@pytest.mark.slow
def test_the_verb_takes_the_loss_of_the_stack(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(gpt_lightning.tune.verify.verb, "SEEDS", 1)
    mup = ["--model.gpt.parametrization=mup", "--model.gpt.base_d_model=8"]
    own = [*mup, f"--model.loss={__name__}.Penalised", "--model.loss.gamma=2"]
    assert main(command(tmp_path, *own)) == 1
    assert DUPLICATION in capfd.readouterr().out
    assert main(command(tmp_path, *mup)) == 2
    assert f"model.loss.class_path '{__name__}.Penalised' (now 'gpt_lightning" in capfd.readouterr().err
    assert main(command(tmp_path, *own, "--model.loss.gamma=3")) == 2
    assert "model.loss.init_args.gamma 2.0 (now 3.0)" in capfd.readouterr().err


@pytest.mark.slow
def test_the_verb_takes_the_block_of_the_stack(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(gpt_lightning.tune.verify.verb, "SEEDS", 1)
    mup = ["--model.gpt.parametrization=mup", "--model.gpt.base_d_model=8", "--model.gpt.base_d_head=4"]
    assert main(command(tmp_path, *mup, f"--model.block={__name__}.WrongScaleBlock")) == 1
    assert DUPLICATION in capfd.readouterr().out

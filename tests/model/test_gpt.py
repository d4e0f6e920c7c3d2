"""The architecture against the paper's numbers, and proof that it learns."""

import math
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from torch.nn import functional as F

from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.gpt3 import GPT3_ROWS, GPT3_TOKENS
from gpt_lightning.model.parametrization import Role

CONFIGS = Path(__file__).parents[2] / "configs" / "model"


def tiny(**settings) -> GPTConfig:
    values = {"vocab_size": 50, "context_length": 16, "n_layers": 2, "n_heads": 2, "d_model": 32}
    return GPTConfig(**{**values, **settings})


def config_of_row(name: str) -> GPTConfig:
    overlay = yaml.safe_load((CONFIGS / f"gpt3-{name}.yaml").read_text())
    settings = {**overlay["model"]["gpt"], "context_length": overlay["data"]["context_length"]}
    settings["attention_pattern"] = tuple(settings["attention_pattern"])
    return GPTConfig(vocab_size=50257, **settings)


@pytest.mark.parametrize("row", GPT3_ROWS, ids=lambda row: row.name)
def test_each_row_of_the_gpt3_table_has_the_papers_size(row):
    """Parameters to half of the last of the three digits, or for the largest four, that Table D.1 prints."""
    config = config_of_row(row.name)
    assert (config.n_layers, config.d_model, config.n_heads) == (row.n_layers, row.d_model, row.n_heads)
    assert row.n_heads * row.d_head == row.d_model and config.context_length == 2048
    with torch.device("meta"):
        gpt = GPT(config)
    n_params = sum(p.numel() for p in gpt.parameters())
    last_digit = 1 if row.n_params_millions < 1000 else 10 if row.n_params_millions < 1e5 else 100
    assert abs(n_params / 1e6 - row.n_params_millions) <= last_digit / 2
    embedding = (50257 + 2048) * row.d_model
    assert row.n_params_non_embedding == n_params - embedding


@pytest.mark.parametrize("row", GPT3_ROWS, ids=lambda row: row.name)
def test_the_papers_compute_is_six_flops_per_parameter_and_token(row):
    """Table D.1 has 6 x parameters x 300 billion tokens in petaflop days of 8.64e19 FLOP."""
    assert row.petaflop_days == pytest.approx(6 * row.n_params_millions * 1e6 * GPT3_TOKENS / 8.64e19, rel=0.005)


def test_there_is_one_config_per_row():
    assert {path.stem.removeprefix("gpt3-") for path in CONFIGS.glob("gpt3-*.yaml")} == {row.name for row in GPT3_ROWS}


def test_initial_weights_are_gpt2s():
    torch.manual_seed(0)
    gpt = GPT(tiny(vocab_size=1000, context_length=256, n_layers=8, d_model=128, tie_embedding=False))
    for name, weight in gpt.named_parameters():
        if name.endswith("bias"):
            assert not weight.any(), name
        elif ".ln_" in name or name.startswith("ln_"):
            assert torch.all(weight == 1), name
        else:
            std = 0.02 / math.sqrt(2 * 8) if name.endswith(("attn.proj.weight", "mlp.proj.weight")) else 0.02
            assert abs(weight.mean().item()) < 5 * std / math.sqrt(weight.numel()), name
            assert weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * weight.numel())), name


def test_the_first_loss_is_that_of_a_uniform_guess():
    torch.manual_seed(0)
    tokens = torch.randint(0, 50, (8, 17))
    logits = GPT(tiny())(tokens[:, :-1])
    assert F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item() == pytest.approx(math.log(50), abs=0.1)


@pytest.mark.parametrize("tie_embedding", [True, False])
def test_every_parameter_has_one_role(tie_embedding):
    gpt = GPT(tiny(tie_embedding=tie_embedding))
    roles = {name: facts.role for name, facts in gpt.facts().items()}
    assert set(roles) == {name for name, _ in gpt.named_parameters()}
    assert set(roles.values()) <= set(get_args(Role))
    by_role = {role: {name for name in roles if roles[name] == role} for role in get_args(Role)}
    assert by_role["embedding"] == {"wte.weight", "wpe.weight"}
    assert by_role["readout"] == (set() if tie_embedding else {"lm_head.weight"})
    assert len(by_role["hidden"]) == 2 * 4  # qkv, proj, fc, proj
    assert len(by_role["vector"]) == 2 * (4 + 2 * 2)  # their biases, two LayerNorms
    assert by_role["final_vector"] == {"ln_f.weight", "ln_f.bias"}


def test_a_width_that_the_heads_do_not_divide_names_the_nearest():
    with pytest.raises(ValueError, match="d_model 100 is not divisible by n_heads 12; nearest d_model: 96 or 108"):
        GPTConfig(d_model=100, n_heads=12)


@pytest.mark.parametrize("settings", [{"dropout": 1.0}, {"n_layers": 0}, {"attention_pattern": ()}, {"d_ff": 0}])
def test_settings_that_make_no_model_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        tiny(**settings)


def test_wrong_shapes_are_noticed_in_the_tests():
    with pytest.raises(Exception, match="hidden_states|tokens"):
        GPT(tiny()).hidden_states(torch.zeros(3, dtype=torch.int64))


def test_a_tiny_model_learns_eight_sequences_by_heart():
    torch.manual_seed(0)
    tokens = torch.randint(0, 50, (8, 17))
    tokens[:, 0] = torch.arange(8)  # else the second token could not be known
    gpt = GPT(tiny(d_model=64, attention_pattern=("dense", "banded"), band_width=4))
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=3e-3)
    for _ in range(100):
        loss = F.cross_entropy(gpt(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert torch.equal(gpt(tokens[:, :-1]).argmax(-1), tokens[:, 1:])


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    gpt = GPT(tiny(tie_embedding=False))
    tokens = torch.randint(0, 50, (2, 17))
    F.cross_entropy(gpt(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    assert [name for name, p in gpt.named_parameters() if p.grad is None or not p.grad.any()] == []

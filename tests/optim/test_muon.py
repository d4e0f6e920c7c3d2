"""Muon against torch.optim.Muon, against singular values, and as one optimizer beside AdamW."""

import math

import pytest
import torch

from gpt_lightning.model.facts import Facts
from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.parametrization import RoleNumbers, parametrization
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.optim.muon import orthogonalize
from gpt_lightning.optim.optimizer import build_optimizer

SHAPES = [(24, 24), (48, 16), (16, 48)]


def muon_of(parameters: dict[str, torch.Tensor], parts: tuple[int, ...] = (), **settings):
    facts = {name: Facts("hidden", parts=parts) for name in parameters}
    return build_optimizer(parameters, facts, OptimConfig(name="muon", **settings), {"hidden": RoleNumbers()})


@pytest.mark.parametrize("adjust_lr", ["original", "match_rms_adamw"])
def test_ten_steps_are_those_of_torch(adjust_lr, monkeypatch):
    """torch runs Newton-Schulz in bf16; here both do, so that they must agree to its last bit or two."""
    monkeypatch.setattr("gpt_lightning.optim.muon.orthogonalize", lambda x: orthogonalize(x, torch.bfloat16))
    torch.manual_seed(0)
    theirs = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    ours = {f"w{i}": torch.nn.Parameter(p.detach().clone()) for i, p in enumerate(theirs)}
    a = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn=adjust_lr)
    b = muon_of(ours, lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr=adjust_lr)
    for _ in range(10):
        for p, q in zip(theirs, ours.values(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(theirs, ours.values(), strict=True):
        start_to_end = 10 * 0.02 * (0.2 * math.sqrt(max(p.shape)) if adjust_lr == "match_rms_adamw" else 1)
        assert (p - q).abs().max() < 2e-3 * start_to_end


def test_an_orthogonalised_matrix_has_the_singular_vectors_of_the_gradient_and_values_near_one():
    torch.manual_seed(0)
    for shape in SHAPES:
        x = torch.randn(3, *shape, dtype=torch.float64)
        values = torch.linalg.svdvals(orthogonalize(x))
        assert values.min() > 0.3 and values.max() < 1.3
        u, _, vh = torch.linalg.svd(x, full_matrices=False)
        core = u.mT @ orthogonalize(x) @ vh.mT
        off_diagonal = core - torch.diag_embed(torch.diagonal(core, dim1=1, dim2=2))
        assert off_diagonal.abs().max() < 1e-12


@pytest.mark.parametrize("adjust_lr", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("rows", [(8, 8, 8), (8, 4, 4), (16, 4, 4)], ids=str)
def test_the_parts_of_a_matrix_are_updated_as_if_each_were_alone(rows, adjust_lr):
    torch.manual_seed(0)
    whole = torch.nn.Parameter(torch.randn(sum(rows), 8))
    alone = {name: torch.nn.Parameter(p.detach().clone()) for name, p in zip("qkv", whole.split(rows), strict=True)}
    whole.grad = torch.randn_like(whole)
    for p, grad in zip(alone.values(), whole.grad.split(rows), strict=True):
        p.grad = grad.clone()
    settings = {"lr": 0.1, "weight_decay": 0.5, "cautious_weight_decay": True, "adjust_lr": adjust_lr}
    muon_of({"qkv": whole}, rows, **settings).step()
    muon_of(alone, **settings).step()
    torch.testing.assert_close(whole.detach(), torch.cat([p.detach() for p in alone.values()]), atol=1e-6, rtol=0)


def test_the_parts_are_the_models_also_after_a_checkpoint_was_loaded():
    weight = torch.nn.Parameter(torch.randn(16, 8))
    saved = muon_of({"qkv": weight}, (8, 8)).state_dict()
    del saved["param_groups"][0]["parts"]  # as in checkpoints of earlier versions
    optimizer = muon_of({"qkv": weight}, (8, 4, 4))
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["parts"] == (8, 4, 4)


def test_muon_refuses_what_is_no_matrix_by_name():
    with pytest.raises(ValueError, match="blocks.0.conv.weight has 3 dimensions"):
        muon_of({"blocks.0.conv.weight": torch.nn.Parameter(torch.randn(4, 4, 3))})


def test_cautious_decay_acts_only_where_the_update_shrinks_the_weight():
    torch.manual_seed(0)
    start, grad = torch.randn(8, 8), torch.randn(8, 8)
    moved = {}
    for name, settings in {
        "none": {"weight_decay": 0.0},
        "plain": {"weight_decay": 0.5},
        "cautious": {"weight_decay": 0.5, "cautious_weight_decay": True},
    }.items():
        p = torch.nn.Parameter(start.clone())
        p.grad = grad.clone()
        muon_of({"w": p}, lr=0.1, **settings).step()
        moved[name] = p.detach()
    shrinks = (start - moved["none"]) * start >= 0
    assert 0 < shrinks.sum() < shrinks.numel()
    torch.testing.assert_close(moved["cautious"], torch.where(shrinks, moved["plain"], moved["none"]))
    torch.testing.assert_close(moved["plain"], moved["none"] - 0.1 * 0.5 * start)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_gradient_that_is_not_finite_changes_nothing(name):
    gpt = GPT(GPTConfig(vocab_size=11, context_length=8, n_layers=2, n_heads=2, d_model=8))
    config = OptimConfig(name=name, lr=0.1)
    numbers = parametrization(gpt.config, config.hidden_update).roles
    optimizer = build_optimizer(dict(gpt.named_parameters()), gpt.facts(), config, numbers)
    for bad in (False, True):
        for p in gpt.parameters():
            p.grad = torch.randn_like(p)
        if bad:
            gpt.blocks[0].mlp.fc.weight.grad[0, 0] = math.inf
            gpt.wte.weight.grad[0, 0] = math.nan
        before = [p.detach().clone() for p in gpt.parameters()]
        state = [v.clone() for s in optimizer.state.values() for v in s.values()]
        optimizer.found_inf = torch.tensor(float(bad))
        optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(before, gpt.parameters(), strict=True)) == bad
        if bad:
            after = [v for s in optimizer.state.values() for v in s.values()]
            assert all(torch.equal(a, b) for a, b in zip(state, after, strict=True))


def test_hidden_matrices_go_to_muon_and_all_else_to_adamw():
    gpt = GPT(GPTConfig(vocab_size=11, context_length=8, n_layers=2, n_heads=2, d_model=8, tie_embedding=False))
    config = OptimConfig(name="muon")
    numbers = parametrization(gpt.config, config.hidden_update).roles
    optimizer = build_optimizer(dict(gpt.named_parameters()), gpt.facts(), config, numbers)
    by_muon = {id(p) for group in optimizer.param_groups if group["algorithm"] == "muon" for p in group["params"]}
    hidden = {id(p) for name, p in gpt.named_parameters() if gpt.facts()[name].role == "hidden"}
    assert by_muon == hidden and len(hidden) == 8
    for p in gpt.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    names = {id(p): set(optimizer.state[p]) for p in gpt.parameters()}
    for number, state in names.items():
        assert state == ({"momentum_buffer"} if number in hidden else {"step", "exp_avg", "exp_avg_sq"})

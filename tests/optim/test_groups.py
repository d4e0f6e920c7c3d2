"""Parameter groups: every parameter once, decay by role."""

import pytest
import torch

from gpt_lightning.model.facts import Facts
from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.parametrization import RoleNumbers, parametrization
from gpt_lightning.optim.config import OptimConfig, timescale_weight_decay
from gpt_lightning.optim.groups import gradient_norm, parameter_groups
from gpt_lightning.optim.optimizer import build_optimizer

TINY = GPTConfig(vocab_size=11, context_length=8, n_layers=2, n_heads=2, d_model=8)


def groups_of(config: OptimConfig, **options):
    gpt = GPT(GPTConfig(**{**TINY.__dict__, **options}))
    return gpt, parameter_groups(dict(gpt.named_parameters()), gpt.facts(), config, parametrization(gpt.config).roles)


@pytest.mark.parametrize("tie_embedding", [True, False])
def test_every_parameter_is_in_exactly_one_group(tie_embedding):
    gpt, groups = groups_of(OptimConfig(), tie_embedding=tie_embedding)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in gpt.parameters())


def test_vectors_are_never_decayed_and_matrices_are():
    _, groups = groups_of(OptimConfig(weight_decay=0.3))
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.ndim == 2 else 0.0)


def test_decay_of_embeddings_is_a_choice():
    for choice, expected in ((True, 0.1), (False, 0.0)):
        _, groups = groups_of(OptimConfig(weight_decay=0.1, decay_embeddings=choice))
        decay = {group["name"]: group["weight_decay"] for group in groups}
        assert decay == {
            "embedding": expected,
            "hidden 8+8+8": 0.1,
            "hidden": 0.1,
            "vector": 0.0,
            "final_vector": 0.0,
        }


def test_a_parameter_without_a_role_is_named():
    with pytest.raises(ValueError, match="stray"):
        parameter_groups({"stray": torch.zeros(1)}, {}, OptimConfig(), {})


def test_the_fused_step_is_adamw_by_hand():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64)[:, None])
    config = OptimConfig(lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    optimizer = build_optimizer({"w": weight}, {"w": Facts("hidden")}, config, {"hidden": RoleNumbers()})
    weight.grad = torch.tensor([0.5, 0.25], dtype=torch.float64)[:, None]
    optimizer.step()
    # First step: the bias-corrected moments are g and g^2, so the update is the sign of the gradient.
    expected = torch.tensor([1.0, -2.0], dtype=torch.float64) * (1 - 0.1 * 0.1) - 0.1
    torch.testing.assert_close(weight.detach()[:, 0], expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"weight_decay": -0.1}, {"betas": (0.9, 1.0)}, {"eps": 0.0}])
def test_impossible_settings_are_refused_by_name(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        OptimConfig(**options)


def test_a_ratio_of_8_to_1_is_what_weights_move_by():
    parameters = {name: torch.nn.Parameter(torch.zeros(3, 3)) for name in ("h", "e")}
    config = OptimConfig(lr=0.01, lr_ratios={"hidden": 8.0}, weight_decay=0.0)
    facts = {"h": Facts("hidden"), "e": Facts("embedding")}
    optimizer = build_optimizer(parameters, facts, config, {"hidden": RoleNumbers(), "embedding": RoleNumbers()})
    for group in optimizer.param_groups:
        group["lr"] = 0.02  # as a scheduler, or Lightning's finder, sets it: the same for all
    for parameter in parameters.values():
        parameter.grad = torch.ones(3, 3)
    optimizer.step()
    assert parameters["e"].abs().mean().item() == pytest.approx(0.02, rel=1e-4)
    assert parameters["h"].abs().mean().item() == pytest.approx(0.16, rel=1e-4)


def test_the_clipped_norm_is_the_global_one_and_counts_roles_by_weight():
    a, b = (torch.nn.Parameter(torch.zeros(4)) for _ in range(2))
    a.grad, b.grad = torch.full((4,), 3.0), torch.full((4,), 4.0)
    assert gradient_norm([{"params": [a]}, {"params": [b]}]).item() == pytest.approx(10.0)
    weighed = gradient_norm([{"params": [a], "grad_weight": 4.0}, {"params": [b], "grad_weight": 1.0}])
    assert weighed.item() == pytest.approx((4 * 36 + 64) ** 0.5)


def test_the_timescale_rule_by_hand():
    # tau = 1.084 x 20^-0.527 = 0.22354; B / (lr D tau) = 500,000 / (6e-4 x 2e9 x 0.22354) = 1.8639
    assert timescale_weight_decay(6e-4, 500_000, 2e9, 1e8) == pytest.approx(1.8639, rel=1e-3)
    with pytest.raises(ValueError, match="lr_ratios hidden -1"):
        OptimConfig(lr_ratios={"hidden": -1.0})

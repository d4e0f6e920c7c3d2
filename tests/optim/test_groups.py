"""Parameter groups: every parameter once, decay by role."""

import pytest
import torch

from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.parametrization import RoleNumbers, parametrization
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.optim.groups import parameter_groups
from gpt_lightning.optim.optimizer import build_optimizer

TINY = GPTConfig(vocab_size=11, context_length=8, n_layers=2, n_heads=2, d_model=8)


def groups_of(config: OptimConfig, **options):
    gpt = GPT(GPTConfig(**{**TINY.__dict__, **options}))
    return gpt, parameter_groups(dict(gpt.named_parameters()), gpt.roles(), config, parametrization(gpt.config).roles)


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
            "hidden_x3": 0.1,
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
    optimizer = build_optimizer({"w": weight}, {"w": "hidden"}, config, {"hidden": RoleNumbers()})
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

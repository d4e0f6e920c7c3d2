"""The table of width- and depth-dependent numbers, by hand, and that at the base all three columns are one model."""

from dataclasses import replace

import pytest
import torch

from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.loss import linear_cross_entropy
from gpt_lightning.model.parametrization import RoleNumbers, parametrization
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.optim.optimizer import build_optimizer

AT_BASE = GPTConfig(vocab_size=17, context_length=8, n_layers=2, n_heads=2, d_model=16, tie_embedding=False)
KINDS = ("standard", "mup", "completep")
# m = 4 and l = 3; heads of 16, at the base of 8.
LARGE = GPTConfig(
    n_layers=6,
    n_heads=4,
    d_model=64,
    parametrization="completep",
    base_d_model=16,
    base_n_layers=2,
    base_d_head=8,
)


def trained(config: GPTConfig, optim: OptimConfig) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of a few steps."""
    torch.manual_seed(0)
    gpt = GPT(config)
    numbers = parametrization(config, optim.hidden_update).roles
    optimizer = build_optimizer(dict(gpt.named_parameters()), gpt.facts(), optim, numbers)
    tokens, losses = torch.randint(0, 17, (4, 9)), []
    for _ in range(4):
        loss = linear_cross_entropy(gpt.hidden_states(tokens[:, :-1]), gpt.readout, tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, gpt.state_dict()


@pytest.mark.parametrize("optim", [OptimConfig(lr=1e-2), OptimConfig(name="muon", lr=1e-2)], ids=lambda o: o.name)
def test_at_base_width_and_depth_all_three_are_one_model_to_the_bit(optim):
    results = [trained(replace(AT_BASE, parametrization=k, base_d_model=16, base_n_layers=2), optim) for k in KINDS]
    losses, weights = results[0]
    assert losses[-1] < losses[0]
    for other_losses, other_weights in results[1:]:
        assert other_losses == losses
        assert all(torch.equal(value, weights[name]) for name, value in other_weights.items())


def test_away_from_the_base_they_are_three_models():
    first = [
        trained(replace(AT_BASE, parametrization=k, base_d_model=8, base_n_layers=1), OptimConfig()) for k in KINDS
    ]
    assert len({losses[-1] for losses, _ in first}) == 3


def test_completep_by_hand():
    numbers = parametrization(LARGE)
    assert numbers.roles["embedding"] == RoleNumbers(init_std=1, lr=1, weight_decay=1, eps=1 / 4, grad_weight=4)
    assert numbers.roles["hidden"] == RoleNumbers(init_std=1 / 2, lr=1 / 4, weight_decay=4, eps=1 / 12, grad_weight=3)
    assert numbers.roles["vector"] == RoleNumbers(init_std=1, lr=1, weight_decay=1, eps=1 / 12, grad_weight=12)
    assert numbers.roles["final_vector"] == numbers.roles["readout"] == numbers.roles["embedding"]
    assert numbers.residual == 1 / 3 and numbers.readout == 1 / 4
    assert numbers.residual_init == 1 / 2  # 1 / sqrt(2 x 2 layers at the base)
    assert numbers.attention_scale == pytest.approx(8**0.5 / 16)


def test_mup_leaves_what_follows_depth():
    numbers = parametrization(replace(LARGE, parametrization="mup"))
    assert numbers.roles["hidden"] == RoleNumbers(init_std=1 / 2, lr=1 / 4, weight_decay=4, eps=1 / 4, grad_weight=1)
    assert numbers.roles["vector"] == RoleNumbers(eps=1 / 4, grad_weight=4)
    assert numbers.residual == 1 and numbers.residual_init == pytest.approx(12**-0.5)


def test_standard_does_not_look_at_the_base():
    numbers = parametrization(replace(LARGE, parametrization="standard"))
    assert set(numbers.roles.values()) == {RoleNumbers()}
    assert (numbers.attention_scale, numbers.residual, numbers.readout) == (1 / 4, 1, 1)


@pytest.mark.parametrize(("update", "lr"), [("adamw", 1 / 4), ("match_rms_adamw", 1 / 2), ("original", 1)])
def test_hidden_learning_rate_and_decay_follow_the_update(update, lr):
    hidden = parametrization(LARGE, update).roles["hidden"]
    assert (hidden.lr, hidden.weight_decay) == (lr, 1 / lr)


def test_attention_scale_of_more_and_of_wider_heads():
    base = replace(LARGE, base_d_head=None)
    assert parametrization(replace(base, n_heads=8)).attention_scale == pytest.approx(8**-0.5)  # as if not wider
    assert parametrization(replace(base, n_heads=2, base_d_head=8)).attention_scale == pytest.approx(8**0.5 / 32)
    for d_model, n_heads in ((64, 8), (64, 2)):
        gpt = GPT(replace(base, d_model=d_model, n_heads=n_heads, base_d_head=8))
        assert gpt.blocks[0].attn.scale == pytest.approx(8**0.5 / (d_model // n_heads))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parametrization": "mup", "base_d_model": None}, "parametrization mup needs base_d_model"),
        ({"base_n_layers": None}, "parametrization completep needs base_n_layers"),
        ({"base_d_model": 0}, "base_d_model 0: must be at least 1"),
        ({"base_d_head": 0}, "base_d_head 0: must be at least 1"),
    ],
    ids=str,
)
def test_a_missing_or_impossible_base_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        replace(LARGE, **options)

"""Duplicated and folded models compute the same function, in float64 to the last digits."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gpt_lightning.model.gpt import GPT, Block, GPTConfig
from gpt_lightning.model.growth import duplicate_width, to_standard

BASE = GPTConfig(
    vocab_size=13,
    context_length=10,
    n_layers=3,
    n_heads=3,
    d_model=12,
    attention_pattern=("dense", "banded"),
    band_width=3,
    parametrization="completep",
    base_d_model=12,
    base_n_layers=2,
    base_d_head=4,
    init_std=0.4,
)
TOKENS = torch.randint(0, 13, (4, 10), generator=torch.Generator().manual_seed(0))


def build(config: GPTConfig, block: type[Block] = Block) -> GPT:
    """A model in float64 whose biases and LayerNorms matter."""
    torch.manual_seed(0)
    gpt = GPT(config, block).double()
    for name, parameter in gpt.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.3)
    return gpt


def widened(config: GPTConfig, heads: int, d_head: int) -> GPTConfig:
    d_ff = config.d_ff and config.d_ff * heads * d_head
    return replace(config, d_model=config.d_model * heads * d_head, n_heads=config.n_heads * heads, d_ff=d_ff)


@torch.no_grad()
def assert_same_function(a: GPT, b: GPT) -> None:
    expected, found = a(TOKENS), b(TOKENS)
    assert expected.std() > 0.3  # so that the tolerance means something
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("tie_embedding", [True, False])
@pytest.mark.parametrize(("heads", "d_head"), [(2, 1), (4, 1), (1, 2), (1, 4), (2, 2)])
@pytest.mark.parametrize("options", [{}, {"bias": False, "d_ff": 7}], ids=str)
def test_a_duplicated_model_is_the_same_function(tie_embedding, heads, d_head, options):
    config = replace(BASE, tie_embedding=tie_embedding, **options)
    small, wide = build(config), build(widened(config, heads, d_head))
    duplicate_width(small, wide)
    assert_same_function(small, wide)


class GatedBlock(Block):
    """A block that the user changed: a gate per head, one per channel, and a matrix of another name."""

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.head_gate = nn.Parameter(torch.zeros(config.n_heads))
        self.channel_gate = nn.Parameter(torch.ones(config.d_model))
        self.mixer = nn.Linear(config.d_model, config.d_model)

    def forward(self, x, mask=None, cache=None):
        x = super().forward(x, mask, cache)
        by_head = x.unflatten(-1, (len(self.head_gate), -1)) * self.head_gate[:, None]
        return x + self.residual_multiplier * torch.tanh(self.mixer(by_head.flatten(-2))) * self.channel_gate


@pytest.mark.parametrize(("heads", "d_head"), [(2, 1), (1, 2), (2, 2)])
def test_a_changed_model_is_duplicated_by_its_shapes_and_roles(heads, d_head):
    for config in (BASE, replace(BASE, n_heads=4, d_model=16, base_d_model=16)):  # as many heads as their width, too
        small, wide = build(config, GatedBlock), build(widened(config, heads, d_head), GatedBlock)
        duplicate_width(small, wide)
        assert_same_function(small, wide)


def test_what_does_not_grow_with_the_width_is_named():
    small = build(replace(BASE, d_ff=8))
    with pytest.raises(ValueError, match=r"blocks.0.mlp.fc.weight grows from 8 to 24; expected 8, or 2 x 8"):
        duplicate_width(small, build(replace(widened(BASE, 2, 1), d_ff=24)))
    with pytest.raises(ValueError, match="lm_head.weight"):
        duplicate_width(small, build(replace(widened(BASE, 2, 1), tie_embedding=False)))
    with pytest.raises(ValueError, match="2 heads of 12 are not whole multiples of 3 heads of 4"):
        duplicate_width(small, build(replace(BASE, d_model=24, n_heads=2)))


@pytest.mark.parametrize("tie_embedding", [True, False])
@pytest.mark.parametrize("parametrization", ["mup", "completep"])
@pytest.mark.parametrize("bias", [True, False])
def test_to_standard_is_the_same_function_and_leaves_its_source(tie_embedding, parametrization, bias):
    gpt = build(
        replace(
            BASE, base_d_model=6, base_d_head=2, parametrization=parametrization, tie_embedding=tie_embedding, bias=bias
        )
    )
    before = {name: value.clone() for name, value in gpt.state_dict().items()}
    standard = to_standard(gpt)
    assert standard.config.parametrization == "standard"
    assert standard.blocks[0].attn.scale == 0.5 and standard.readout_multiplier == 1
    assert standard.blocks[0].residual_multiplier == 1
    assert_same_function(gpt, standard)
    assert all(torch.equal(value, before[name]) for name, value in gpt.state_dict().items())


def test_a_standard_model_stays_itself():
    gpt = build(replace(BASE, parametrization="standard"))
    assert to_standard(gpt) is gpt

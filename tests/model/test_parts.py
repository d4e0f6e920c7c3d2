"""Norms, activations and rotary positions against torch's own and against their definitions."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gpt_lightning.model.activations import ACTIVATIONS, AT_ONCE
from gpt_lightning.model.attention import CausalSelfAttention
from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.gpt import GPT
from gpt_lightning.model.linear import Linear, after
from gpt_lightning.model.norm import EPS, RMSNorm
from gpt_lightning.model.readout import capped
from gpt_lightning.model.rotary import Rotary
from tests import blocks

DEFINITIONS = {
    "gelu": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "relu2": lambda x: torch.where(x > 0, x * x, 0.0),
    "swiglu": lambda x: x.chunk(2, -1)[0] / (1 + torch.exp(-x.chunk(2, -1)[0])) * x.chunk(2, -1)[1],
    "geglu": lambda x: DEFINITIONS["gelu"](x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
}


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_its_definition_with_its_gradients(name):
    activation = ACTIVATIONS[name]
    n_rows = AT_ONCE // 24 + 3  # more than fit at once
    x, layer = random(2, n_rows, 6 * activation.n_inputs), Linear(6, 4).double()
    inputs = x, layer.weight, layer.bias
    grad = random(2, n_rows, 4, seed=1).detach()
    expected = F.linear(DEFINITIONS[name](x), layer.weight, layer.bias)
    found = after(activation, layer, x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(activation.plain(x), DEFINITIONS[name](x), rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_under_bf16_autocast_an_activation_is_as_near_to_float64_as_autograds(name):
    activation, exact = ACTIVATIONS[name], Linear(64, 32).double()
    layer = Linear(64, 32)
    layer.load_state_dict(exact.state_dict())
    x = random(256, 64 * activation.n_inputs)
    grad = torch.autograd.grad(after(activation, exact, x).square().sum(), x)[0]
    near = x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours = torch.autograd.grad(after(activation, layer, near).float().square().sum(), near)[0]
        plain = F.linear(activation.plain(near.bfloat16()), layer.weight, layer.bias)
        theirs = torch.autograd.grad(plain.float().square().sum(), near)[0]
    assert (ours - grad).norm() < 1.3 * (theirs - grad).norm()


@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 4, 16)], ids=str)
def test_rms_norm_is_torchs_with_its_gradients(shape):
    ours, torchs = RMSNorm(16).double(), nn.RMSNorm(16, eps=EPS).double()
    for layer in (ours, torchs):
        layer.weight.data = random(16, seed=2).detach()
    x, grad = random(*shape), random(*shape, seed=1).detach()
    torch.testing.assert_close(ours(x), torchs(x), rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(ours(x), (x, ours.weight), grad),
        torch.autograd.grad(torchs(x), (x, torchs.weight), grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), torchs(x), rtol=1e-12, atol=1e-12)


def test_rms_norm_keeps_the_dtype_of_what_it_norms():
    for x in (random(3, 16, dtype=torch.bfloat16), random(3, 16, dtype=torch.bfloat16).detach()):
        with warnings.catch_warnings(action="error"), torch.autocast("cpu", torch.bfloat16):
            y = RMSNorm(16)(x)
        assert y.dtype == torch.bfloat16
        exact = F.rms_norm(x.double(), (16,), eps=EPS)
        torch.testing.assert_close(y.double(), exact, rtol=2e-2, atol=1e-3)


def test_rotary_is_a_product_of_complex_numbers():
    x, past = random(2, 5, 3, 8), 4
    angles = torch.outer(torch.arange(past, past + 5.0), 10_000.0 ** (-torch.arange(4) / 4)).double()
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    expected = torch.cat([turned.real, turned.imag], -1)
    found = Rotary(8, 16)(x, past)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # its table is in float32
    grad = random(2, 5, 3, 8, seed=1).detach()
    torch.testing.assert_close(
        torch.autograd.grad(found, x, grad), torch.autograd.grad(expected, x, grad), rtol=1e-6, atol=1e-6
    )


def test_queries_are_normed_before_they_turn_and_scores_depend_on_distance_alone():
    torch.manual_seed(0)
    attn = CausalSelfAttention(GPTConfig(d_model=16, n_heads=2, positions="rotary", qk_norm=True), scale=0.3)
    nn.init.normal_(attn.q_norm.weight)
    x = torch.randn(1, 1, 48)

    def score(query: int, key: int) -> torch.Tensor:
        q, k = attn._queries_keys_values(x, query)[0], attn._queries_keys_values(x, key)[1]
        return (q * k).sum(-1)

    torch.testing.assert_close(score(9, 4), score(25, 20), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(score(9, 4), score(9, 6), atol=1e-2)
    raw = x.unflatten(2, (6, 8))[:, :, :2].transpose(1, 2)
    normed = raw / (raw.square().mean(-1, keepdim=True) + EPS).sqrt() * attn.q_norm.weight
    torch.testing.assert_close(attn._queries_keys_values(x, 0)[0], normed)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("norm_place", ["before", "after", "both"])
def test_with_zero_init_every_layer_starts_as_the_identity_and_no_gradient_is_huge(parallel, norm_place):
    structure = {"zero_init": True, "parallel": parallel, "norm_place": norm_place}
    gpt = GPT(GPTConfig(16, 8, n_layers=2, n_heads=2, d_model=16, **structure))
    x = torch.randn(2, 8, 16)
    assert torch.equal(gpt.blocks[1](x), x)
    tokens = torch.arange(8)[None]
    F.cross_entropy(gpt(tokens)[0, :-1], tokens[0, 1:]).backward()
    norms = {name: p.grad.norm().item() for name, p in gpt.named_parameters()}
    assert max(norms.values()) < 3  # 240 where a norm's slope at 0 comes before what is 0
    assert all(norms[name] > 0 for name, facts in gpt.facts().items() if facts.residual and name.endswith("weight"))


def test_zero_init_starts_what_a_block_of_ones_own_declares_to_join_the_stream_at_zero():
    gpt = GPT(GPTConfig(16, 8, n_layers=2, n_heads=2, d_model=16, zero_init=True), blocks.ParallelBlock)
    x = torch.randn(2, 8, 16)
    assert torch.equal(gpt.blocks[1](x), x)


def test_a_softcap_holds_logits_within_it():
    torch.manual_seed(0)
    config = GPTConfig(16, 8, n_layers=1, n_heads=2, d_model=16, init_std=2.0)
    plain, soft = GPT(config), GPT(GPTConfig(**{**config.__dict__, "logit_softcap": 5.0}))
    soft.load_state_dict(plain.state_dict())
    tokens = torch.randint(0, 16, (2, 8))
    assert plain(tokens).abs().max() > 10 and soft(tokens).abs().max() < 5
    torch.testing.assert_close(soft(tokens), 5 * torch.tanh(plain(tokens) / 5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_kv_heads": 5}, "n_kv_heads 5: must divide n_heads 12"),
        ({"n_kv_heads": 0}, "n_kv_heads 0: must divide"),
        ({"positions": "rotary", "d_model": 36}, "the width of a head must be even, not 3"),
        ({"logit_softcap": 0.0}, "logit_softcap 0.0: must be above 0"),
    ],
)
def test_a_structure_that_cannot_be_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**settings)


@pytest.mark.parametrize("block", [blocks.GatedBlock, blocks.GroupedBlock])
@pytest.mark.parametrize("option", ["parallel", "value_residual"])
def test_what_only_the_built_in_block_does_is_refused_for_another(option, block):
    with pytest.raises(ValueError, match=f"{option} is for the built-in block; what {block.__name__} does"):
        GPT(GPTConfig(16, 8, n_layers=1, n_heads=2, d_model=16, **{option: True}), block)


def test_rotary_positions_are_refused_for_a_block_that_turns_nothing():
    with pytest.raises(ValueError, match="positions rotary: GroupedBlock has no Rotary"):
        GPT(GPTConfig(16, 8, n_layers=1, n_heads=2, d_model=16, positions="rotary"), blocks.GroupedBlock)


class Forgetful(nn.Module):
    """A layer that takes a cache and keeps nothing in it."""

    def __init__(self, config):
        super().__init__()
        self.out = nn.Linear(config.d_model, config.d_model)

    def forward(self, x, mask=None, cache=None):
        return x + self.out(x.cumsum(1))


def test_a_block_that_keeps_nothing_in_its_cache_can_be_scored_and_does_not_generate():
    gpt = GPT(GPTConfig(16, 8, n_layers=1, n_heads=2, d_model=16), Forgetful)
    gpt(torch.arange(4)[None])
    with pytest.raises(ValueError, match="Forgetful keeps nothing in its cache"):
        gpt(torch.arange(4)[None], gpt.new_cache())


def test_a_softcap_in_bfloat16_keeps_large_logits_apart():
    close = torch.tensor([20.0, 20.125], dtype=torch.bfloat16)
    low, high = capped(close, 15.0)
    assert low < high


def test_a_gated_mlp_has_about_as_many_parameters_as_a_plain_one():
    assert GPTConfig(d_model=768, mlp="swiglu").inner_width == 2048
    assert GPTConfig(n_heads=4, d_model=256, mlp="geglu").inner_width == 688
    assert GPTConfig(n_heads=4, d_model=256, mlp="geglu", d_ff=100).inner_width == 100


class AsPublished(nn.Module):
    """GPT-3's layer without any option, in the operations that it had before there were any."""

    def __init__(self, D: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.ln_1, self.ln_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.mlp.fc, self.mlp.proj = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, D = x.shape
        qkv = self.attn.qkv(self.ln_1(x)).view(B, T, 3, self.n_heads, D // self.n_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = torch.add(x, self.attn.proj(y.transpose(1, 2).reshape(B, T, D)))
        return torch.add(x, self.mlp.proj(F.gelu(self.mlp.fc(self.ln_2(x)), approximate="tanh")))


def test_with_every_option_off_a_layer_is_gpt3s_bit_for_bit():
    torch.manual_seed(0)
    published, block = AsPublished(32, 4), GPT(GPTConfig(16, 8, n_layers=1, n_heads=4, d_model=32)).blocks[0]
    block.load_state_dict(published.state_dict())
    x, gradient = random(2, 8, 32, dtype=torch.float32), torch.randn(2, 8, 32)
    with torch.no_grad():
        assert torch.equal(block(x), published(x))
    for layer in (block, published):
        layer(x).backward(gradient)
    for name, parameter in block.named_parameters():  # GELU's slope comes from another formula on a CPU
        torch.testing.assert_close(parameter.grad, published.get_parameter(name).grad, rtol=1e-5, atol=1e-6)

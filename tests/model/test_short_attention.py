"""bf16 attention on a CPU against float64: sharp scores, gradients, and decoding with a cache."""

import pytest
import torch
from torch.nn import functional as F

from gpt_lightning.model.attention import CausalSelfAttention, LayerCache
from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.short_attention import short_causal_attention


def errors(attend, sharpness: float, n_tokens: int, d_head: int = 64) -> list[float]:
    """Relative errors (root of the mean square) of the output and the gradients of q, k, v against float64.

    The scores of the same bf16 inputs have a standard deviation of `sharpness`.
    """
    torch.manual_seed(0)
    shape, scale = (2, 3, n_tokens, d_head), d_head**-0.5
    inputs = [(torch.randn(shape) * factor).bfloat16().requires_grad_() for factor in (sharpness, 1, 1)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    grad = torch.randn(shape).bfloat16()
    y = attend(*inputs, scale)
    y.backward(grad)
    reference = (exact[0] @ exact[1].mT * scale).masked_fill(torch.ones(n_tokens, n_tokens).triu(1) > 0, -torch.inf)
    reference = reference.softmax(-1) @ exact[2]
    reference.backward(grad.double())
    pairs = [(y.detach(), reference.detach()), *((a.grad, b.grad) for a, b in zip(inputs, exact, strict=True))]
    return [((a.double() - b).norm() / b.norm()).item() for a, b in pairs]


def short(q, k, v, scale):
    return short_causal_attention(q, k, v, 0.0, scale)


def flash(q, k, v, scale):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)


@pytest.mark.parametrize("n_tokens", [60, 127, 128, 129, 300, 512])
@pytest.mark.parametrize("sharpness", [1.0, 4.0, 10.0])
def test_sharp_scores_cost_no_more_than_the_rounding_of_weights_and_values(sharpness, n_tokens):
    rounding = 2**-8  # of one bf16 number, relative; output and gradients pass through two and three of them
    output, *gradients = errors(short, sharpness, n_tokens)
    assert output < rounding
    assert max(gradients) < 2 * rounding


@pytest.mark.parametrize("sharpness", [4.0, 10.0])
def test_it_is_as_exact_as_the_flash_kernel_of_torch(sharpness):
    for ours, theirs in zip(errors(short, sharpness, 256), errors(flash, sharpness, 256), strict=True):
        assert ours < 1.5 * theirs + 1e-3


def test_autocast_does_not_round_the_scores_again():
    def under_autocast(q, k, v, scale):
        with torch.autocast("cpu", torch.bfloat16):
            return short(q, k, v, scale)

    assert errors(under_autocast, 10.0, 256) == errors(short, 10.0, 256)


def test_dropout_drops_weights_and_keeps_their_sum_on_average():
    torch.manual_seed(0)
    q, k = (torch.randn(8, 4, 200, 16).bfloat16() for _ in range(2))
    y = short_causal_attention(q, k, torch.ones_like(q), 0.25, 0.25).float()
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    assert y.std().item() > 0.02


@pytest.mark.parametrize(("n_rows", "n_keys"), [(1, 64), (3, 200), (2, 700)])
def test_decoding_in_bf16_with_cached_keys_is_float64_within_the_rounding_of_its_inputs(n_rows, n_keys):
    torch.manual_seed(0)
    attn = CausalSelfAttention(GPTConfig(d_model=64, n_heads=2, bias=False), scale=1.0).bfloat16()
    with torch.no_grad():  # queries, keys and values are the input itself, and so is what proj gives
        attn.qkv.weight.copy_(torch.eye(64).repeat(3, 1))
        attn.proj.weight.copy_(torch.eye(64))
    x = torch.randn(n_rows, n_keys, 64).bfloat16()
    cache = LayerCache(capacity=1024, band_width=None)
    attn(x[:, :-1], cache=cache)
    y = attn(x[:, -1:], cache=cache)[:, 0]
    heads = x.double().view(n_rows, n_keys, 2, 32).transpose(1, 2)
    expected = (heads[:, :, -1:] @ heads.mT).softmax(-1) @ heads
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected.transpose(1, 2).reshape(n_rows, 64), rtol=2**-8, atol=1e-5)

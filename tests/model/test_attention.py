"""Attention against loops that a reader can check by eye, and the cache against no cache."""

import math
import random

import pytest
import torch

from gpt_lightning.model.attention import CausalSelfAttention, visible
from gpt_lightning.model.gpt import GPT, GPTConfig

PATTERNS = [("dense",), ("banded",), ("dense", "banded")]


def small_gpt(pattern=("dense",), band_width=5, context_length=24) -> GPT:
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=31,
        context_length=context_length,
        n_layers=3,
        n_heads=2,
        d_model=16,
        attention_pattern=pattern,
        band_width=band_width,
        init_std=0.3,
    )
    return GPT(config).eval().double()


def random_tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, 31, shape, generator=torch.Generator().manual_seed(1))


def attention_by_loops(attn: CausalSelfAttention, x: torch.Tensor, band_width: int) -> torch.Tensor:
    """One query, one head and one key at a time, from the definition."""
    B, T, D = x.shape
    n_heads = attn.heads[0]
    K = D // n_heads
    y = torch.zeros_like(x)
    for b in range(B):
        q, k, v = (x[b] @ attn.qkv.weight.T + attn.qkv.bias).split(D, dim=1)
        for head in range(n_heads):
            part = slice(head * K, (head + 1) * K)
            for i in range(T):
                keys = [j for j in range(T) if j <= i and i - j < band_width]
                scores = torch.stack([q[i, part] @ k[j, part] / math.sqrt(K) for j in keys])
                weights = scores.exp() / scores.exp().sum()
                y[b, i, part] = sum(w * v[j, part] for w, j in zip(weights, keys, strict=True))
    return y @ attn.proj.weight.T + attn.proj.bias


@pytest.mark.parametrize("band_width", [1, 3, 7, 100])
def test_banded_attention_is_the_double_loop(band_width):
    torch.manual_seed(0)
    attn = CausalSelfAttention(GPTConfig(d_model=12, n_heads=3), scale=0.5).double()
    torch.nn.init.normal_(attn.qkv.bias)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    mask = visible(7, 7, band_width, None, x.device)
    torch.testing.assert_close(attn(x, mask), attention_by_loops(attn, x, band_width))


def test_without_a_mask_attention_is_the_double_loop_over_all_earlier_keys():
    torch.manual_seed(0)
    attn = CausalSelfAttention(GPTConfig(d_model=12, n_heads=3), scale=0.5).double()
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(attn(x), attention_by_loops(attn, x, band_width=7))


def test_the_model_gives_each_layer_its_own_band():
    gpt = small_gpt(("dense", "banded"), band_width=4)
    tokens = random_tokens(2, 11)
    x = gpt.wte(tokens) + gpt.wpe(torch.arange(11))
    for block, band_width in zip(gpt.blocks, [11, 4, 11], strict=True):
        x = x + attention_by_loops(block.attn, block.ln_1(x), band_width)
        x = x + block.mlp(block.ln_2(x))
    torch.testing.assert_close(gpt(tokens), gpt.ln_f(x) @ gpt.wte.weight.T)


@pytest.mark.parametrize("band_width", [24, 25, 1000])
def test_a_band_as_wide_as_the_context_is_exactly_dense(band_width):
    tokens = random_tokens(2, 24)
    dense, banded = small_gpt(("dense",)), small_gpt(("banded",), band_width)
    assert torch.equal(dense(tokens), banded(tokens))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_later_token_changes_no_earlier_logit(pattern):
    gpt = small_gpt(pattern)
    tokens = random_tokens(1, 20)
    for position in (1, 9, 19):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % 31
        before, after = gpt(tokens), gpt(changed)
        assert torch.equal(before[:, :position], after[:, :position])
        assert not torch.allclose(before[:, position], after[:, position])


def test_a_banded_model_forgets_what_lies_behind_the_bands_of_all_its_layers():
    gpt = small_gpt(("banded",), band_width=4)  # 3 layers reach back 3 x 3 tokens
    tokens = random_tokens(1, 20)
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 31
    before, after = gpt(tokens), gpt(changed)
    assert not torch.allclose(before[:, 14], after[:, 14])
    assert torch.equal(before[:, 15:], after[:, 15:])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("sizes", [[1] * 20, [20], [13, 7], [2, 9, 1, 1, 7], [1, 19]], ids=str)
def test_decoding_with_a_cache_equals_the_full_forward_pass(pattern, sizes):
    gpt, tokens = small_gpt(pattern), random_tokens(2, 20)
    cache = gpt.new_cache()
    logits = torch.cat([gpt(part, cache) for part in tokens.split(sizes, dim=1)], dim=1)
    torch.testing.assert_close(logits, gpt(tokens))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("sizes", [[1] * 20, [20], [12, 8], [4, 1, 1, 14]], ids=str)
def test_padding_on_the_left_changes_nothing(pattern, sizes):
    gpt, n_padding = small_gpt(pattern), [0, 3, 11]
    tokens = random_tokens(3, 20)
    cache = gpt.new_cache(torch.tensor(n_padding))
    logits = torch.cat([gpt(part, cache) for part in tokens.split(sizes, dim=1)], dim=1)
    for row, n in enumerate(n_padding):
        torch.testing.assert_close(logits[row, n:], gpt(tokens[row : row + 1, n:])[0])


def test_random_chunks_and_paddings_agree_with_the_full_forward_pass():
    numbers = random.Random(0)
    for _ in range(30):
        gpt = small_gpt(numbers.choice(PATTERNS), band_width=numbers.randint(1, 24))
        length, sizes = numbers.randint(2, 24), []
        while sum(sizes) < length:
            sizes.append(min(numbers.randint(1, 8), length - sum(sizes)))
        n_padding = [numbers.randint(0, length - 1) for _ in range(2)]
        tokens, cache = random_tokens(2, length), gpt.new_cache(torch.tensor(n_padding))
        logits = torch.cat([gpt(part, cache) for part in tokens.split(sizes, dim=1)], dim=1)
        for row, n in enumerate(n_padding):
            torch.testing.assert_close(logits[row, n:], gpt(tokens[row : row + 1, n:])[0])


def test_a_banded_layer_keeps_only_its_band():
    gpt, tokens = small_gpt(("dense", "banded"), band_width=5), random_tokens(1, 20)
    cache = gpt.new_cache()
    for part in tokens.split([11, 1, 1, 7], dim=1):
        gpt(part, cache)
    assert cache.layers[1].keys.shape[2] == cache.layers[1].values.shape[2] == 4  # and the new token itself


def test_more_tokens_than_the_context_are_refused_with_both_numbers():
    gpt = small_gpt()
    cache = gpt.new_cache()
    gpt(random_tokens(1, 20), cache)
    with pytest.raises(ValueError, match="25 tokens do not fit context_length 24"):
        gpt(random_tokens(1, 5), cache)

"""Blocks of one's own that the tests run over: what a user might write, right and wrong."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_lightning.model.attention import LayerCache
from gpt_lightning.model.facts import Facts
from gpt_lightning.model.gpt import Block, GPTConfig
from gpt_lightning.model.linear import Linear
from gpt_lightning.model.parametrization import parametrization


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
    """Attention of (B, T, H x K) queries over keys and values of as many heads or fewer; d_head is 4 or 8."""
    if cache is not None:
        k, v = cache.update(k, v)
    causal = mask is None and q.shape[2] > 1
    y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=True)
    return y.transpose(1, 2).flatten(2)


class ParallelBlock(nn.Module):
    """Attention and MLP side by side after one norm, made of plain nn.Linear; what joins the stream is declared."""

    def __init__(self, config: GPTConfig, scale: float = 1.0):
        super().__init__()
        numbers, D = parametrization(config), config.d_model
        self.n_heads, self.residual, self.scale = config.n_heads, scale * numbers.residual, numbers.attention_scale
        self.norm = nn.LayerNorm(D)
        self.q, self.k, self.v, self.fc = (nn.Linear(D, n) for n in (D, D, D, 2 * D))
        self.out = nn.Linear(3 * D, D)

    def parameter_facts(self) -> dict[str, Facts]:
        return {"out.weight": Facts("hidden", residual=True)}

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).unflatten(2, (self.n_heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = attend(q, k, v, self.scale, mask, cache)
        return x + self.residual * self.out(torch.cat([y, F.gelu(self.fc(h))], 2))


class GroupedAttention(nn.Module):
    """Two query heads share a key head: a fused matrix of three unequal parts."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        D, self.n_heads = config.d_model, config.n_heads
        self.d_head, self.scale = D // config.n_heads, parametrization(config).attention_scale
        self.n_kv_heads = max(config.n_heads // 2, 1)
        self.parts = (D, self.n_kv_heads * self.d_head, self.n_kv_heads * self.d_head)
        self.qkv = Linear(D, sum(self.parts), bias=False, parts=self.parts)
        self.proj = Linear(D, D, bias=False, residual=True)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        q, k, v = (y.unflatten(2, (-1, self.d_head)).transpose(1, 2) for y in self.qkv(x).split(self.parts, 2))
        return self.proj(attend(q, k, v, self.scale, mask, cache))


class GroupedBlock(Block):
    """The built-in block with grouped keys and values, and RMSNorm."""

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.attn = GroupedAttention(config)
        self.ln_1, self.ln_2 = nn.RMSNorm(config.d_model), nn.RMSNorm(config.d_model)


class GatedBlock(Block):
    """The built-in block whose output passes a gate per channel, a parameter of its own, and a constant buffer."""

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.gate = nn.Parameter(torch.full((config.d_model,), 0.5))
        self.shift = nn.Parameter(torch.empty(config.d_model))
        self.register_buffer("offset", torch.tensor(0.5), persistent=False)

    def parameter_facts(self) -> dict[str, Facts]:
        return {**super().parameter_facts(), "shift": Facts("vector", std=0, mean=0.25)}

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        y = super().forward(x, mask, cache)
        return x + (y - x) * (self.offset + self.gate) + self.residual_multiplier * self.shift


class ForgottenBlock(GatedBlock):
    """Nobody gives `shift` a value."""

    def parameter_facts(self) -> dict[str, Facts]:
        return {}


class AcausalBlock(ParallelBlock):
    """Looks ahead: each token sees the mean of the whole sequence."""

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        return super().forward(x, mask, cache) + x.mean(1, keepdim=True)


class WrongScaleBlock(ParallelBlock):
    """Attention as in the standard parametrization, whatever that of the model."""

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.scale = (config.d_model // config.n_heads) ** -0.5


class WrongDepthBlock(ParallelBlock):
    """Adds its whole output to the stream, whatever the depth."""

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.residual = 1.0

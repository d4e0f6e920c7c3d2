"""Causal self-attention, dense or locally banded, with the key-value cache as an argument.

GPT-3 alternates dense layers with locally banded ones (Brown et al. 2020, section 2.1, after the Sparse
Transformer, Child et al. 2019, arXiv 1904.10509). The band counts the token itself, as in GPT-Neo:

    band_width 3        key 0 1 2 3 4
              query 0       x
                    1       x x
                    2       x x x
                    3         x x x
                    4           x x x

A mask of `None` means causal over all keys, which is the case with the fast kernels. Banded layers cost the
same as dense ones under scaled_dot_product_attention; FlexAttention skips the blocks outside the band and is
used on CUDA once the blocks are compiled.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.facts import HEAD_ONES, Facts
from gpt_lightning.model.linear import Linear
from gpt_lightning.model.norm import RMSNorm
from gpt_lightning.model.rotary import Rotary
from gpt_lightning.model.short_attention import SHORT, short_causal_attention


class LayerCache:
    """Keys and values that one layer has read; a banded layer keeps only what its band can still see.

    On a CPU a model in bf16 keeps them in float32: torch's kernel for one bf16 query is slow, and two bf16 products
    round the scores (model/short_attention.py). Milliseconds of one layer of 12 heads of 64, one thread (Zen 4):

        rows x keys   flash bf16   two bf16 products   flash float32, as here
        1 x 64              0.11                0.12                     0.02
        1 x 1024            1.62                0.47                     0.48
        8 x 256             3.15                1.31                     1.40
        8 x 1024           11.78                2.75                     4.33
    """

    def __init__(self, capacity: int, band_width: int | None):
        self.capacity = capacity
        self.band_width = band_width
        self.length = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, K) keys and values; return all that the new queries may look at, (B, H, S, K)."""
        if keys.device.type == "cpu" and keys.dtype == torch.bfloat16:
            keys, values = keys.float(), values.float()
        self.length += keys.shape[2]
        if self.band_width is not None:
            return self._update_band(keys, values, self.band_width)
        if self.keys is None or self.values is None:
            B, H, _, K = keys.shape
            self.keys, self.values = (keys.new_empty(B, H, self.capacity, K) for _ in range(2))
        start = self.length - keys.shape[2]
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def _update_band(self, keys: Tensor, values: Tensor, band_width: int) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            keys = torch.cat([self.keys, keys], dim=2)
            values = torch.cat([self.values, values], dim=2)
        kept = max(keys.shape[2] - (band_width - 1), 0)
        self.keys, self.values = keys[:, :, kept:], values[:, :, kept:]
        return keys, values


class KVCache:
    """Keys and values of the tokens read so far, one `LayerCache` per layer.

    n_padding: how many padding tokens stand before each row's first real token, shape (B,), when prompts of
        unequal length share a batch; None when there are none.
    """

    def __init__(self, band_widths: list[int | None], capacity: int, n_padding: Int[Tensor, " batch"] | None = None):
        self.layers = [LayerCache(capacity, band_width) for band_width in band_widths]
        self.n_padding = n_padding

    @property
    def length(self) -> int:
        """Tokens read so far, padding included."""
        return self.layers[0].length


def visible(
    n_queries: int, n_keys: int, band_width: int | None, first: Tensor | None, device: torch.device
) -> Bool[Tensor, "#batch 1 query key"]:
    """True where a query may look at a key, for the last `n_queries` of `n_keys` positions.

    first: (B, 1) or (B, T), the first key that belongs to a query's own text, after padding or another document. A
    padding query sees itself, so that no row is empty.
    """
    key = torch.arange(n_keys, device=device)
    query = key[n_keys - n_queries :, None]
    seen = key <= query
    if band_width is not None:
        seen = seen & (query - key < band_width)
    if first is None:
        return seen[None, None]
    return ((seen & (key >= first[:, :, None])) | (key == query))[:, None]


@lru_cache(maxsize=8)
def band_block_mask(n_tokens: int, band_width: int, device: torch.device) -> BlockMask:
    """The same band as `visible`, as the block mask that FlexAttention skips blocks by."""

    def in_band(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key < band_width)

    with torch.inference_mode(False):  # one made in validation is kept, and training saves it for backward
        return create_block_mask(in_band, None, None, n_tokens, n_tokens, device=str(device))


def document_block_mask(first: Int[Tensor, "batch time"], band_width: int | None) -> BlockMask:
    """Causal within each document, whose first token is `first`, and within the band if there is one."""
    B, T = first.shape
    reach = band_width or T

    def in_document(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key < reach) & (key >= first[b, query])

    return create_block_mask(in_document, B, None, T, T, device=str(first.device))


Masks = dict[int | None, Tensor | BlockMask | None]  # by band width; None: dense


def masks_of(
    band_widths: Sequence[int | None], n_queries: int, cache: KVCache | None, device: torch.device, flex: bool
) -> Masks:
    """One mask per kind of layer; None where plain causal attention gives the same. flex: FlexAttention's."""
    past, n_padding = (cache.length, cache.n_padding) if cache else (0, None)
    masks: Masks = {}
    for band_width in set(band_widths):
        kept = past if band_width is None else min(past, band_width - 1)
        n_keys = kept + n_queries
        whole = band_width is None or band_width >= n_keys  # no key lies outside the band
        if n_padding is not None:
            padding = (n_padding - (past - kept)).clamp(min=0)
            masks[band_width] = visible(n_queries, n_keys, band_width, padding[:, None], device)
        elif whole and (n_queries == 1 or n_queries == n_keys):
            masks[band_width] = None
        elif flex and cache is None and band_width is not None:
            masks[band_width] = band_block_mask(n_queries, band_width, device)
        else:
            masks[band_width] = visible(n_queries, n_keys, band_width, None, device)
    return masks


def document_masks(band_widths: Sequence[int | None], positions: Int[Tensor, "batch time"], flex: bool) -> Masks:
    """The same for rows of several documents, by the position of each token in its own."""
    T, device = positions.shape[1], positions.device
    first = torch.arange(T, device=device) - positions
    if flex:
        return {width: document_block_mask(first, width) for width in set(band_widths)}
    return {width: visible(T, T, width, first, device) for width in set(band_widths)}


class CausalSelfAttention(nn.Module):
    """Multi-head attention with one fused projection for queries, keys and values.

    scale: what multiplies q k^T; 1 / sqrt(d_head) in GPT-3 (model/parametrization.py has the others). Fewer heads of
    keys and values serve several query heads each. What is done to queries and keys before they meet, norm and
    rotation, are modules, or nothing when they are off.
    """

    def __init__(self, config: GPTConfig, scale: float):
        super().__init__()
        D, K, d_kv = config.d_model, config.d_head, config.d_kv
        self.heads = config.n_heads, d_kv // K, d_kv // K  # of queries, keys, values
        self.scale = scale
        self.dropout = config.dropout
        self.qkv = Linear(D, D + 2 * d_kv, config.bias, parts=(D, d_kv, d_kv))
        self.q_norm, self.k_norm = (RMSNorm(K) if config.qk_norm else nn.Identity() for _ in range(2))
        self.rotary = Rotary(K, config.context_length) if config.positions == "rotary" else None
        self.value_mix = nn.Parameter(torch.empty(1)) if config.value_residual else None
        self.proj = Linear(D, D, config.bias, residual=True)
        self.residual_dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "batch time d_model"],
        mask: Tensor | BlockMask | None = None,
        cache: LayerCache | None = None,
        first_values: Float[Tensor, "batch kv_heads time d_head"] | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        B, T, D = x.shape
        qkv = self.qkv(x)
        q, k, v = self._queries_keys_values(qkv, cache.length if cache else 0)
        if self.value_mix is not None and first_values is not None:
            v = torch.lerp(v, first_values.to(v.dtype), self.value_mix.to(v.dtype))
        if cache is not None:
            k, v = cache.update(k, v)
            q = q.to(k.dtype)
        dropout = self.dropout if self.training else 0.0
        causal, grouped = mask is None and T > 1, self.heads[0] != self.heads[1]
        if isinstance(mask, BlockMask):
            y = flex_attention(q, k, v, block_mask=mask, scale=self.scale, enable_gqa=grouped)
        elif causal and T <= SHORT and x.device.type == "cpu" and q.dtype == torch.bfloat16:
            k, v = (n.repeat_interleave(self.heads[0] // self.heads[1], 1) if grouped else n for n in (k, v))
            y = short_causal_attention(q, k, v, dropout, self.scale)
        else:
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=self.scale, enable_gqa=grouped
            )
        return self.residual_dropout(self.proj(y.transpose(1, 2).reshape(B, T, D).to(qkv.dtype)))

    def values(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch kv_heads time d_head"]:
        """The values of x alone, for later layers to mix with theirs."""
        values = self.qkv(x).unflatten(2, (sum(self.heads), -1))[:, :, -self.heads[2] :]
        return values.transpose(1, 2).contiguous()

    def parameter_facts(self) -> dict[str, Facts]:
        """What all heads or channels share."""
        norms = {"q_norm": self.q_norm, "k_norm": self.k_norm}
        shared = {f"{name}.weight": HEAD_ONES for name, norm in norms.items() if isinstance(norm, RMSNorm)}
        return shared if self.value_mix is None else {**shared, "value_mix": Facts("scalar", std=0.0, mean=0.5)}

    def _queries_keys_values(self, qkv: Tensor, past: int) -> tuple[Tensor, Tensor, Tensor]:
        """Each (B, H, T, K), for positions from `past` on."""
        q, k, v = qkv.unflatten(2, (sum(self.heads), -1)).split(self.heads, dim=2)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary is not None:
            q, k = self.rotary(q, past), self.rotary(k, past)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

"""Causal attention of bf16 tensors as plain matrix products, for CPUs and short contexts.

torch 2.13's flash kernel takes twice as long there; it pays once the scores no longer fit the cache. A block of
queries multiplies only the keys up to its own end:

    queries 0..127    x .         half of the products above the diagonal are never made
    queries 128..255  x x

The scores are float32. Rounded to bf16 a score of 30 is off by 0.06 and its weight by 6%: for scores with a standard
deviation of 10 the output was wrong by 1.1% and the gradients by 2.3%, now by 0.2% and 0.5%, as the flash kernel's.
The way back needs the weights alone, and runs in bf16. Forward and backward, one thread of an AMD EPYC (Zen 4),
6 heads of 64, milliseconds of CPU time, median:

    B x T       bf16 scores   float32 scores   here: and blocks   flash kernel
    16 x 128             16               19                 19             51
    16 x 256             86               85                 85            114
     4 x 512             60               71                 45             93
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SHORT = 512  # tokens; up to 2048 it is 1.1 times as fast, but keeps the weights for the way back
BLOCK = 128  # queries; smaller products lose more time in calls than they save


class _CausalWeights(torch.autograd.Function):
    """softmax(scale q k^T), masked, (N, T, S), of the last T of S positions; q (N, T, K) and k (N, S, K) in bf16."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, scale: float) -> Tensor:
        N, T, S = len(q), q.shape[1], k.shape[1]
        above = q.new_full((T, S), -torch.inf, dtype=torch.float32).triu(S - T + 1)
        scores = torch.baddbmm(above.expand(N, T, S), q.float(), k.float().transpose(1, 2), alpha=scale)
        weights = scores.softmax(-1).to(q.dtype)
        ctx.save_for_backward(q, k, weights)
        ctx.scale = scale
        return weights

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        q, k, weights = ctx.saved_tensors
        grad = torch._softmax_backward_data(grad_outputs[0], weights, -1, weights.dtype)
        return torch.bmm(grad, k).mul_(ctx.scale), torch.bmm(grad.transpose(1, 2), q).mul_(ctx.scale), None


def short_causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float, scale: float) -> Tensor:
    """Causal attention of (B, H, T, K) bf16 tensors; see the page's head."""
    B, H, T, K = q.shape
    q, k, v = (x.reshape(B * H, T, K) for x in (q, k, v))
    blocks = []
    with torch.autocast("cpu", enabled=False):  # it would run the float32 products in bf16
        for start in range(0, T, BLOCK):
            end = min(start + BLOCK, T)
            weights: Tensor = _CausalWeights.apply(q[:, start:end], k[:, :end], scale)
            blocks.append(F.dropout(weights, dropout) @ v[:, :end])
    return torch.cat(blocks, dim=1).view(B, H, T, K)

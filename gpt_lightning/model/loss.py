"""Cross entropy of the readout in chunks: the (tokens, vocab) logits never exist as a whole.

For GPT-3's vocabulary the logits are by far the largest tensor of a training step: 2048 tokens x 50257 x 4 bytes is
0.4 GB, and plain cross entropy holds several copies. Here a chunk's logits become loss and gradient at once, in the
forward pass, so nothing is computed twice and the chunk stays in the cache of the processor.

Why not `torch.nn.functional.linear_cross_entropy`: with 4096 tokens, d_model 384 and V 8192 in bf16 on two cores it
took 2.1 to 2.4 x our time (torch 2.13; scripts/benchmark_training.py prints the ratio), and torch before 2.13 lacks it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

IGNORED = torch.nn.CrossEntropyLoss().ignore_index  # torch's mark of a target that does not count
VOCAB_ROWS = 8_192  # of the weight's gradient at once: for GPT-3's vocabulary a whole product would take 77 MB


@dataclass(frozen=True)
class LossConfig:
    """How the training loss is computed."""

    chunk_tokens: int | None = None
    """Tokens whose logits exist at once, at chunk_tokens x vocab_size x 4 bytes; chosen by device when not given."""

    def __post_init__(self) -> None:
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens {self.chunk_tokens}: must be at least 1")


def default_chunk_tokens(vocab_size: int, device: torch.device) -> int:
    """Chunks of 34 MB of logits on a CPU, where more does not stay in the cache, and of 0.5 GB elsewhere."""
    tokens = (2**23 if device.type == "cpu" else 2**27) // vocab_size
    return min(max(tokens // 64 * 64, 64), 512 if device.type == "cpu" else 8192)


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of the cross entropy over tokens; the gradients are made in forward and scaled in backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int) -> Tensor:
        dtype = _matmul_dtype(hidden)
        x, w = hidden.detach().to(dtype), weight.detach().to(dtype)
        grad_hidden = torch.empty_like(x)
        grad_weight = torch.zeros_like(weight, dtype=_at_least_float32(dtype))
        total = torch.zeros((), dtype=grad_weight.dtype, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), chunk_tokens):
                chunk = slice(start, start + chunk_tokens)
                counted = targets[chunk] != IGNORED
                target = targets[chunk].clamp(min=0)[:, None]
                scores = F.linear(x[chunk], w).to(grad_weight.dtype)
                # One buffer, in place: logits, then their exponentials, then the softmax, then its gradient.
                scores.sub_(scores.amax(1, keepdim=True))
                at_target = scores.gather(1, target)
                normalizer = scores.exp_().sum(1, keepdim=True)
                total += ((normalizer.log() - at_target)[:, 0] * counted).sum()
                scores.mul_(counted[:, None] / normalizer)
                scores.scatter_add_(1, target, -counted[:, None].to(scores.dtype))
                grad_logits = scores.to(dtype)
                del scores
                torch.mm(grad_logits, w, out=grad_hidden[chunk])
                for rows in range(0, len(weight), VOCAB_ROWS):
                    part = slice(rows, rows + VOCAB_ROWS)
                    grad_weight[part] += grad_logits[:, part].T @ x[chunk]
        ctx.gradients = grad_hidden, grad_weight
        ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.gradients
        ctx.gradients = None  # scaled in place below, so of use once
        dtypes = ctx.dtypes
        return grad_hidden.to(dtypes[0]).mul_(grad_total), grad_weight.to(dtypes[1]).mul_(grad_total), None, None


def linear_cross_entropy(
    hidden: Float[Tensor, "tokens d_model"],
    weight: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, " tokens"],
    chunk_tokens: int | None = None,
) -> Float[Tensor, ""]:
    """Mean cross entropy in nats over the targets that are not -100, equal to that of the plain logits.

    Matrix products run in the autocast dtype, the softmax and the sums in float32 (float64 for float64 input).
    Differentiable once, in hidden and weight.
    """
    chunk_tokens = chunk_tokens or default_chunk_tokens(len(weight), hidden.device)
    total = _LinearCrossEntropy.apply(hidden, weight, targets, chunk_tokens)
    return total / (targets != IGNORED).sum().clamp(min=1)


@torch.no_grad()
def token_nats(
    hidden: Float[Tensor, "tokens d_model"],
    weight: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, " tokens"],
    chunk_tokens: int | None = None,
) -> Float[Tensor, " tokens"]:
    """Cross entropy of each target in nats, 0 where it is -100; for evaluation, without gradients."""
    chunk_tokens = chunk_tokens or default_chunk_tokens(len(weight), hidden.device)
    chunks = zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
    dtype = _at_least_float32(hidden.dtype)
    losses = [F.cross_entropy(F.linear(x, weight).to(dtype), y, reduction="none") for x, y in chunks]
    return torch.cat(losses)


def _matmul_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)

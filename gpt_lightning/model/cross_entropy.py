"""Cross entropy of the readout in chunks, gradients and all: the (tokens, vocab) logits never exist as a whole.

For GPT-3's vocabulary the logits are by far the largest tensor of a training step: 2048 tokens x 50257 x 4 bytes is
0.4 GB, and plain cross entropy holds several copies. Here a chunk's logits become loss and gradient at once, in the
forward pass and in their own place, so nothing is computed twice.

Why not `torch.nn.functional.linear_cross_entropy`: with 4096 tokens, d_model 384 and V 8192 in bf16 on two cores it
took 2.1 to 2.6 x our time (torch 2.13; scripts/benchmark_training.py prints the ratio), and torch before 2.13 lacks it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt_lightning.model.readout import at_least_float32

IGNORED = torch.nn.CrossEntropyLoss().ignore_index  # torch's mark of a target that does not count
VOCAB_ROWS = 4_096  # of the weight's gradient at once: for GPT-3's vocabulary a whole product would take 77 MB


def default_chunk_tokens(vocab_size: int, device: torch.device) -> int:
    """Chunks of 34 MB of bf16 logits on a CPU, near the size of its cache, and of 0.3 GB elsewhere."""
    tokens = (2**24 if device.type == "cpu" else 2**27) // vocab_size
    return min(max(tokens // 64 * 64, 64), 512 if device.type == "cpu" else 8192)


def _gradient_of_scores(scores: Tensor, target: Tensor) -> Tensor:
    """Nats of each target, (tokens,); in place of the logits it leaves the gradient of their sum."""
    n_rows = max((2**18 if scores.device.type == "cpu" else 2**25) // scores.shape[1], 1)
    nats, minus_one = [], scores.new_full((n_rows, 1), -1.0, dtype=at_least_float32(scores.dtype))
    for logits, index in zip(scores.split(n_rows), target.split(n_rows), strict=True):
        x = logits.to(minus_one.dtype)
        p = x.softmax(1)
        # The largest probability is never 0, so its logarithm gives the normaliser.
        nats.append(x.amax(1) - p.amax(1).log() - x.gather(1, index)[:, 0])
        logits.copy_(p.scatter_add_(1, index, minus_one[: len(index)]))
    return torch.cat(nats)


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of the cross entropy over tokens; the gradients are made in forward and scaled in backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int) -> Tensor:
        dtype = _matmul_dtype(hidden)
        x, w = hidden.detach().to(dtype), weight.detach().to(dtype)
        grad_hidden = torch.empty_like(x)
        grad_weight = torch.zeros_like(weight, dtype=at_least_float32(dtype))
        total = torch.zeros((), dtype=grad_weight.dtype, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            buffer = x.new_empty(min(chunk_tokens, len(x)), len(weight))
            for start in range(0, len(targets), chunk_tokens):
                chunk = slice(start, start + chunk_tokens)
                counted = (targets[chunk] != IGNORED).to(dtype)
                target = targets[chunk].clamp(min=0)[:, None]
                scores = torch.mm(x[chunk], w.T, out=buffer[: len(target)])
                total += (_gradient_of_scores(scores, target) * counted).sum()
                torch.mm(scores, w, out=grad_hidden[chunk])
                grad_hidden[chunk] *= counted[:, None]
                x_counted = x[chunk] * counted[:, None]
                for rows in range(0, len(weight), VOCAB_ROWS):
                    part = slice(rows, rows + VOCAB_ROWS)
                    grad_weight[part] += scores[:, part].T @ x_counted
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


def _matmul_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype

"""Cross entropy of the readout in chunks, gradients and all: the (tokens, vocab) logits never exist as a whole.

For GPT-3's vocabulary the logits are by far the largest tensor of a training step: 2048 tokens x 50257 x 4 bytes is
0.4 GB, and plain cross entropy holds several copies. Here a chunk's logits become loss and gradient at once, in the
forward pass and in their own place, so nothing is computed twice.

Why not `torch.nn.functional.linear_cross_entropy`: with 4096 tokens, d_model 384 and V 8192 in bf16 on two cores it
took 2.1 to 2.6 x our time (torch 2.13; scripts/benchmark_training.py prints the ratio), and torch before 2.13 lacks it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt_lightning.model.readout import at_least_float32, capped

IGNORED = torch.nn.CrossEntropyLoss().ignore_index  # torch's mark of a target that does not count
VOCAB_ROWS = 4_096  # of the weight's gradient at once: for GPT-3's vocabulary a whole product would take 77 MB
Score = Callable[[Tensor, slice], Tensor]


def default_chunk_tokens(vocab_size: int, device: torch.device) -> int:
    """Chunks of 34 MB of bf16 logits on a CPU, near the size of its cache, and of 0.3 GB elsewhere."""
    tokens = (2**24 if device.type == "cpu" else 2**27) // vocab_size
    return min(max(tokens // 64 * 64, 64), 512 if device.type == "cpu" else 8192)


def _nats_and_gradient(scores: Tensor, targets: Tensor) -> Tensor:
    """Nats of each target, (tokens,); in place of the logits it leaves the gradient of their sum."""
    n_rows = rows_at_once(scores)
    nats, minus_one = [], scores.new_full((n_rows, 1), -1.0, dtype=at_least_float32(scores.dtype))
    for logits, index in zip(scores.split(n_rows), targets[:, None].split(n_rows), strict=True):
        x = logits.to(minus_one.dtype)
        p = x.softmax(1)
        # The largest probability is never 0, so its logarithm gives the normaliser.
        nats.append(x.amax(1) - p.amax(1).log() - x.gather(1, index)[:, 0])
        logits.copy_(p.scatter_add_(1, index, minus_one[: len(index)]))
    return torch.cat(nats)


class Terms(NamedTuple):
    """What a cross entropy may have beside its targets.

    label_smoothing: this share of a target's probability goes to all tokens alike. z_loss: times the square of the
    logits' normaliser. softcap: of the logits.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None


def _weighted_nats_and_gradient(scores: Tensor, targets: Tensor, weights: Tensor, terms: Terms) -> Tensor:
    """As `_nats_and_gradient`, with any number of weighted targets a token, (tokens, K), and with further terms.

    With y the capped logits, z = log sum exp y, and e the smoothing, a target t of weight w adds
    w (z - (1 - e) y_t - e mean(y) + z_loss z^2).
    """
    n_rows = rows_at_once(scores)
    blocks = zip(scores.split(n_rows), targets.split(n_rows), weights.split(n_rows), strict=True)
    return torch.cat([_weighted_rows(*block, terms) for block in blocks])


def _weighted_rows(logits: Tensor, targets: Tensor, weights: Tensor, terms: Terms) -> Tensor:
    smoothing, z_loss, softcap = terms
    y = capped(logits.to(weights.dtype), softcap)
    p = y.softmax(1)
    z = y.amax(1, keepdim=True) - p.amax(1, keepdim=True).log()
    total = weights.sum(1, keepdim=True)
    chosen = y.gather(1, targets)
    loss = (weights * (z - chosen + z_loss * z.square())).sum(1)
    p.mul_(total * (1 + 2 * z_loss * z))
    for index, weight in zip(targets.split(1, 1), weights.split(1, 1), strict=True):  # in one order on a GPU too
        p.scatter_add_(1, index, (smoothing - 1) * weight)
    if smoothing:
        loss += smoothing * (weights * (chosen - y.mean(1, keepdim=True))).sum(1)
        p.sub_(smoothing / y.shape[1] * total)
    logits.copy_(through_cap(p, y, softcap))
    return loss


def through_cap(gradient: Tensor, capped_logits: Tensor, softcap: float | None) -> Tensor:
    """In place: the gradient in the logits, from that in the capped ones, whose slope is 1 - (y / softcap)^2."""
    if softcap is None:
        return gradient
    return gradient.addcmul_(gradient, capped_logits.square(), value=-1 / softcap**2)


def rows_at_once(scores: Tensor) -> int:
    """Rows of logits to work on at once: they stay in a CPU's cache."""
    return max((2**18 if scores.device.type == "cpu" else 2**25) // scores.shape[1], 1)


def matmul_dtype(x: Tensor) -> torch.dtype:
    """That of matrix products with `x`, which autocast decides."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class ReadoutLoss(torch.autograd.Function):
    """Sum of a loss over tokens, differentiable once; gradients are made in forward and scaled in backward.

    counted: (N,), 0 for a token whose gradient is to be left out, else 1. score: given the logits of a chunk of tokens
    and which they are, the loss of each; in place of the logits it leaves the gradient of their sum. Matrix products
    run in the autocast dtype.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, counted: Tensor, score: Score, chunk_tokens: int) -> Tensor:
        dtype = matmul_dtype(hidden)
        x, w, counted = hidden.detach().to(dtype), weight.detach().to(dtype), counted.to(dtype)
        grad_hidden = torch.empty_like(x)
        for_weight = ctx.needs_input_grad[1]  # not where the readout is frozen
        grad_weight = torch.zeros_like(weight, dtype=at_least_float32(dtype)) if for_weight else None
        total = torch.zeros((), dtype=at_least_float32(dtype), device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            buffer = x.new_empty(min(chunk_tokens, len(x)), len(weight))
            for start in range(0, len(x), chunk_tokens):
                chunk = slice(start, min(start + chunk_tokens, len(x)))
                logits = torch.mm(x[chunk], w.T, out=buffer[: chunk.stop - start])
                total += (score(logits, chunk) * counted[chunk]).sum()
                torch.mm(logits, w, out=grad_hidden[chunk])
                grad_hidden[chunk] *= counted[chunk, None]
                if grad_weight is not None:
                    _add_weight_gradient(grad_weight, logits, x[chunk] * counted[chunk, None])
        ctx.gradients = grad_hidden, grad_weight
        ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        grad_hidden, grad_weight = ctx.gradients
        ctx.gradients = None  # scaled in place below, so of use once
        dtypes = ctx.dtypes
        grad_hidden = grad_hidden.to(dtypes[0]).mul_(grad_total)
        grad_weight = None if grad_weight is None else grad_weight.to(dtypes[1]).mul_(grad_total)
        return grad_hidden, grad_weight, None, None, None


def _add_weight_gradient(gradient: Tensor, logits: Tensor, x: Tensor) -> None:
    """Add what a chunk gives, some rows of the vocabulary at a time; logits: their gradient."""
    for rows in range(0, len(gradient), VOCAB_ROWS):
        part = slice(rows, rows + VOCAB_ROWS)
        gradient[part] += logits[:, part].T @ x


def _rows_that_count(counted: Tensor) -> Tensor | None:
    """Their numbers, where others do not count, as in most of an example; None: all. On a CPU, for it is a sync."""
    return None if counted.device.type != "cpu" or counted.all() else counted.nonzero()[:, 0]


def cross_entropy_sum(hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int) -> Tensor:
    """Sum of the nats of the targets that are not -100; hidden (N, D), weight (V, D), targets (N,)."""
    if (rows := _rows_that_count(targets != IGNORED)) is not None:
        hidden, targets = hidden[rows], targets[rows]
    ids = targets.clamp(min=0)
    score: Score = lambda logits, chunk: _nats_and_gradient(logits, ids[chunk])  # noqa: E731
    return ReadoutLoss.apply(hidden, weight, targets != IGNORED, score, chunk_tokens)


def weighted_sum(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, terms: Terms, chunk_tokens: int
) -> Tensor:
    """Sum over weighted targets, both (N, K), with further terms; where a target is -100, its weight is 0."""
    if (rows := _rows_that_count(weights.any(1))) is not None:
        hidden, targets, weights = hidden[rows], targets[rows], weights[rows]
    ids = targets.clamp(min=0)
    score: Score = lambda logits, chunk: _weighted_nats_and_gradient(logits, ids[chunk], weights[chunk], terms)  # noqa: E731
    return ReadoutLoss.apply(hidden, weight, weights.any(1), score, chunk_tokens)

"""Training losses on the readout, in chunks: the (tokens, vocab) logits never exist as a whole.

A loss gives a sum and a count, not a mean, so that accumulation and ranks can divide by the targets of the whole step.
Another loss is a subclass of TokenLoss with the two lines of `per_token`, or of Loss; `CrossEntropy`, the default, has
a faster path of its own. For GPT-3's vocabulary the logits are by far the largest tensor of a training step: 2048
tokens x 50257 x 4 bytes is 0.4 GB, and plain cross entropy holds several copies. There a chunk's logits become loss
and gradient at once, in the forward pass and in their own place, so nothing is computed twice.

Why not `torch.nn.functional.linear_cross_entropy`: with 4096 tokens, d_model 384 and V 8192 in bf16 on two cores it
took 2.1 to 2.6 x our time (torch 2.13; scripts/benchmark_training.py prints the ratio), and torch before 2.13 lacks it.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

IGNORED = torch.nn.CrossEntropyLoss().ignore_index  # torch's mark of a target that does not count
VOCAB_ROWS = 4_096  # of the weight's gradient at once: for GPT-3's vocabulary a whole product would take 77 MB


def default_chunk_tokens(vocab_size: int, device: torch.device) -> int:
    """Chunks of 34 MB of bf16 logits on a CPU, near the size of its cache, and of 0.3 GB elsewhere."""
    tokens = (2**24 if device.type == "cpu" else 2**27) // vocab_size
    return min(max(tokens // 64 * 64, 64), 512 if device.type == "cpu" else 8192)


class Loss(nn.Module, ABC):
    """A training loss: a sum, and what to divide it by. It may not own parameters, for nothing would train them.

    Buffers are each rank's own; a checkpoint keeps those of the first, and a run that goes on has them again.

    Args:
        chunk_tokens: Tokens whose logits exist at once, at chunk_tokens x vocab_size x 4 bytes; chosen by device when
            not given.
    """

    def __init__(self, chunk_tokens: int | None = None):
        super().__init__()
        if chunk_tokens is not None and chunk_tokens < 1:
            raise ValueError(f"chunk_tokens {chunk_tokens}: must be at least 1")
        self.chunk_tokens = chunk_tokens

    @abstractmethod
    def forward(
        self,
        hidden: Float[Tensor, "tokens d_model"],
        weight: Float[Tensor, "vocab d_model"],
        targets: Int[Tensor, " tokens"],
    ) -> tuple[Float[Tensor, ""], Tensor]:
        """Sum of the loss over the targets that are not -100, and their number or weight, a tensor of no dimension.

        `weight` is the readout matrix: logits are hidden @ weight.T. A step's gradient is that of the sums of all its
        micro-steps and ranks, divided by all their counts.
        """


class TokenLoss(Loss):
    """A loss of each target by itself: a subclass says which, in `per_token`. Costs one more product with the readout.

    Args:
        chunk_tokens: Tokens whose logits exist at once, at chunk_tokens x vocab_size x 4 bytes; chosen by device when
            not given.
    """

    @abstractmethod
    def per_token(
        self, logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        """The loss of each target, from logits in float32; targets of -100 are left out by the caller."""

    def forward(
        self,
        hidden: Float[Tensor, "tokens d_model"],
        weight: Float[Tensor, "vocab d_model"],
        targets: Int[Tensor, " tokens"],
    ) -> tuple[Float[Tensor, ""], Tensor]:
        """Sum over the targets that are not -100, and their number; a chunk's logits are made again in backward."""

        def chunk_sum(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
            logits = F.linear(x, w)
            values = self.per_token(logits.to(_at_least_float32(logits.dtype)), y.clamp(min=0))
            return torch.where(y != IGNORED, values, 0.0).sum()

        n = self.chunk_tokens or default_chunk_tokens(len(weight), hidden.device)
        chunks = zip(hidden.split(n), targets.split(n), strict=True)
        sums = [checkpoint(chunk_sum, x, y, weight, use_reentrant=False) for x, y in chunks]
        return torch.stack(sums).sum(), (targets != IGNORED).sum()


def _gradient_of_scores(scores: Tensor, target: Tensor) -> Tensor:
    """Nats of each target, (tokens,); in place of the logits it leaves the gradient of their sum."""
    n_rows = max((2**18 if scores.device.type == "cpu" else 2**25) // scores.shape[1], 1)
    nats, minus_one = [], scores.new_full((n_rows, 1), -1.0, dtype=_at_least_float32(scores.dtype))
    for logits, index in zip(scores.split(n_rows), target.split(n_rows), strict=True):
        x = logits.to(minus_one.dtype)
        p = x.softmax(1)
        # The largest probability is never 0, so its logarithm gives the normaliser.
        nats.append(x.amax(1) - p.amax(1).log() - x.gather(1, index)[:, 0])
        logits.copy_(p.scatter_add_(1, index, minus_one[: len(index)]))
    return torch.cat(nats)


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


class CrossEntropy(Loss):
    """Cross entropy in nats, the loss of every GPT: loss and gradients of a chunk are made at once, in forward.

    Args:
        chunk_tokens: Tokens whose logits exist at once, at chunk_tokens x vocab_size x 4 bytes; chosen by device when
            not given.
    """

    def forward(
        self,
        hidden: Float[Tensor, "tokens d_model"],
        weight: Float[Tensor, "vocab d_model"],
        targets: Int[Tensor, " tokens"],
    ) -> tuple[Float[Tensor, ""], Tensor]:
        """Sum of the nats over the targets that are not -100, and their number.

        Matrix products run in the autocast dtype, the softmax and the sums in float32 (float64 for float64 input).
        Differentiable once, in hidden and weight.
        """
        chunk_tokens = self.chunk_tokens or default_chunk_tokens(len(weight), hidden.device)
        total = _LinearCrossEntropy.apply(hidden, weight, targets, chunk_tokens)
        return total, (targets != IGNORED).sum()


def linear_cross_entropy(
    hidden: Float[Tensor, "tokens d_model"],
    weight: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, " tokens"],
    chunk_tokens: int | None = None,
) -> Float[Tensor, ""]:
    """Mean cross entropy in nats over the targets that are not -100, equal to that of the plain logits."""
    total, count = CrossEntropy(chunk_tokens)(hidden, weight, targets)
    return total / count.clamp(min=1)


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


class StepMean:
    """The mean over all targets of a step that count, in whichever micro-step and on whichever rank they are.

    Lightning takes the mean over micro-steps and DDP that over ranks, and a mean of means weighs a target by its
    neighbours. So each micro-step gives its sum over a constant, and the step's gradient is corrected once, without a
    synchronisation. Where every target counts, the factor is exactly 1.
    """

    def __init__(self) -> None:
        self.totals: Tensor | None = None  # of the last step, over all ranks: loss, targets that count, bytes of text
        self._sums: Tensor | None = None  # of the step under way, on this rank
        self._n_targets = 0

    @property
    def loss(self) -> Tensor:
        """Mean loss of the last step, over all ranks."""
        assert self.totals is not None, "no step has ended"
        return self.totals[0] / self.totals[1]

    def add(self, loss: Tensor, count: Tensor, text_bytes: Tensor, n_targets: int) -> Float[Tensor, ""]:
        """What a micro-step calls backward on: its sum over its targets, of which only `count` may count."""
        sums = torch.stack([x.detach().to(sum_dtype(x.device)) for x in (loss, count, text_bytes)])
        self._sums = sums if self._sums is None else self._sums + sums
        self._n_targets = self._n_targets or n_targets  # constant, and the same on every rank
        return loss / self._n_targets

    def finish(self, n_micro_steps: int, n_ranks: int) -> Float[Tensor, ""]:
        """End the step: what its gradient, a mean over micro-steps and ranks, is to be multiplied by.

        0 when no target counts, for then the gradient is 0.
        """
        assert self._sums is not None, "the step has no micro-step"
        self.totals, self._sums = self._sums, None
        if n_ranks > 1:
            torch.distributed.all_reduce(self.totals)  # the strategy's own reduce waits at a barrier before it
        count = self.totals[1]
        return torch.where(count == 0, 0.0, self._n_targets * n_micro_steps * n_ranks / count)


def sum_dtype(device: torch.device) -> torch.dtype:
    """For sums over many steps; MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _matmul_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)

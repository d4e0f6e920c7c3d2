"""Training losses on the readout, in chunks: the (tokens, vocab) logits never exist as a whole.

A loss gives a sum and a count, not a mean, so that accumulation and ranks can divide by the targets of the whole step
(step_mean.py). Another loss is a subclass of TokenLoss with the two lines of `per_token`, or of Loss; `CrossEntropy`,
the default, has a faster path of its own (cross_entropy.py).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gpt_lightning.model.cross_entropy import IGNORED, LinearCrossEntropy, default_chunk_tokens
from gpt_lightning.model.readout import Readout


@dataclass(frozen=True, eq=False)
class MicroStep:
    """What a training loss may look at: one forward pass over the sequences of one device.

    Targets of -100 do not count. progress: the share of the run's max_tokens seen before the step, 0 to 1; the same in
    all its micro-steps and on all ranks, so that a step does not depend on how it is cut.
    """

    hidden: Float[Tensor, "batch time d_model"]
    readout: Readout
    tokens: Int[Tensor, "batch time"]
    targets: Int[Tensor, "batch time"]
    progress: float


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
    def forward(self, step: MicroStep) -> tuple[Float[Tensor, ""], Tensor]:
        """Sum of the loss over the targets that are not -100, and their number or weight, a tensor of no dimension.

        A step's gradient is that of the sums of all its micro-steps and ranks, divided by all their counts.
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

    def forward(self, step: MicroStep) -> tuple[Float[Tensor, ""], Tensor]:
        """Sum over the targets that are not -100, and their number; a chunk's logits are made again in backward."""

        def chunk_sum(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
            values = self.per_token(Readout(weight, softcap).logits(x), y.clamp(min=0))
            return torch.where(y != IGNORED, values, 0.0).sum()

        hidden, targets, (weight, softcap) = step.hidden.flatten(0, 1), step.targets.flatten(), step.readout
        n = self.chunk_tokens or default_chunk_tokens(len(weight), hidden.device)
        chunks = zip(hidden.split(n), targets.split(n), strict=True)
        sums = [checkpoint(chunk_sum, x, y, weight, use_reentrant=False) for x, y in chunks]
        return torch.stack(sums).sum(), (targets != IGNORED).sum()


class CrossEntropy(Loss):
    """Cross entropy in nats, the loss of every GPT: loss and gradients of a chunk are made at once, in forward.

    Args:
        chunk_tokens: Tokens whose logits exist at once, at chunk_tokens x vocab_size x 4 bytes; chosen by device when
            not given.
    """

    def forward(self, step: MicroStep) -> tuple[Float[Tensor, ""], Tensor]:
        """Sum of the nats over the targets that are not -100, and their number.

        Matrix products run in the autocast dtype, the softmax and the sums in float32 (float64 for float64 input).
        Differentiable once, in hidden and weight.
        """
        if step.readout.softcap is not None:
            return _TokenCrossEntropy(self.chunk_tokens)(step)
        weight = step.readout.weight
        chunk_tokens = self.chunk_tokens or default_chunk_tokens(len(weight), weight.device)
        total = LinearCrossEntropy.apply(step.hidden.flatten(0, 1), weight, step.targets.flatten(), chunk_tokens)
        return total, (step.targets != IGNORED).sum()


class _TokenCrossEntropy(TokenLoss):
    def per_token(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="none")


def linear_cross_entropy(
    hidden: Float[Tensor, "batch time d_model"],
    readout: Readout,
    targets: Int[Tensor, "batch time"],
    chunk_tokens: int | None = None,
) -> Float[Tensor, ""]:
    """Mean cross entropy in nats over the targets that are not -100, equal to that of the plain logits."""
    total, count = CrossEntropy(chunk_tokens)(MicroStep(hidden, readout, targets, targets, 0.0))
    return total / count.clamp(min=1)


@torch.no_grad()
def token_nats(
    hidden: Float[Tensor, "batch time d_model"],
    readout: Readout,
    targets: Int[Tensor, "batch time"],
    chunk_tokens: int | None = None,
) -> Float[Tensor, "batch time"]:
    """Cross entropy of each target in nats, 0 where it is -100; for evaluation, without gradients."""
    n = chunk_tokens or default_chunk_tokens(len(readout.weight), hidden.device)
    chunks = zip(hidden.flatten(0, 1).split(n), targets.flatten().split(n), strict=True)
    losses = [F.cross_entropy(readout.logits(x), y, reduction="none") for x, y in chunks]
    return torch.cat(losses).view_as(targets)

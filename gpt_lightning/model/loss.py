"""Training losses on the readout, in chunks: the (tokens, vocab) logits never exist as a whole.

A loss gives a sum and a count, not a mean, so that accumulation and ranks can divide by the targets of the whole step
(step_mean.py). Another loss is a subclass of TokenLoss with the two lines of `per_token`, or of Loss; `CrossEntropy`,
the default, has a faster path of its own (cross_entropy.py).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.cross_entropy import (
    IGNORED,
    Terms,
    cross_entropy_sum,
    default_chunk_tokens,
    matmul_dtype,
    weighted_sum,
)
from gpt_lightning.model.readout import Readout, at_least_float32


@dataclass(frozen=True, eq=False)
class MicroStep:
    """What a training loss may look at: one forward pass over the sequences of one device.

    Targets of -100 do not count. progress: the share of the run's max_tokens seen before the step, 0 to 1; the same in
    all its micro-steps and on all ranks, so that a step does not depend on how it is cut. positions: of each token in
    its own document, with a document mask.
    """

    hidden: Float[Tensor, "batch time d_model"]
    readout: Readout
    tokens: Int[Tensor, "batch time"]
    targets: Int[Tensor, "batch time"]
    progress: float
    positions: Int[Tensor, "batch time"] | None = None


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

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Run folders and checkpoints that it reads: with other contents a run is another."""
        return ()

    @property
    def in_nats(self) -> bool:
        """Whether its mean is the plain cross entropy, in nats per token, as that of val/loss is."""
        return False

    def check_run(self, gpt: GPTConfig, tokenizer: str | None) -> None:  # noqa: B027 (most take any run)
        """Raise ValueError, before anything is trained, where it cannot train `gpt` on data of this tokenizer.

        tokenizer: the SHA-256 of its tokenizer.json; None where the data have none.
        """

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
        label_smoothing: This share of each target's probability goes to all tokens alike; at least 0 and below 1
            (Szegedy et al. 2016, arXiv 1512.00567).
        z_loss: Weight of the square of log sum exp of the logits, which keeps them from drifting; 1e-4 in PaLM
            (Chowdhery et al. 2022, arXiv 2204.02311).
        token_weights: What a target counts for, by its token id, such as {5: 0, 17: 2}; 1 where not given.
        chunk_tokens: Tokens whose logits exist at once, at chunk_tokens x vocab_size x 4 bytes; chosen by device when
            not given.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        token_weights: dict[int, float] | None = None,
        chunk_tokens: int | None = None,
    ):
        super().__init__(chunk_tokens)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing {label_smoothing}: expected at least 0 and below 1")
        if not 0 <= z_loss < math.inf:
            raise ValueError(f"z_loss {z_loss}: expected a finite number, at least 0")
        self.label_smoothing, self.z_loss, self.token_weights = label_smoothing, z_loss, dict(token_weights or {})
        for token, weight in self.token_weights.items():
            if token < 0 or not 0 <= weight < math.inf:
                raise ValueError(f"token_weights has {token}: {weight}; expected ids and finite weights, at least 0")

    @property
    def in_nats(self) -> bool:
        return type(self) is CrossEntropy and not (self.label_smoothing or self.z_loss or self.token_weights)

    def check_run(self, gpt: GPTConfig, tokenizer: str | None) -> None:
        self._check_ids(gpt.vocab_size)

    def weights_ahead(self, progress: float) -> list[float]:
        """What the targets 1, 2, ... tokens ahead count for, at this share of the run."""
        return [1.0]

    def forward(self, step: MicroStep) -> tuple[Float[Tensor, ""], Tensor]:
        """Sum of the nats over the targets that are not -100, and their number, or the sum of their weights.

        Matrix products run in the autocast dtype, the softmax and the sums in float32 (float64 for float64 input).
        Differentiable once, in hidden and weight.
        """
        hidden, (weight, softcap) = step.hidden.flatten(0, 1), step.readout
        n = self.chunk_tokens or default_chunk_tokens(len(weight), hidden.device)
        terms, ahead = Terms(self.label_smoothing, self.z_loss, softcap), self.weights_ahead(step.progress)
        if terms == Terms() and ahead == [1.0] and not self.token_weights:
            targets = step.targets.flatten()
            return cross_entropy_sum(hidden, weight, targets, n), (targets != IGNORED).sum()
        targets = targets_ahead(step.targets, len(ahead), step.positions).flatten(0, 1)
        per_id = self._weights_of_ids(len(weight), at_least_float32(matmul_dtype(hidden)), hidden.device)
        weights = per_id[targets.clamp(min=0)] * per_id.new_tensor(ahead) * (targets != IGNORED)
        return weighted_sum(hidden, weight, targets, weights, terms, n), weights.sum()

    def _check_ids(self, vocab_size: int) -> None:
        largest = max(self.token_weights, default=0)
        if largest >= vocab_size:
            raise ValueError(f"token_weights has the id {largest}; expected ids of the vocabulary, below {vocab_size}")

    def _weights_of_ids(self, vocab_size: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " vocab"]:
        self._check_ids(vocab_size)
        weights = torch.ones(vocab_size, dtype=dtype)
        weights[list(self.token_weights)] = torch.tensor(list(self.token_weights.values()), dtype=dtype)
        return weights.to(device)


def targets_ahead(
    targets: Int[Tensor, "batch time"], n_ahead: int, positions: Int[Tensor, "batch time"] | None = None
) -> Int[Tensor, "batch time n_ahead"]:
    """The targets 1, 2, ... n_ahead tokens ahead in the same row; -100 past its end, and past that of the document.

    positions: of each token in its own document, where it sees no other; it is not to foresee another either.
    """
    T = targets.shape[1]
    ahead = torch.full((*targets.shape, n_ahead), IGNORED, dtype=targets.dtype, device=targets.device)
    for k in range(min(n_ahead, T)):
        ahead[:, : T - k, k] = targets[:, k:]
        if positions is not None:
            same = positions[:, k:] == positions[:, : T - k] + k
            ahead[:, : T - k, k].masked_fill_(~same, IGNORED)
    return ahead


def linear_cross_entropy(
    hidden: Float[Tensor, "batch time d_model"],
    readout: Readout,
    targets: Int[Tensor, "batch time"],
    chunk_tokens: int | None = None,
) -> Float[Tensor, ""]:
    """Mean cross entropy in nats over the targets that are not -100, equal to that of the plain logits."""
    total, count = CrossEntropy(chunk_tokens=chunk_tokens)(MicroStep(hidden, readout, targets, targets, 0.0))
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

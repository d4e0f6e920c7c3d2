"""The readout as a value: what turns hidden states into logits, for losses that make them a chunk at a time."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


class Readout(NamedTuple):
    """Scores of the next token: hidden states times a matrix, softly capped where there is a softcap.

    weight: (V, D), the token embedding when tied. softcap: no logit is further from 0 than that; None: as they are.
    """

    weight: Float[Tensor, "vocab d_model"]
    softcap: float | None = None

    def logits(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """In float32 at least, for the softmax that follows; the product runs in the autocast dtype."""
        product = F.linear(hidden, self.weight)
        return capped(product.to(at_least_float32(product.dtype)), self.softcap)


def capped(logits: Float[Tensor, "*batch vocab"], softcap: float | None) -> Float[Tensor, "*batch vocab"]:
    """softcap x tanh(logits / softcap), as Gemma 2 caps its logits (2024, arXiv 2408.00118, section 2)."""
    if softcap is None:
        return logits
    logits = logits.to(at_least_float32(logits.dtype))  # in bfloat16 large ones would become equal
    return softcap * torch.tanh(logits / softcap)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """For sums and softmaxes; float64 stays, so that a derivative can be checked to the last digit."""
    return torch.promote_types(dtype, torch.float32)

"""Rotary positions (Su et al. 2021, arXiv 2104.09864): queries and keys turn by an angle that grows with position.

Coordinates i and i + d_head / 2 of a head make a plane that turns by position x 10000^(-2 i / d_head), as in Llama. So
a score depends on the distance alone: where a row starts, behind padding or in a document, makes no difference. The
table is made once, on the CPU whatever torch.device says, and is no part of a checkpoint.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

BASE = 10_000.0


class Rotary(nn.Module):
    """Turns (B, T, H, d_head) queries or keys of the positions past, past + 1, ...; T + past at most `length`."""

    cos: Tensor
    sin: Tensor

    def __init__(self, d_head: int, length: int):
        super().__init__()
        steps = torch.arange(0, d_head, 2, dtype=torch.float64, device="cpu") / d_head
        angles = torch.arange(length, dtype=torch.float64, device="cpu")[:, None] * BASE**-steps
        self.register_buffer("cos", angles.cos().float()[:, None], persistent=False)
        self.register_buffer("sin", angles.sin().float()[:, None], persistent=False)

    def forward(self, x: Float[Tensor, "batch time heads d_head"], past: int = 0) -> Tensor:
        T = x.shape[1]
        cos, sin = (table[past : past + T].to(x.dtype) for table in (self.cos, self.sin))
        first, second = x.chunk(2, -1)
        turned = torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)
        return torch.cat(turned, -1)

"""Matrix products with few rows on a CPU, at the speed of its memory.

Decoding multiplies one row per sequence with every weight of the model, so it can go no faster than the weights come
from memory. For float32 and one row MKL runs at a third of that, while its batched product of the same matrix, cut in
two, runs at all of it. Two cores of an AMD EPYC (Zen 4), torch 2.13, GB/s of weights read,
from several runs (the memory gives about 33):

    out x in         1 row: F.linear   here     4 rows: F.linear   here
    2304 x 768                 12.8    35.0                10.0    30.0
    768 x 3072                 18.7    32.4                10.6    14.7
    50257 x 768                13.5    32.9                 6.6    25.9

From eight rows on the two are alike; in bf16 F.linear is the faster one.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

MAX_ROWS = 8
MIN_D_MODEL = 512  # for narrower models what the detour costs, 30 microseconds per product, is more than it saves


def linear_few_rows(
    x: Float[Tensor, "*batch inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None = None,
) -> Float[Tensor, "*batch outputs"]:
    """F.linear as a batched product of the two halves of `weight`, which has two rows or more."""
    n_outputs, n_inputs = weight.shape
    columns = x.reshape(-1, n_inputs).t()
    halves = weight[: n_outputs // 2 * 2].view(2, n_outputs // 2, n_inputs)
    y = torch.bmm(halves, columns.expand(2, -1, -1)).flatten(0, 1)  # (outputs, rows)
    if n_outputs % 2:
        y = torch.cat([y, weight[-1:] @ columns])
    y = y.t().reshape(*x.shape[:-1], n_outputs)
    return y if bias is None else y + bias


class FewRows(TorchFunctionMode):
    """Inside this context F.linear, and so nn.Linear, takes the fast way where it is one; for inference only."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs and is_faster(*args[:2]):
            return linear_few_rows(*args)
        return func(*args, **(kwargs or {}))


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether this is a product that `linear_few_rows` was measured to be the faster for."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and 0 < x.numel() <= MAX_ROWS * x.shape[-1]
        and type(weight) in (Tensor, nn.Parameter)  # not a piece of a sharded one
        and weight.is_contiguous()
        and len(weight) > 1
        and torch.backends.mkl.is_available()
    )

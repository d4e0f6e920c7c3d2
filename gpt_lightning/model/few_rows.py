"""Matrix products with few rows on a CPU, at the speed of its memory.

Decoding multiplies one row per sequence with every weight of the model, so it can go no faster than the weights come
from memory. For float32 and one row MKL runs at a third of that, while its batched product of the same matrix, cut in
two, runs at all of it. Two cores of an AMD EPYC (Zen 4), torch 2.13, GB/s of weights read,
from several runs (the memory gives about 33):

    out x in         1 row: F.linear   here     4 rows: F.linear   here
    2304 x 768                 12.8    35.0                10.0    30.0
    768 x 3072                 18.7    32.4                10.6    14.7
    50257 x 768                13.5    32.9                 6.6    25.9

On one thread, microseconds of CPU time, F.linear against here; * is what `is_faster` takes:

    out x in         1 row          2 rows         4 rows         8 rows
    2304 x 768       666, 371*      1129, 420*     913, 619*      1052*, 1530
    3072 x 768       889, 499*      1820, 594*     1274, 858*     1454*, 2018
    768 x 3072       704, 557*      1236*, 1056    985*, 1804     1202*, 2392
    50257 x 768      13295, 6587*   28353, 8478*   26749, 11905*  30673*, 29110

So one row always, and up to four where outputs are no fewer than inputs or there is more than one thread.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

MAX_ROWS = 4
MIN_WEIGHTS = 512 * 512  # for smaller ones what the detour costs, 20 microseconds per product, is more than it saves


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


class FewRowsLinear(nn.Module):
    """nn.Linear with the same parameters, in the product that is the faster one for the rows at hand."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        product = linear_few_rows if is_faster(x, self.weight) else F.linear
        return product(x, self.weight, self.bias)


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether this is a product that `linear_few_rows` was measured to be the faster for."""
    n_rows = x.numel() // x.shape[-1]
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and (n_rows == 1 or 1 < n_rows <= MAX_ROWS and (len(weight) >= weight.shape[1] or torch.get_num_threads() > 1))
        and weight.numel() >= MIN_WEIGHTS
        and weight.is_contiguous()
        and torch.backends.mkl.is_available()
    )

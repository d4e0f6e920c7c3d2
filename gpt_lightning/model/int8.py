"""Linear layers with int8 weights, for generation on a CPU: a quarter of the bytes of float32.

Each output has its own scale, so that its largest weight is 127: a weight is off by at most half a step, 0.4% of the
largest of its row, and the text's bits per byte move by less than 0.1%. The activations keep 16 bits, as two digits
of 8: they are two rows of one int8 product, which reads the weights once,

    x = step (256 high + low)        x W = step scale (256 (high Q) + low Q)        high, low in -128..127

and whose sums are whole numbers, so that a row gives the same bits whatever rows stand beside it. Unlike 8 bits per
activation this needs no care about outliers. The digits cost no arithmetic: x / step added to MAGIC is rounded to a
whole number, and the last two bytes of the sum are the digits + 128. What a product costs beside reading its weights
is the start of a dozen operations, so there are as few as can be.

Other ways, microseconds of CPU time for one row, one thread of an AMD EPYC (Zen 4), torch 2.13, torchao 0.18:

    out x in                                       2304 x 768   768 x 3072   50257 x 768
    float32: F.linear, few_rows.py                   623, 289     574, 388   12,946, 5,839
    bf16: F.linear, packed                           453, 239     485, 300    9,088, 4,426
    int8, bf16 activations: torch, torchao           258, 540     241, 686    5,855, -
    int8, int8 activations: torchao                     1,158        1,447         -
    int8, int8 activations: fbgemm (deprecated)           119          114       2,336
    int8, 16-bit activations: here                        124          186       3,290
"""

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

LARGEST = 2**15 - 2**7 - 1  # of x / step, so that both digits stay in -128..127
MAGIC = torch.tensor(2.0**23 + 2**15 + 2**7)  # from 2^23 on float32 has whole numbers alone, in its last bits
TINY = torch.tensor(1e-30)  # so that a row of zeros has a step


def quantize(
    weight: Float[Tensor, "outputs inputs"],
) -> tuple[Int8[Tensor, "outputs inputs"], Float[Tensor, " outputs"]]:
    """Whole numbers and one scale per output, so that numbers x scale is `weight` to half a scale."""
    weight = weight.float()
    scales = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (weight / scales[:, None]).round().to(torch.int8), scales


class Int8Linear(nn.Module):
    """A linear layer for inference on a CPU whose weights are int8; activations and bias are float32."""

    def __init__(self, weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None = None):
        super().__init__()
        numbers, scales = quantize(weight.detach())
        self.packed = torch.ops.onednn.qlinear_prepack(numbers, None)  # oneDNN's own order
        self.scales = scales
        self.zeros = torch.zeros(len(scales), dtype=torch.long)
        self.bias = None if bias is None else bias.detach().float()

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        rows = x.reshape(-1, x.shape[-1]).float()
        n, d = rows.shape
        step = torch.add(TINY, torch.linalg.vector_norm(rows, torch.inf, -1, keepdim=True), alpha=1 / LARGEST)
        summed = torch.addcdiv(MAGIC, rows, step).view(torch.uint8)
        if n == 1:  # oneDNN takes less time for four rows than for two, so they are there twice
            digits = summed.as_strided((2, 2, d), (0, 1, 4)).reshape(4, d)
        else:
            digits = summed.as_strided((2, n, d), (1, 4 * d, 4)).reshape(2 * n, d)
        y = torch.ops.onednn.qlinear_pointwise(
            digits, 1.0, 128, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        y = torch.add(y[:n], y[n : 2 * n], alpha=256)
        y = y.mul_(step) if self.bias is None else torch.addcmul(self.bias, y, step)
        return y.view(*x.shape[:-1], -1)

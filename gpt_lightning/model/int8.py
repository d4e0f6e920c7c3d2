"""Linear layers with int8 weights, for generation on a CPU: a quarter of the bytes of float32.

Each output has its own scale, so that its largest weight is 127: a weight is off by at most half a step, 0.4% of the
largest of its row, and the text's bits per byte move by less than 0.1%. The activations keep 14 bits, as two digits
of 7: they are two rows of one int8 product, which reads the weights once,

    x = step (128 high + low)        x W = step scale (128 (high Q) + low Q)        high, low in -64..63

and whose sums are whole numbers, so that a row gives the same bits whatever rows stand beside it. Unlike 8 bits per
activation this needs no care about outliers; 7 bits are what every x86 multiplies without saturating.

Other ways, microseconds of CPU time for one row, one thread of an AMD EPYC (Zen 4), torch 2.13, torchao 0.18:

    out x in                                       2304 x 768   768 x 3072   50257 x 768
    float32: F.linear, few_rows.py                   623, 289     574, 388   12,946, 5,839
    bf16: F.linear, packed                           453, 239     485, 300    9,088, 4,426
    int8, bf16 activations: torch, torchao           258, 540     241, 686    5,855, -
    int8, int8 activations: torchao                     1,158        1,447         -
    int8, int8 activations: fbgemm (deprecated)           119          114       2,336
    int8, 14-bit activations: here, without digits        161          167       2,898
"""

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

DIGIT = 128
LARGEST = 64 * DIGIT - DIGIT // 2 - 1  # 8127: the largest activation, so that both digits stay in -64..63


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
        step = rows.abs().amax(-1, keepdim=True).clamp_(min=1e-30) / LARGEST
        shifted = (rows / step).add_(64 * DIGIT + DIGIT // 2 + 0.5).to(torch.int32)  # rounds: all are positive
        digits = [shifted >> 7, shifted & (DIGIT - 1)]
        if len(rows) == 1:
            digits *= 2  # oneDNN takes a quarter less time for four rows than for two
        stacked = torch.cat(digits).to(torch.uint8)
        y = torch.ops.onednn.qlinear_pointwise(
            stacked, 1.0, 64, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        high, low = y[: len(rows)], y[len(rows) : 2 * len(rows)]
        y = torch.add(low, high, alpha=DIGIT).mul_(step)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], -1)

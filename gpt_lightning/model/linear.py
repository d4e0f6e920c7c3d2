"""A linear layer for training on a CPU that keeps less for the backward pass, with or without GELU before it.

Under autocast torch keeps the bf16 copy of every weight from forward to backward; here it is cast again. GELU's result
is the largest activation of a layer (d_ff = 4 d_model) and is made again as well. torch's kernel of GELU in its tanh
form spends its time in tanh, so here it is the same function by the logistic one:

    0.5 x (1 + tanh(u)) = x sigmoid(2 u),   u = sqrt(2 / pi) (x + 0.044715 x^3)

An MLP, forward and backward, one thread of an AMD EPYC (Zen 4): milliseconds of CPU time, median, and megabytes kept:

    tokens x d_model          torch          here
    4096 x 384, bf16          195, 30.7      169, 15.7
    4096 x 384, float32       365, 61.3      365, 33.8
    2048 x 768, bf16          331, 37.7      335, 15.7
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gpt_lightning.model.facts import Facts

FIRST = (8 / torch.pi) ** 0.5  # 2 u = x (FIRST + THIRD x^2)
THIRD = FIRST * 0.044715
AT_ONCE = 2**18  # numbers of GELU whose float32 copies are in the cache at once


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        ctx.gelu, ctx.dtype = gelu, x.dtype
        x = x.to(dtype).contiguous()
        ctx.save_for_backward(x, weight)
        y = _gelu(x) if gelu else x
        out = F.linear(y, weight.to(dtype))
        return out if bias is None else out.add_(bias.to(dtype))  # half the time of a product that starts from the bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        _, for_weight, for_bias, _ = ctx.needs_input_grad
        grad_x = grad @ weight.to(x.dtype)
        if ctx.gelu:
            x, grad_x = _gelu_backward(x, grad_x)
        rows = grad.flatten(0, -2)
        grad_weight = (rows.T @ x.flatten(0, -2)).to(weight.dtype) if for_weight else None
        grad_bias = rows.sum(0).to(weight.dtype) if for_bias else None
        return grad_x.to(ctx.dtype), grad_weight, grad_bias, None


def _gelu(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    for part, out in _parts(x, y):
        part = _float(part)
        out.copy_(_gate(part).mul_(part))
    return y


def _gelu_backward(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """GELU(x) again, and the gradient in x: gate (1 + (x - GELU(x)) d(2 u)/dx) times that of GELU(x), in place."""
    y = torch.empty_like(x)
    for part, gradient, out in _parts(x, grad, y):
        part = _float(part)
        gate = _gate(part)
        value = gate * part
        out.copy_(value)
        slope = torch.addcmul(part.new_tensor(FIRST), part, part, value=3 * THIRD)
        slope.mul_(torch.sub(part, value, out=value))
        gate.mul_(gradient)
        gradient.copy_(torch.addcmul(gate, gate, slope, out=slope))
    return y, grad


def _gate(x: Tensor) -> Tensor:
    """sigmoid(2 u)."""
    return torch.addcmul(x.new_tensor(FIRST), x, x, value=THIRD).mul_(x).sigmoid_()


def _float(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.view(-1).split(AT_ONCE) for tensor in tensors), strict=True)


def _training_on_cpu(x: Tensor) -> bool:
    """Whether plain autograd will run: neither torch.compile nor torch.func, which want functions of their own."""
    plain = not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
    return plain and torch.is_grad_enabled() and x.device.type == "cpu"


class Linear(nn.Linear):
    """nn.Linear that says more of itself, and keeps less for the backward pass on a CPU.

    parts: rows of the matrices that are fused in it. residual: whether its output is added to the residual stream.
    """

    def __init__(
        self, d_in: int, d_out: int, bias: bool = True, *, parts: tuple[int, ...] = (), residual: bool = False
    ):
        super().__init__(d_in, d_out, bias=bias)
        if parts and sum(parts) != d_out:
            raise ValueError(f"parts {list(parts)} have {sum(parts)} rows, the matrix {d_out}; expected the same")
        self.parts, self.residual = parts, residual

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        if _training_on_cpu(x) and torch.is_autocast_enabled("cpu"):
            return _Linear.apply(x, self.weight, self.bias, False)
        return super().forward(x)

    def parameter_facts(self) -> dict[str, Facts]:
        weight = {"weight": Facts("hidden", residual=self.residual, parts=self.parts)}
        return weight if self.bias is None else {**weight, "bias": Facts("vector", std=0.0, residual=self.residual)}


def after_gelu(layer: nn.Module, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
    """layer(GELU(x)), GELU in its tanh form, as GPT-2 and GPT-3 have it.

    Hooks of a `Linear` do not run; any other layer is called as it is.
    """
    if _training_on_cpu(x) and type(layer) is Linear:
        return _Linear.apply(x, layer.weight, layer.bias, True)
    if x.device.type == "cpu" and torch.compiler.is_compiling():
        y = _float(x)
        return layer((y * torch.sigmoid(y * (FIRST + THIRD * y * y))).to(x.dtype))
    return layer(F.gelu(x, approximate="tanh"))

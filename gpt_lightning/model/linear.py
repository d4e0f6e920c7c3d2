"""A linear layer for training on a CPU that keeps less for the backward pass, with or without an activation before it.

Under autocast torch keeps the bf16 copy of every weight from forward to backward; here it is cast again. The result of
an MLP's activation (activations.py) is made again as well.

An MLP with GELU, forward and backward, one thread of an AMD EPYC (Zen 4): milliseconds, median, and megabytes kept:

    tokens x d_model          torch          here
    4096 x 384, bf16          195, 30.7      169, 15.7
    4096 x 384, float32       365, 61.3      365, 33.8
    2048 x 768, bf16          331, 37.7      335, 15.7
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gpt_lightning.model.activations import Activation
from gpt_lightning.model.facts import Facts


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, before: Activation | None) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        ctx.before, ctx.dtype = before, x.dtype
        x = x.to(dtype).contiguous()
        ctx.save_for_backward(x, weight)
        y = before.forward(x) if before else x
        out = F.linear(y, weight.to(dtype))
        return out if bias is None else out.add_(bias.to(dtype))  # half the time of a product that starts from the bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        _, for_weight, for_bias, _ = ctx.needs_input_grad
        grad_x = grad @ weight.to(x.dtype)
        if ctx.before:
            x, grad_x = ctx.before.backward(x, grad_x)
        rows = grad.flatten(0, -2)
        grad_weight = (rows.T @ x.flatten(0, -2)).to(weight.dtype) if for_weight else None
        grad_bias = rows.sum(0).to(weight.dtype) if for_bias else None
        return grad_x.to(ctx.dtype), grad_weight, grad_bias, None


def training_on_cpu(x: Tensor) -> bool:
    """Whether plain autograd will run: neither torch.compile nor torch.func, which want functions of their own."""
    plain = not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
    return plain and torch.is_grad_enabled() and x.device.type == "cpu"


class Linear(nn.Linear):
    """nn.Linear that says more of itself, and keeps less for the backward pass on a CPU.

    parts: rows of the matrices that are fused in it. residual: whether its output is added to the residual stream.
    std: of its initial weights, times what its role has.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        bias: bool = True,
        *,
        parts: tuple[int, ...] = (),
        residual: bool = False,
        std: float = 1.0,
    ):
        super().__init__(d_in, d_out, bias=bias)
        if parts and sum(parts) != d_out:
            raise ValueError(f"parts {list(parts)} have {sum(parts)} rows, the matrix {d_out}; expected the same")
        self.parts, self.residual, self.std = parts, residual, std

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        if training_on_cpu(x) and torch.is_autocast_enabled("cpu"):
            return _Linear.apply(x, self.weight, self.bias, None)
        return super().forward(x)

    def parameter_facts(self) -> dict[str, Facts]:
        weight = {"weight": Facts("hidden", self.std, residual=self.residual, parts=self.parts)}
        return weight if self.bias is None else {**weight, "bias": Facts("vector", std=0.0, residual=self.residual)}


def after(
    activation: Activation, layer: nn.Module, x: Float[Tensor, "*batch inputs"]
) -> Float[Tensor, "*batch outputs"]:
    """layer(activation(x)). Hooks of a `Linear` do not run; any other layer is called as it is."""
    if training_on_cpu(x) and type(layer) is Linear:
        return _Linear.apply(x, layer.weight, layer.bias, activation)
    return layer(activation.plain(x))

"""What stands between the two matrices of an MLP, with a way back on a CPU that keeps the input alone.

    gelu        x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)       GPT-2's tanh form of GELU, GPT-3
    gelu_erf    x Phi(x)                                                  GELU as defined (1606.08415), GPT-NeoX
    relu2       max(x, 0)^2                                               Primer (2109.08668), Nemotron, nanochat
    swiglu      gate sigmoid(gate) up                                     Shazeer (2002.05202), Llama
    geglu       gelu(gate) up                                             Shazeer, Gemma

The input is the largest activation of a layer. torch's kernel of GELU in its tanh form spends its time in tanh, so here
it is the same function by the logistic one: 0.5 x (1 + tanh(u)) = x sigmoid(2 u). The gated ones take [gate | up], two
inputs for each output.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

FIRST = (8 / torch.pi) ** 0.5  # 2 u = x (FIRST + THIRD x^2)
THIRD = FIRST * 0.044715
AT_ONCE = 2**18  # numbers whose float32 copies are in the cache at once


class Activation(NamedTuple):
    """A function, for autograd and compilers (`plain`), and twice by hand, for contiguous tensors.

    backward: (input, gradient of the result, which it may overwrite) -> (the result again, gradient of the input).
    n_inputs: inputs for each output.
    """

    plain: Callable[[Tensor], Tensor]
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    n_inputs: int = 1


def _gelu_plain(x: Tensor) -> Tensor:
    if x.device.type == "cpu" and torch.compiler.is_compiling():
        y = _float(x)
        return (y * torch.sigmoid(y * (FIRST + THIRD * y * y))).to(x.dtype)
    return F.gelu(x, approximate="tanh")


def _gelu(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    for part, out in _parts(x, y):
        part = _float(part)
        out.copy_(_gelu_gate(part).mul_(part))
    return y


def _gelu_backward(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """GELU(x) again, and the gradient in x: gate (1 + (x - GELU(x)) d(2 u)/dx) times that of GELU(x), in place."""
    y = torch.empty_like(x)
    for part, gradient, out in _parts(x, grad, y):
        part = _float(part)
        gate = _gelu_gate(part)
        value = gate * part
        out.copy_(value)
        slope = torch.addcmul(part.new_tensor(FIRST), part, part, value=3 * THIRD)
        slope.mul_(torch.sub(part, value, out=value))
        gate.mul_(gradient)
        gradient.copy_(torch.addcmul(gate, gate, slope, out=slope))
    return y, grad


def _gelu_gate(x: Tensor) -> Tensor:
    """sigmoid(2 u)."""
    return torch.addcmul(x.new_tensor(FIRST), x, x, value=THIRD).mul_(x).sigmoid_()


def _gelu_erf_backward(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return F.gelu(x), torch.ops.aten.gelu_backward(grad, x, approximate="none")


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _relu2_backward(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    positive = F.relu(x)
    return positive.square(), grad.mul_(positive).mul_(2)


def _silu(gate: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU and its slope."""
    share = gate.sigmoid()
    value = share * gate
    return value, (gate - value).add_(1).mul_(share)


def _gelu_and_slope(gate: Tensor) -> tuple[Tensor, Tensor]:
    """GELU in its tanh form, and its slope."""
    share = _gelu_gate(gate)
    value = share * gate
    inner = torch.addcmul(gate.new_tensor(FIRST), gate, gate, value=3 * THIRD)
    return value, inner.mul_(gate - value).add_(1).mul_(share)


def _gated(plain: Callable[[Tensor], Tensor], and_slope: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Activation:
    """plain(gate) x up, of [gate | up]."""

    def product(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return plain(gate) * up

    def backward(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        y, grad_x = torch.empty_like(grad), torch.empty_like(x)
        n_rows = max(AT_ONCE // x.shape[-1], 1)
        tensors = (tensor.flatten(0, -2).split(n_rows) for tensor in (x, grad, y, grad_x))
        for rows, gradient, out, into in zip(*tensors, strict=True):
            gate, up = (_float(half) for half in rows.chunk(2, -1))
            value, slope = and_slope(gate)
            out.copy_(value * up)
            half = into.shape[-1] // 2
            into[:, :half] = slope.mul_(up).mul_(gradient)
            into[:, half:] = value.mul_(gradient)
        return y, grad_x

    return Activation(product, product, backward, n_inputs=2)


def _float(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.view(-1).split(AT_ONCE) for tensor in tensors), strict=True)


GELU = Activation(_gelu_plain, _gelu, _gelu_backward)
ACTIVATIONS = {
    "gelu": GELU,
    "gelu_erf": Activation(F.gelu, F.gelu, _gelu_erf_backward),
    "relu2": Activation(_relu2, _relu2, _relu2_backward),
    "swiglu": _gated(F.silu, _silu),
    "geglu": _gated(_gelu_plain, _gelu_and_slope),
}

"""The linear layer of training on a CPU against torch's own: values, gradients, and what it keeps for backward."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gpt_lightning.model.activations import AT_ONCE, GELU
from gpt_lightning.model.gpt import MLP
from gpt_lightning.model.linear import Linear, after


def layer(dtype=torch.float64, n_inputs=48, n_outputs=32):
    torch.manual_seed(0)
    made = Linear(n_inputs, n_outputs).to(dtype)
    nn.init.normal_(made.bias)
    return made, (3 * torch.randn(2, 9, n_inputs, dtype=dtype)).requires_grad_()


def value_and_gradients(y, *inputs):
    return y, *torch.autograd.grad(y, inputs, torch.linspace(-1, 1, y.numel()).to(y).view_as(y))


def test_after_gelu_is_the_layer_of_gelu_with_its_gradients():
    made, x = layer(n_inputs=AT_ONCE // 8)  # several parts, the last one smaller
    inputs = x, made.weight, made.bias
    plain = made(F.gelu(x, approximate="tanh"))
    torch.testing.assert_close(
        value_and_gradients(after(GELU, made, x), *inputs), value_and_gradients(plain, *inputs), rtol=1e-9, atol=1e-9
    )


def test_a_compiled_block_computes_the_same_gelu(monkeypatch):
    made, x = layer()
    expected = made(F.gelu(x, approximate="tanh"))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(F, "gelu", None)
    torch.testing.assert_close(after(GELU, made, x), expected)


@pytest.mark.parametrize("gelu", [False, True])
def test_under_bf16_autocast_it_is_as_near_to_float64_as_torch_is(gelu):
    made, x = layer(torch.float32, 384, 256)
    inputs = x, made.weight, made.bias
    exact_made, exact_x = layer(torch.float64, 384, 256)
    exact_made.load_state_dict(made.state_dict())
    exact_x = x.detach().double().requires_grad_()

    def plain(m, v):
        return F.linear(F.gelu(v, approximate="tanh") if gelu else v, m.weight, m.bias)

    exact = value_and_gradients(plain(exact_made, exact_x), exact_x, exact_made.weight, exact_made.bias)
    with torch.autocast("cpu", torch.bfloat16):
        ours, torchs = (after(GELU, made, x) if gelu else made(x)), plain(made, x)
    for a, b, e in zip(value_and_gradients(ours, *inputs), value_and_gradients(torchs, *inputs), exact, strict=True):
        assert a.dtype == b.dtype
        assert (a - e).norm() < 1.3 * (b - e).norm()


def test_an_mlp_keeps_its_input_and_one_activation_and_no_copy_of_a_weight():
    torch.manual_seed(0)
    mlp, x = MLP(64, 256, 0.0, True), torch.randn(2, 8, 64, requires_grad=True)
    kept = {}

    def keep(tensor):
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        mlp(x).float().sum()
    assert sorted(t.numel() for t in kept.values()) == [2 * 8 * 64, 2 * 8 * 256]
    assert {t.dtype for t in kept.values()} == {torch.bfloat16}


def test_a_layer_of_another_class_is_called_as_it_is():
    class Twice(Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    made, x = layer()
    twice = Twice(48, 32).double()
    twice.load_state_dict(made.state_dict())
    torch.testing.assert_close(after(GELU, twice, x), 2 * after(GELU, made, x))

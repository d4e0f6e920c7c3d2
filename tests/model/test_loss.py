"""The chunked loss against plain cross entropy on whole logits: value, gradients and memory."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpt_lightning.model.loss import CrossEntropy, MicroStep, TokenLoss, token_nats
from gpt_lightning.model.loss import linear_cross_entropy as mean_nats
from gpt_lightning.model.readout import Readout, capped

N, D, V = 37, 12, 101


def inputs(dtype=torch.float64, ignored: bool = True):
    torch.manual_seed(0)
    hidden = torch.randn(N, D, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, V, (N,))
    if ignored:
        targets[[0, 5, 6, 36]] = -100
    return hidden, weight, targets


def micro_step(hidden, weight, targets, softcap=None) -> MicroStep:
    """Of one sequence."""
    return MicroStep(hidden[None], Readout(weight, softcap), targets[None], targets[None], progress=0.0)


def linear_cross_entropy(hidden, weight, targets, chunk_tokens=None):
    return mean_nats(hidden[None], Readout(weight), targets[None], chunk_tokens)


@pytest.mark.parametrize("chunk_tokens", [1, 8, 36, 37, 1000])
@pytest.mark.parametrize("ignored", [False, True])
def test_value_and_gradients_are_those_of_plain_cross_entropy(chunk_tokens, ignored):
    hidden, weight, targets = inputs(ignored=ignored)
    plain = F.cross_entropy(F.linear(hidden, weight), targets)
    expected = torch.autograd.grad(plain, (hidden, weight))
    loss = linear_cross_entropy(hidden, weight, targets, chunk_tokens)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weight)), expected)


def test_a_frozen_readout_gets_no_gradient_and_hidden_states_the_same():
    hidden, weight, targets = inputs()
    expected = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, 8), hidden)
    found = torch.autograd.grad(linear_cross_entropy(hidden, weight.detach(), targets, 8), hidden)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_targets_of_which_none_counts_add_nothing():
    hidden, weight, targets = inputs()
    total, count = CrossEntropy()(micro_step(hidden, weight, torch.full_like(targets, -100)))
    assert (total.item(), count.item()) == (0.0, 0)
    assert not torch.autograd.grad(total, hidden)[0].any()


class PlainCrossEntropy(TokenLoss):
    def per_token(self, logits, targets):
        assert (targets >= 0).all()
        return F.cross_entropy(logits, targets, reduction="none")


@pytest.mark.parametrize("chunk_tokens", [1, 8, 36, 37, 1000])
@pytest.mark.parametrize("loss", [CrossEntropy, PlainCrossEntropy])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_loss_gives_the_sum_over_targets_that_count_and_their_number(chunk_tokens, loss, softcap):
    hidden, weight, targets = inputs()
    logits = F.linear(hidden, weight)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    plain = F.cross_entropy(logits, targets, reduction="sum")
    expected = torch.autograd.grad(plain, (hidden, weight))
    total, count = loss(chunk_tokens=chunk_tokens)(micro_step(hidden, weight, targets, softcap))
    assert count == N - 4
    torch.testing.assert_close(total, plain)
    torch.testing.assert_close(torch.autograd.grad(total, (hidden, weight)), expected)


def test_a_target_of_no_probability_in_float32_still_has_its_nats():
    hidden, weight = torch.eye(2, 3) * 1000, torch.eye(3)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1, 2]))
    torch.testing.assert_close(loss, torch.tensor(1000.0))


def test_gradients_are_scaled_by_what_comes_from_above():
    hidden, weight, targets = inputs()
    expected = torch.autograd.grad(0.25 * F.cross_entropy(F.linear(hidden, weight), targets), (hidden, weight))
    loss = 0.25 * linear_cross_entropy(hidden, weight, targets, 8)
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weight)), expected)


def test_under_bf16_autocast_it_is_as_near_to_float64_as_plain_cross_entropy_is():
    hidden, weight, targets = inputs(torch.float32)
    exact = F.cross_entropy(F.linear(hidden.double(), weight.double()), targets)
    exact_gradients = torch.autograd.grad(exact, (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        plain = F.cross_entropy(F.linear(hidden, weight).float(), targets)
        loss = linear_cross_entropy(hidden, weight, targets, 8)
    assert loss.dtype == torch.float32
    assert abs(loss - exact) <= 1.5 * abs(plain - exact) + 1e-3
    gradients = torch.autograd.grad(loss, (hidden, weight))
    plain_gradients = torch.autograd.grad(plain, (hidden, weight))
    for ours, theirs, reference in zip(gradients, plain_gradients, exact_gradients, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - reference).norm() <= 1.5 * (theirs - reference).norm()


def test_targets_that_are_all_ignored_give_zero_and_no_gradient():
    hidden, weight, targets = inputs()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(targets, -100), 8)
    loss.backward()
    assert loss == 0 and not hidden.grad.any() and not weight.grad.any()


def test_a_huge_logit_does_not_overflow():
    hidden, weight, targets = inputs(torch.float32)
    loss = linear_cross_entropy(1e4 * hidden, weight, targets, 8)
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(1e4 * hidden, weight), targets))


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any tensor had."""

    n_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.n_elements = max([self.n_elements, *sizes])
        return out


def test_no_tensor_ever_has_an_element_per_token_and_vocabulary_entry():
    hidden, weight, targets = torch.randn(64, 4, requires_grad=True), torch.randn(500, 4, requires_grad=True), None
    targets = torch.randint(0, 500, (64,))
    with LargestTensor() as plain:
        F.cross_entropy(F.linear(hidden, weight), targets).backward()
    with LargestTensor() as chunked:
        linear_cross_entropy(hidden, weight, targets, 8).backward()
    with LargestTensor() as own:
        PlainCrossEntropy(chunk_tokens=8)(micro_step(hidden, weight, targets))[0].backward()
    assert plain.n_elements == 64 * 500
    assert chunked.n_elements == own.n_elements == 8 * 500


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_token_nats_are_plain_cross_entropy_per_token(softcap):
    hidden, weight, targets = inputs()
    expected = F.cross_entropy(capped(F.linear(hidden, weight), softcap), targets, reduction="none")
    found = token_nats(hidden[None], Readout(weight, softcap), targets[None], 8)
    torch.testing.assert_close(found, expected.detach()[None])


def test_a_chunk_of_nothing_is_refused():
    with pytest.raises(ValueError, match="chunk_tokens 0"):
        CrossEntropy(chunk_tokens=0)

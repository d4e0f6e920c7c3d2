"""Label smoothing, z-loss, weights of tokens, several tokens ahead: against a loop over targets in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gpt_lightning.model import cross_entropy
from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.loss import CrossEntropy, MicroStep
from gpt_lightning.model.multi_token import MultiToken
from gpt_lightning.model.readout import Readout
from tests.model.test_loss import LargestTensor

B, T, D, V = 3, 9, 12, 31
TERMS = {"label_smoothing": 0.1, "z_loss": 0.03, "token_weights": {3: 0.0, 7: 2.5, 11: 0.3}}
SETTINGS = [{}, *({name: value} for name, value in TERMS.items()), TERMS]


def micro_step(dtype=torch.float64, softcap=None, progress=0.0, ignored=True) -> MicroStep:
    """Of few token ids, so that every weight is met; with targets of -100 at the ends and inside of rows."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(B, T, D, dtype=torch.float64, generator=random).to(dtype).requires_grad_()
    weight = torch.randn(V, D, dtype=torch.float64, generator=random).to(dtype).requires_grad_()
    targets = torch.randint(0, 12, (B, T), generator=random)
    if ignored:
        targets[0, 0] = targets[0, 4] = targets[1, -2:] = -100
        targets[2] = -100
    return MicroStep(hidden, Readout(weight, softcap), targets, targets, progress)


def by_hand(step: MicroStep, ahead=(1.0,), label_smoothing=0.0, z_loss=0.0, token_weights=None) -> tuple[Tensor, float]:
    """The sum over targets one by one, from whole logits, and the sum of their weights."""
    logits = step.hidden @ step.readout.weight.T
    if step.readout.softcap is not None:
        logits = step.readout.softcap * torch.tanh(logits / step.readout.softcap)
    total, count = logits.new_zeros(()), 0.0
    for b in range(B):
        for t in range(T):
            for k, w in enumerate(ahead):
                target = int(step.targets[b, t + k]) if t + k < T else -100
                if target == -100:
                    continue
                w = w * (token_weights or {}).get(target, 1.0)
                z = logits[b, t].logsumexp(0)
                wanted = torch.full((V,), label_smoothing / V, dtype=logits.dtype)
                wanted[target] += 1 - label_smoothing
                total = total + w * ((wanted * (z - logits[b, t])).sum() + z_loss * z**2)
                count += w
    return total, count


def gradients(total: Tensor, step: MicroStep) -> tuple[Tensor, ...]:
    return torch.autograd.grad(total, (step.hidden, step.readout.weight))


@pytest.mark.parametrize("chunk_tokens", [1, 8, 1000])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: " ".join(settings) or "none")
def test_value_gradients_and_count_are_those_of_a_loop_over_targets(settings, softcap, chunk_tokens):
    step = micro_step(softcap=softcap)
    expected, count = by_hand(step, **settings)
    total, found = CrossEntropy(**settings, chunk_tokens=chunk_tokens)(step)
    torch.testing.assert_close(total, expected)
    assert found.item() == pytest.approx(count, rel=1e-12)
    torch.testing.assert_close(gradients(total, step), gradients(expected, step))


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("settings", [{}, TERMS], ids=["none", "all"])
def test_several_tokens_ahead_are_those_of_the_same_row(monkeypatch, settings, softcap):
    monkeypatch.setattr(cross_entropy, "rows_at_once", lambda scores: 5)  # larger vocabularies go a few rows at once
    step = micro_step(softcap=softcap, progress=0.1)
    expected, count = by_hand(step, ahead=(1.0, 0.4, 0.0, 0.2 / 2), **settings)
    total, found = MultiToken((0.4, 0.0, 0.2), fade=0.6, chunk_tokens=8, **settings)(step)
    torch.testing.assert_close(total, expected)
    assert found.item() == pytest.approx(count, rel=1e-12)
    torch.testing.assert_close(gradients(total, step), gradients(expected, step))


@pytest.mark.parametrize(
    ("progress", "ahead"),
    [
        (0, [1, 0.5, 0.25]),
        (1 / 4, [1, 0.5, 0.125]),
        (1 / 2, [1, 0.5]),
        (5 / 8, [1, 0.375]),
        (3 / 4, [1, 0.25]),
        (1, [1]),
    ],
)
def test_targets_fade_in_turn_the_furthest_first(progress, ahead):
    assert MultiToken((0.5, 0.25), fade=1.0).weights_ahead(progress) == ahead
    assert MultiToken((0.5, 0.25), fade=0.5).weights_ahead(progress / 2) == ahead


def test_rows_shorter_than_what_is_ahead_have_what_they_have():
    step = micro_step(ignored=False)
    short = MicroStep(step.hidden[:, :2], step.readout, step.tokens[:, :2], step.targets[:, :2], 0.0)
    total, count = MultiToken((1.0, 1.0, 1.0))(short)
    logits = short.hidden @ short.readout.weight.T
    nats = [F.cross_entropy(logits[:, t], short.targets[:, s], reduction="sum") for t, s in ((0, 0), (0, 1), (1, 1))]
    torch.testing.assert_close(total, sum(nats))
    assert count == 3 * B


@pytest.mark.parametrize("loss", [MultiToken(fade=0.5), CrossEntropy(token_weights={}), CrossEntropy()], ids=repr)
def test_without_further_terms_it_is_plain_cross_entropy_to_the_bit(loss):
    step = micro_step(torch.float32, progress=0.5)
    plain, count = CrossEntropy()(step)
    total, found = loss(step)
    assert torch.equal(total, plain) and torch.equal(found, count)
    assert all(map(torch.equal, gradients(total, step), gradients(plain, step)))


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("loss", [CrossEntropy(**TERMS, chunk_tokens=8), MultiToken(**TERMS, chunk_tokens=8)], ids=repr)
def test_under_bf16_autocast_it_is_as_near_to_float64_as_autograd_on_whole_logits_is(loss, softcap):
    step, exact_step = micro_step(torch.float32, softcap), micro_step(softcap=softcap)
    ahead = loss.weights_ahead(0.0)
    exact, _ = by_hand(exact_step, ahead, **TERMS)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = MicroStep(step.hidden, step.readout, step.tokens, step.targets, 0.0)
        plain, _ = by_hand(rounded, ahead, **TERMS)
        total, _ = loss(step)
    assert total.dtype == torch.float32
    assert abs(total - exact) <= 1.5 * abs(plain - exact) + 1e-2
    for ours, theirs, right in zip(
        gradients(total, step), gradients(plain, step), gradients(exact, exact_step), strict=True
    ):
        assert ours.dtype == torch.float32
        assert (ours - right).norm() <= 1.5 * (theirs - right).norm()


def test_no_tensor_ever_has_an_element_per_token_and_vocabulary_entry():
    hidden, weight = torch.randn(4, 16, 4, requires_grad=True), torch.randn(500, 4, requires_grad=True)
    targets = torch.randint(0, 500, (4, 16))
    with LargestTensor() as largest:
        step = MicroStep(hidden, Readout(weight, 5.0), targets, targets, 0.0)
        MultiToken(**TERMS, chunk_tokens=8)(step)[0].backward()
    assert largest.n_elements == 8 * 500


@pytest.mark.parametrize("loss", [CrossEntropy(**TERMS), MultiToken()], ids=repr)
def test_targets_that_are_all_ignored_give_zero_and_no_gradient(loss):
    step = micro_step(softcap=2.0)
    total, count = loss(MicroStep(step.hidden, step.readout, step.tokens, torch.full_like(step.targets, -100), 0.0))
    assert total == 0 and count == 0
    assert not any(gradient.any() for gradient in gradients(total, step))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossEntropy(label_smoothing=1.0), "label_smoothing 1.0: expected at least 0 and below 1"),
        (lambda: CrossEntropy(label_smoothing=-0.1), "label_smoothing -0.1"),
        (lambda: CrossEntropy(label_smoothing=float("nan")), "label_smoothing nan"),
        (lambda: CrossEntropy(z_loss=-1e-4), "z_loss -0.0001: expected a finite number, at least 0"),
        (lambda: CrossEntropy(z_loss=float("inf")), "z_loss inf"),
        (lambda: CrossEntropy(token_weights={5: -1.0}), "token_weights has 5: -1.0; expected"),
        (lambda: CrossEntropy(token_weights={-100: 1.0}), "token_weights has -100: 1.0; expected"),
        (lambda: CrossEntropy(token_weights={V: 1.0})(micro_step()), f"the id {V}; expected ids .*, below {V}"),
        (
            lambda: CrossEntropy(token_weights={40: 1.0}).check_run(GPTConfig(vocab_size=40), None),
            "the id 40; expected ids of the vocabulary, below 40",
        ),
        (lambda: MultiToken(()), r"weights \[\]: expected"),
        (lambda: MultiToken((0.5, -0.1)), r"weights \[0.5, -0.1\]: expected"),
        (lambda: MultiToken(fade=0.0), "fade 0.0: expected a share of the run, above 0"),
        (lambda: MultiToken(fade=1.5), "fade 1.5"),
    ],
)
def test_values_that_make_no_loss_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_only_the_plain_cross_entropy_is_in_nats():
    class Own(CrossEntropy):
        pass

    assert CrossEntropy().in_nats and CrossEntropy(chunk_tokens=8).in_nats
    others = [CrossEntropy(**{name: value}) for name, value in TERMS.items()]
    assert not any(loss.in_nats for loss in [*others, MultiToken(), Own()])

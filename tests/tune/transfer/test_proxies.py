"""Proxies of a wide model, and what their losses say of its own."""

import random

import pytest

from gpt_lightning.model.config import GPTConfig
from gpt_lightning.run.stack import read_stack
from gpt_lightning.tune.transfer.prediction import predicted_loss
from gpt_lightning.tune.transfer.proxies import default_widths, target_and_proxies
from tests.fixtures import arguments

WIDE = {
    **{"data.corpus": "text.txt", "model.gpt.d_model": 64, "model.gpt.n_heads": 8, "model.gpt.n_layers": 4},
    **{"model.gpt.n_kv_heads": 4, "model.gpt.d_ff": 160},
}


@pytest.mark.parametrize(
    ("n_heads", "heads"), [(4, [1, 2, 3]), (12, [1, 2, 3]), (16, [1, 2, 4]), (32, [2, 4, 8]), (96, [6, 12, 24])]
)
def test_the_widest_proxy_has_a_quarter_of_the_heads(n_heads, heads):
    assert default_widths(GPTConfig(n_heads=n_heads, d_model=n_heads * 64)) == [n * 64 for n in heads]


def test_proxies_differ_from_the_target_in_size_alone_and_their_base_is_the_widest(folder):
    stack, _ = read_stack(arguments(WIDE), "tune transfer")
    target, proxies = target_and_proxies(stack, None, None)
    assert [proxy.d_model for proxy in proxies] == [8, 16, 24] and {proxy.n_layers for proxy in proxies} == {2}
    gpt = proxies[-1].gpt
    assert (gpt.n_heads, gpt.n_kv_heads, gpt.d_ff) == (3, 1, 60)
    for size in (target, *proxies):
        gpt = stack.with_(size.options())["model.gpt"]
        assert (gpt.parametrization, gpt.base_d_model, gpt.base_n_layers) == ("completep", 24, 2)
    small = stack.with_(proxies[0].options())
    changed = {"n_layers", "n_heads", "n_kv_heads", "d_model", "d_ff"}
    assert set(small.overlay_to(stack.with_(target.options()))["model"]["gpt"]) == changed
    one = proxies[0].n_params  # 2 layers: qkv, projection, MLP and their biases; 5 LayerNorms
    assert one == 2 * (8 * 24 + 24 + 8 * 8 + 8 + 8 * 20 + 20 + 20 * 8 + 8) + 5 * 2 * 8
    assert proxies[0].flops < 0.1 * target.flops


def test_a_base_that_is_there_is_kept_and_mup_keeps_the_depth(folder):
    options = {**WIDE, "model.gpt.parametrization": "mup", "model.gpt.base_d_model": 32}
    stack, _ = read_stack(arguments(options), "tune transfer")
    target, proxies = target_and_proxies(stack, [8, 16, 32], None)
    assert stack.with_(target.options()).flat() == stack.flat() and {proxy.n_layers for proxy in proxies} == {4}
    with pytest.raises(ValueError, match="tune.n_layers 2: with mup what is tuned holds for other widths, not for"):
        target_and_proxies(stack, None, 2)


@pytest.mark.parametrize(
    ("widths", "n_layers", "words"),
    [
        ([8, 16], None, r"tune.widths \[8, 16\]: expected 3 different widths"),
        ([8, 12, 16], None, "tune.widths 12: expected multiples of 8, the width of the model's heads"),
        ([16, 32, 64], None, "the widest proxy, 64, is not narrower than the model, d_model 64 with 8 heads"),
        (None, 5, "tune.n_layers 5: expected from 1 to 4"),
    ],
)
def test_widths_that_are_no_proxies_are_one_line(folder, widths, n_layers, words):
    stack, _ = read_stack(arguments(WIDE), "tune transfer")
    with pytest.raises(ValueError, match=words):
        target_and_proxies(stack, widths, n_layers)


def test_the_interval_of_the_predicted_loss_holds_planted_ones():
    """Power laws of many exponents and floors, seen at three sizes with the noise of a seed."""
    numbers = random.Random(0)
    held = []
    for _ in range(300):
        exponent, floor = numbers.gauss(0.35, 0.15), numbers.uniform(0.5, 2.5)
        exponent, amount = max(exponent, 0.1), numbers.uniform(1.0, 2.0)

        def loss(n: float, a: float = exponent, e: float = floor, b: float = amount) -> float:
            return e + b * (n / 1e5) ** -a

        sizes = [100_000, 400_000, 900_000]
        found = predicted_loss(sizes, [loss(n) * numbers.gauss(1, 0.005) for n in sizes], 28_000_000)
        held.append(found.low <= loss(28e6) <= found.high)
        assert found.low < found.value < found.high
    assert sum(held) / len(held) > 0.8, sum(held)

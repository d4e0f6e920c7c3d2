"""Linear layers for generation against float64, and models that use them against the model as it was trained."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gpt_lightning.model.few_rows import FewRowsLinear, is_faster, linear_few_rows
from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.inference import Bfloat16Linear, prepare
from gpt_lightning.model.int8 import Int8Linear, quantize
from gpt_lightning.model.sampling import SamplingConfig, generate_tokens
from tests.packing import needs_packing

TEXT = b"the quick brown fox jumps over the lazy dog, and the dog does not mind. " * 40


@pytest.fixture(scope="module")
def trained() -> GPT:
    """A byte model of TEXT, trained until it predicts well."""
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=128, context_length=64, n_layers=2, n_heads=2, d_model=64))
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=3e-3)
    for _ in range(120):
        loss_of(gpt, n_windows=8).backward()
        optimizer.step()
        optimizer.zero_grad()
    return gpt.eval()


def loss_of(gpt: GPT, n_windows: int) -> torch.Tensor:
    """Nats per byte of random windows of TEXT in which 5% of the bytes are noise, so that the loss is not 0."""
    starts = torch.randint(len(TEXT) - 65, (n_windows,))
    windows = torch.stack([torch.tensor(list(TEXT[i : i + 65])) for i in starts.tolist()])
    noise = torch.rand(windows.shape) < 0.05
    windows = torch.where(noise, torch.randint(128, windows.shape), windows)
    return F.cross_entropy(gpt(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


@pytest.mark.parametrize("n_outputs", [2, 7, 64, 101])
@pytest.mark.parametrize("shape", [(1, 1), (1,), (3, 1), (8,)], ids=str)
def test_products_of_few_rows_are_those_of_f_linear(n_outputs, shape):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(*shape, 48), torch.randn(n_outputs, 48), torch.randn(n_outputs)
    exact = F.linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(linear_few_rows(x, weight, bias).double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear_few_rows(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch without MKL")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_few_rows_take_the_product_that_was_measured_to_be_the_faster_one(n_threads):
    def fast(n_rows: int, n_outputs: int, n_inputs: int) -> bool:
        return is_faster(torch.empty(n_rows, n_inputs), torch.empty(n_outputs, n_inputs))

    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        assert all(fast(1, *shape) for shape in [(2304, 768), (768, 3072), (50257, 768)])
        assert fast(4, 3072, 768) and fast(4, 50257, 768) and fast(4, 768, 768)
        assert fast(4, 768, 3072) == fast(2, 768, 3072) == (n_threads > 1)
        assert not fast(8, 3072, 768) and not fast(8, 50257, 768)
        assert not fast(1, 256, 256)
    finally:
        torch.set_num_threads(before)


def test_products_of_other_types_and_layouts_are_left_alone():
    weight = torch.randn(600, 600)
    assert not is_faster(torch.randn(1, 600, dtype=torch.float64), weight.double())
    assert not is_faster(torch.randn(1, 600), weight.bfloat16())
    assert not is_faster(torch.randn(1, 600), weight.t())


def test_int8_weights_are_off_by_at_most_half_a_step_of_their_own_row():
    torch.manual_seed(0)
    weight = torch.randn(40, 30) * torch.logspace(-6, 3, 40)[:, None]
    weight[3] = 0
    numbers, scales = quantize(weight)
    assert numbers.dtype == torch.int8
    error = (numbers.double() * scales.double()[:, None] - weight.double()).abs()
    steps = weight.double().abs().amax(1) / 127
    assert (error <= 0.501 * steps[:, None]).all()
    assert error.max() > 0


@needs_packing
@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 1), (2, 5)], ids=str)
@pytest.mark.parametrize(("n_outputs", "n_inputs"), [(7, 5), (101, 64), (64, 3072)])
def test_int8_products_are_float64_products_of_the_rounded_weights(shape, n_outputs, n_inputs):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(*shape, n_inputs), torch.randn(n_outputs, n_inputs), torch.randn(n_outputs)
    x[..., 0] = 30  # an outlier: ten times the others, so 8 bits would leave them five
    numbers, scales = quantize(weight)
    rounded = numbers.double() * scales.double()[:, None]
    exact = F.linear(x.double(), rounded, bias.double())
    step = 30 / 32639  # of the activations: off by half a step each, in random directions
    bound = 6 * step / 12**0.5 * rounded.norm(dim=1) + 1e-5 * exact.abs()
    assert ((Int8Linear(weight, bias)(x).double() - exact).abs() <= bound).all()


@needs_packing
def test_an_int8_row_gives_the_same_bits_whatever_rows_stand_beside_it():
    torch.manual_seed(0)
    layer, x = Int8Linear(torch.randn(50, 96)), torch.randn(9, 96) * torch.logspace(-3, 3, 9)[:, None]
    for n in (1, 2, 9):
        assert torch.equal(layer(x)[:n], layer(x[:n]))
    assert not layer(torch.zeros(2, 96)).any()


@needs_packing
def test_bfloat16_products_are_those_of_the_rounded_weights_and_activations():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 3, 65), torch.randn(33, 65), torch.randn(33)
    exact = F.linear(x.bfloat16().double(), weight.bfloat16().double(), bias.double())
    y = Bfloat16Linear(weight, bias)(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize(
    ("weights", "most"),
    [("float32", 1e-6), *(pytest.param(name, 5e-3, marks=needs_packing) for name in ("bfloat16", "int8"))],
)
def test_the_loss_of_a_trained_model_moves_by_less_than_half_a_percent(trained, weights, most):
    losses = []
    for gpt in (trained, prepare(copy.deepcopy(trained), weights)):
        torch.manual_seed(1)
        with torch.no_grad():
            losses.append(loss_of(gpt, n_windows=64).item())
    assert 0.1 < losses[0] < 1.5  # it has learned, and is not certain
    assert losses[1] == pytest.approx(losses[0], rel=most)
    assert weights == "float32" or losses[1] != losses[0]


@pytest.mark.parametrize(
    "weights", ["float32", *(pytest.param(name, marks=needs_packing) for name in ("bfloat16", "int8"))]
)
@pytest.mark.parametrize("tied", [True, False])
def test_every_linear_layer_and_the_readout_are_replaced_and_the_text_stays(trained, weights, tied):
    gpt = copy.deepcopy(trained)
    if not tied:
        gpt.lm_head = nn.Linear(64, 128, bias=False)
        gpt.lm_head.weight = nn.Parameter(gpt.wte.weight.detach().clone())
    prepare(gpt, weights)
    assert not any(isinstance(module, nn.Linear) for module in gpt.modules())
    config = SamplingConfig(max_new_tokens=20, temperature=0)
    prompts = [list(b"the quick"), list(b"not ")]
    assert list(generate_tokens(gpt, prompts, config)) == list(generate_tokens(trained, prompts, config))


def test_float32_layers_keep_their_parameters(trained):
    gpt = copy.deepcopy(trained)
    weight = gpt.blocks[0].attn.qkv.weight
    prepare(gpt)
    assert isinstance(gpt.blocks[0].attn.qkv, FewRowsLinear)
    assert gpt.blocks[0].attn.qkv.weight is weight
    assert gpt.lm_head.weight is gpt.wte.weight


def test_weights_that_do_not_exist_are_refused_by_name(trained):
    with pytest.raises(ValueError, match="weights 'int4'; expected one of float32, bfloat16, int8"):
        prepare(copy.deepcopy(trained), "int4")


def test_int8_on_another_device_is_refused():
    with torch.device("meta"):
        gpt = GPT(GPTConfig(vocab_size=16, context_length=8, n_layers=1, n_heads=1, d_model=8))
    with pytest.raises(ValueError, match="int8 weights are for a CPU, and the model is on meta; take bfloat16"):
        prepare(gpt, "int8")

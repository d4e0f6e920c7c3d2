"""Counts by formula against counting."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gpt_lightning.model.flops import count_parameters, flops_per_token, peak_flops_of
from gpt_lightning.model.gpt import GPT, GPTConfig

CONFIGS = [
    GPTConfig(vocab_size=101, context_length=13, n_layers=3, n_heads=3, d_model=21),
    GPTConfig(vocab_size=7, context_length=5, n_layers=1, n_heads=1, d_model=8, d_ff=11, bias=False),
    GPTConfig(vocab_size=101, context_length=16, n_layers=2, n_heads=2, d_model=8, tie_embedding=False),
    GPTConfig(
        vocab_size=50,
        context_length=19,
        n_layers=5,
        n_heads=2,
        d_model=6,
        d_ff=1,
        attention_pattern=("dense", "banded"),
        band_width=4,
    ),
    GPTConfig(vocab_size=50, context_length=6, n_layers=1, n_heads=2, d_model=6, attention_pattern=("banded",)),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_by_formula_are_those_of_the_model(config):
    gpt, counts = GPT(config), count_parameters(config)
    sizes = {name: p.numel() for name, p in gpt.named_parameters()}
    embedding = sum(size for name, size in sizes.items() if name.startswith(("wte", "wpe", "lm_head")))
    assert (counts.total, counts.embedding) == (sum(sizes.values()), embedding)
    assert counts.non_embedding == counts.total - embedding


@pytest.mark.parametrize("config", CONFIGS)
def test_flops_are_those_that_torch_counts_and_the_pairs_inside_the_masks(config):
    T = config.context_length
    gpt, tokens = GPT(config), torch.zeros(1, T, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        gpt(tokens).sum().backward()
    ops = counter.get_flop_counts()["Global"]
    products = sum(flops for op, flops in ops.items() if "attention" not in str(op))
    pairs = sum(
        1
        for width in config.band_widths()
        for query in range(T)
        for key in range(query + 1)
        if width is None or query - key < width
    )
    # Per pair and per direction 2 products of d_model multiplications and additions; backward is two more directions.
    attention = 3 * 2 * 2 * config.d_model * pairs
    assert flops_per_token(config) == pytest.approx((products + attention) / T, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 9.89e14),
        ("NVIDIA H100 PCIe", 7.56e14),
        ("NVIDIA H100 NVL", 8.35e14),
        ("NVIDIA H200", 9.89e14),
        ("NVIDIA GH200 480GB", 9.89e14),
        ("NVIDIA GH200 144G HBM3e", 9.89e14),
        ("NVIDIA H200 NVL", 8.35e14),
        ("NVIDIA GB200", 2.5e15),
        ("NVIDIA B200", 2.25e15),
        ("NVIDIA A100-SXM4-80GB", 3.12e14),
        ("NVIDIA A100 80GB PCIe", 3.12e14),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("NVIDIA L40", 1.81e14),
        ("NVIDIA L40S", 3.62e14),
        ("NVIDIA L4", 1.21e14),
        ("NVIDIA A10G", 7.0e13),
        ("NVIDIA GeForce RTX 4090", 1.65e14),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA H20", None),
        ("NVIDIA GB300", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_gpu_has_the_peak_of_its_own_data_sheet_not_of_one_whose_name_is_part_of_its(name, peak):
    assert peak_flops_of(name) == peak

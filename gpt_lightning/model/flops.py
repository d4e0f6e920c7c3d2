"""Parameters and FLOPs as pure functions of GPTConfig, checked against GPT-3's tables.

The counts need no model, so that a 175B row costs nothing to price. A block of one's own is counted on a model without
storage, by the facts of its parameters (model/facts.py).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from gpt_lightning.model.config import GPTConfig

if TYPE_CHECKING:
    import torch

# Dense bf16 FLOP/s per device, from the vendors' data sheets; the figures for sparse matrices are twice these.
# The first row whose words all stand in the device's name is its row, so longer names come before their parts.
PEAK_FLOPS = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "GH200": 9.89e14,
    "H200 NVL": 8.35e14,
    "H200": 9.89e14,
    "H100 NVL": 8.35e14,
    "H100 PCIe": 7.56e14,
    "H100": 9.89e14,
    "A100": 3.12e14,
    "L40S": 3.62e14,
    "L40": 1.81e14,
    "L4": 1.21e14,
    "A10G": 7.0e13,
    "RTX 4090": 1.65e14,
    "RTX 3090": 7.1e13,
}
LESSER = {"MIG", "Laptop", "D"}  # words of a name that promise less than the row: a slice, or a slower chip


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters; `embedding` holds tokens and positions, and the readout when it is its own matrix."""

    total: int
    embedding: int

    @property
    def non_embedding(self) -> int:
        """What the scaling laws call N."""
        return self.total - self.embedding


OwnBlock = Callable[[GPTConfig], Any] | None  # what makes a block of one's own; None: the built-in one


def count_parameters(config: GPTConfig, block: OwnBlock = None) -> ParameterCounts:
    """Parameters by formula; with GPT-3's settings V d + T d + L (12 d^2 + 13 d) + 2 d.

    block: one's own, whose parameters are counted instead.
    """
    if block is not None:
        return _counted(config, block)[0]
    D, F, d_kv = config.d_model, config.inner_width, config.d_kv
    bias, n_inputs = (1 if config.bias else 0), (2 if config.is_gated else 1)
    biases = bias * (2 * D + 2 * d_kv + n_inputs * F + D)
    norm = D if config.norm == "rms" else (1 + bias) * D
    norms = norm * (4 if config.norm_place == "both" else 2) + (2 * config.d_head if config.qk_norm else 0)
    embedding = config.vocab_size * D * (1 if config.tie_embedding else 2)
    embedding += config.context_length * D if config.positions == "learned" else 0
    layer = _matrices(config) + biases + norms + (1 if config.value_residual else 0)
    return ParameterCounts(embedding + config.n_layers * layer + norm, embedding)


def _matrices(config: GPTConfig) -> int:
    """Weights of one layer's matrices."""
    D, F = config.d_model, config.inner_width
    return 2 * D * D + 2 * D * config.d_kv + (3 if config.is_gated else 2) * D * F


def flops_per_token(config: GPTConfig, block: OwnBlock = None) -> float:
    """FLOPs that training spends per token, forward and backward, in matrix products.

    6 per weight that multiplies (the readout included, position and token look-ups not), and for attention
    12 x d_model x the mean number of keys that a query sees: causal masks and bands count only what is inside.
    block: one's own, whose weights are counted instead; its attention is taken to be as wide as the built-in one's.
    """
    D = config.d_model
    weights: float = config.n_layers * _matrices(config) + config.vocab_size * D
    if config.value_residual:
        weights += D * D + 2 * D * config.d_kv  # the first layer's values are made twice
    if block is not None:
        weights = _counted(config, block)[1]
    T = config.context_length
    keys = 0.0
    for band_width in config.band_widths():
        w = min(band_width or T, T)
        keys += (w * (w + 1) / 2 + (T - w) * w) / T
    return 6.0 * weights + 12.0 * D * keys


@lru_cache(maxsize=8)
def _counted(config: GPTConfig, block: Callable[[GPTConfig], Any]) -> tuple[ParameterCounts, float]:
    """Parameters of a model of this block, and the weights that a token is multiplied with."""
    import torch

    from gpt_lightning.model.gpt import GPT

    with torch.device("meta"):
        gpt = GPT(config, block)
    facts = gpt.facts()
    sizes = {name: p.numel() for name, p in gpt.named_parameters()}
    embedding = sum(size for name, size in sizes.items() if facts[name].role in ("embedding", "readout"))
    active = sum(facts[name].active * p.numel() for name, p in gpt.named_parameters() if p.ndim > 1)
    return ParameterCounts(sum(sizes.values()), embedding), active


def peak_flops(device: "torch.device") -> float | None:
    """Dense bf16 FLOP/s of a known GPU, by its name; None for others and for CPUs."""
    if device.type != "cuda":
        return None
    import torch

    return peak_flops_of(torch.cuda.get_device_name(device))


def peak_flops_of(name: str) -> float | None:
    """The same by the name that the driver gives, such as "NVIDIA H100 80GB HBM3": whole words count, not parts.

    None where the name says that it is less than the whole of a known one, for then the peak is not known.
    """
    words = set(re.split(r"[^A-Za-z0-9]+", name))
    if words & LESSER:
        return None
    return next((peak for key, peak in PEAK_FLOPS.items() if words.issuperset(key.split())), None)


def has_native_bf16(device_type: str) -> bool:
    """Whether the GPU, or this processor, multiplies in bf16 rather than emulating it."""
    import torch

    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))

"""GPTConfig: the architecture as plain numbers. All defaults are those of GPT-3 125M (Brown et al. 2020, Table 2.1).

What later models changed is a field each, whose first value is GPT-3's; `tune compare` tells what is worth it here.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class GPTConfig:
    """The architecture. Raises ValueError where the numbers do not fit together."""

    vocab_size: int = 50257
    """Token ids the model knows; comes from the corpus."""
    context_length: int = 2048
    """Longest sequence in tokens; comes from the data."""
    n_layers: int = 12
    """Transformer blocks."""
    n_heads: int = 12
    """Attention heads per block; d_model must be a multiple of it."""
    d_model: int = 768
    """Width of the residual stream."""
    d_ff: int | None = None
    """Width inside the MLP; when not given 4 x d_model, and for gated ones two thirds of it, so that they have as many
    parameters."""
    dropout: float = 0.0
    """Probability of dropping an activation, in [0, 1)."""
    bias: bool = True
    """Biases in the linear layers and LayerNorms, as in GPT-3; RMSNorm has none."""
    tie_embedding: bool = True
    """Read out with the token embedding's weights, as in GPT-3."""
    attention_pattern: tuple[Literal["dense", "banded"], ...] = ("dense",)
    """Kinds of attention, repeated over the layers; GPT-3 alternates [dense, banded]."""
    band_width: int = 256
    """Tokens that a banded layer looks back over, itself included. GPT-3's is unpublished; GPT-Neo's is 256."""
    positions: Literal["learned", "rotary", "none"] = "learned"
    """Learned embeddings, rotation of queries and keys (arXiv 2104.09864), or none but the causal mask (2305.19466)."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm, or RMSNorm, which has no mean and no bias (arXiv 1910.07467)."""
    norm_place: Literal["before", "after", "both"] = "before"
    """Norms before each branch (arXiv 2002.04745), on its output (OLMo 2, 2501.00656), or both (Gemma 2)."""
    qk_norm: bool = False
    """RMSNorm of each head's queries and keys, as in Qwen 3 (arXiv 2302.05442): steadier at large learning rates."""
    mlp: Literal["gelu", "gelu_erf", "relu2", "swiglu", "geglu"] = "gelu"
    """What the MLP does between its matrices; gelu is the tanh form, swiglu and geglu are gated (arXiv 2002.05202)."""
    n_kv_heads: int | None = None
    """Heads of keys and values, each for as many query heads (arXiv 2305.13245); n_heads when not given."""
    parallel: bool = False
    """Attention and MLP side by side, each with its norm, as in GPT-NeoX."""
    logit_softcap: float | None = None
    """Logits become softcap x tanh(logits / softcap), 15 to 30 (Gemma 2, arXiv 2408.00118); none when not given."""
    zero_init: bool = False
    """What is added to the residual stream starts at 0, each layer as the identity (arXiv 2203.03466)."""
    value_residual: bool = False
    """Values are mixed with those of the first layer, by a learned share per layer (arXiv 2410.17897)."""
    n_labels: int = 0
    """Labels that a head of its own tells apart, in place of the next token; comes from the data."""
    init_std: float = 0.02
    """Standard deviation of the initial weights (GPT-2)."""
    parametrization: Literal["standard", "mup", "completep"] = "standard"
    """How initialisation, learning rates and scales follow width (mup) and depth (completep)."""
    base_d_model: int | None = None
    """mup, completep: width at which the learning rate was tuned."""
    base_n_layers: int | None = None
    """completep: depth at which the learning rate was tuned."""
    base_d_head: int | None = None
    """mup, completep: width of a head at base_d_model; as here when not given (wider models then have more heads)."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "n_layers", "n_heads", "d_model", "band_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least 1")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}; "
                f"nearest d_model: {max(self.d_model // self.n_heads, 1) * self.n_heads} "
                f"or {(self.d_model // self.n_heads + 1) * self.n_heads}"
            )
        _check_structure(self)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: must be in [0, 1)")
        if not self.attention_pattern:
            raise ValueError("attention_pattern is empty; give at least one of dense, banded")
        if self.d_ff is not None and self.d_ff < 1:
            raise ValueError(f"d_ff {self.d_ff}: must be at least 1")
        needed = {"standard": (), "mup": ("base_d_model",), "completep": ("base_d_model", "base_n_layers")}
        for name in needed[self.parametrization]:
            if getattr(self, name) is None:
                raise ValueError(f"parametrization {self.parametrization} needs {name}: that of the tuned small model")
        for name in ("base_d_model", "base_n_layers", "base_d_head"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least 1")

    @property
    def inner_width(self) -> int:
        """d_ff, or what it is when not given."""
        if self.d_ff is not None:
            return self.d_ff
        return -(-8 * self.d_model // 48) * 16 if self.is_gated else 4 * self.d_model

    @property
    def is_gated(self) -> bool:
        """Whether the MLP multiplies its activation with a second product."""
        return self.mlp in ("swiglu", "geglu")

    @property
    def d_head(self) -> int:
        """Width of an attention head."""
        return self.d_model // self.n_heads

    @property
    def d_kv(self) -> int:
        """Width of all heads of keys, or of values."""
        return self.d_head * (self.n_kv_heads or self.n_heads)

    @property
    def width_multiplier(self) -> float:
        """d_model over that of the tuned model."""
        return self.d_model / (self.base_d_model or self.d_model)

    @property
    def depth_multiplier(self) -> float:
        """n_layers over that of the tuned model."""
        return self.n_layers / (self.base_n_layers or self.n_layers)

    def band_widths(self) -> list[int | None]:
        """Per layer the band in tokens, or None where attention is dense."""
        return [self.band_width if kind == "banded" else None for kind in self.attention_kinds()]

    def attention_kinds(self) -> list[str]:
        """Per layer dense or banded."""
        return [self.attention_pattern[i % len(self.attention_pattern)] for i in range(self.n_layers)]


def _check_structure(config: GPTConfig) -> None:
    """Raise ValueError for a structure that cannot be."""
    kv = config.n_kv_heads
    if kv is not None and (kv < 1 or config.n_heads % kv):
        raise ValueError(f"n_kv_heads {kv}: must divide n_heads {config.n_heads}")
    if config.positions == "rotary" and config.d_head % 2:
        raise ValueError(f"positions rotary turn pairs: the width of a head must be even, not {config.d_head}")
    if config.logit_softcap is not None and config.logit_softcap <= 0:
        raise ValueError(f"logit_softcap {config.logit_softcap}: must be above 0; leave it out for none")

"""GPTConfig: the architecture as plain numbers. All defaults are those of GPT-3 125M (Brown et al. 2020, Table 2.1)."""

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
    """Width inside the MLP; 4 x d_model when not given."""
    dropout: float = 0.0
    """Probability of dropping an activation, in [0, 1)."""
    bias: bool = True
    """Biases in the linear layers and LayerNorms, as in GPT-3."""
    tie_embedding: bool = True
    """Read out with the token embedding's weights, as in GPT-3."""
    attention_pattern: tuple[Literal["dense", "banded"], ...] = ("dense",)
    """Kinds of attention, repeated over the layers; GPT-3 alternates [dense, banded]."""
    band_width: int = 256
    """Tokens that a banded layer looks back over, itself included. GPT-3's is unpublished; GPT-Neo's is 256."""
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
    def width_multiplier(self) -> float:
        """d_model over that of the tuned model."""
        return self.d_model / (self.base_d_model or self.d_model)

    @property
    def depth_multiplier(self) -> float:
        """n_layers over that of the tuned model."""
        return self.n_layers / (self.base_n_layers or self.n_layers)

    def band_widths(self) -> list[int | None]:
        """Per layer the band in tokens, or None where attention is dense."""
        pattern = self.attention_pattern
        kinds = [pattern[i % len(pattern)] for i in range(self.n_layers)]
        return [self.band_width if kind == "banded" else None for kind in kinds]

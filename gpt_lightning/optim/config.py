"""OptimConfig and the weight decay of a timescale: plain numbers, without torch."""

from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True)
class OptimConfig:
    """AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101), alone or beside Muon; the defaults are GPT-3's."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for the hidden matrices and adamw for the rest (Jordan et al. 2024)."""
    lr: float = 6.0e-4
    """Peak learning rate."""
    lr_ratios: dict[Literal["embedding", "hidden", "vector", "readout"], float] = field(default_factory=dict)
    """Per role: its learning rate over lr; 1 when not given. embedding: of tokens, positions, a tied readout; vector:
    norms, biases, scalars. Weight decay, times the learning rate, goes with it."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay per step of AdamW's first and second moment."""
    eps: float = 1.0e-8
    """Added to the root of AdamW's second moment."""
    weight_decay: float | Literal["timescale"] = 0.1
    """Decay of the weights per step, times the learning rate; timescale: from batch, lr, tokens and size, so that
    weights are averaged over the best share of the run (arXiv 2505.13738)."""
    decay_embeddings: bool = True
    """Whether weight decay also acts on the token and position embeddings."""
    momentum: float = 0.95
    """Muon: decay per step of its momentum."""
    adjust_lr: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """Muon: update sizes like AdamW's, so that one lr serves both (arXiv 2502.16982), or Jordan's own."""
    cautious_weight_decay: bool = False
    """Muon: decay a weight only where the update also shrinks it (arXiv 2510.12402)."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr {self.lr}: must be above 0")
        if self.weight_decay != "timescale" and float(self.weight_decay) < 0:
            raise ValueError(f"weight_decay {self.weight_decay}: must be 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)}: each must be in [0, 1)")
        if self.eps <= 0:
            raise ValueError(f"eps {self.eps}: must be above 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum {self.momentum}: must be in [0, 1)")
        for role, ratio in self.lr_ratios.items():
            if ratio <= 0:
                raise ValueError(f"lr_ratios {role} {ratio}: must be above 0")

    @property
    def hidden_update(self) -> Literal["adamw", "match_rms_adamw", "original"]:
        """How hidden matrices are updated; their learning rate scales with width accordingly."""
        return self.adjust_lr if self.name == "muon" else "adamw"


def with_decay_as_number(
    config: OptimConfig, batch_tokens: float | None, max_tokens: float, n_params: float
) -> OptimConfig:
    """The settings with the weight decay of the timescale, where it is asked for, worked out."""
    if config.weight_decay != "timescale":
        return config
    if batch_tokens is None:
        raise ValueError("weight_decay timescale needs the CorpusDataModule's batch_tokens; give a number instead")
    return replace(config, weight_decay=timescale_weight_decay(config.lr, batch_tokens, max_tokens, n_params))


def timescale_weight_decay(lr: float, batch_tokens: float, max_tokens: float, n_params: float) -> float:
    """Weight decay whose averaging timescale suits the run: B / (lr D tau), tau = 1.084 (D/N)^-0.527.

    tau is the share of the run over which AdamW averages its updates, n_params the non-embedding parameters (Bergsma
    et al. 2025, "Power Lines", arXiv 2505.13738, as restated by others).
    """
    tau = 1.084 * (max_tokens / n_params) ** -0.527
    return batch_tokens / (lr * max_tokens * tau)

"""Every number that depends on width or depth, in one table; read by the model and the optimizer and by nobody else.

With `standard` the best learning rate moves when a model is made wider or deeper. With `mup` (Yang et al. 2022, arXiv
2203.03466) it stays when the width changes, with `completep` (Dey et al. 2025, arXiv 2505.01618, alpha = 1) also when
the depth does: tune a small model, train a large one. At base_d_model and base_n_layers all three are the same model.

m = d_model / base_d_model, l = n_layers / base_n_layers; what stands here multiplies the configured value.

    quantity                                  standard        mup                   completep
    init_std     embedding, readout           1               1                     1
                 hidden                       1               1/sqrt(m)             1/sqrt(m)
                 residual projections, also   1/sqrt(2 L)     1/sqrt(2 L)           1/sqrt(2 base_n_layers)
    lr           embedding, readout, vector   1               1                     1
                 adapter (LoRA's A)           1               1/m                   1/m
                 hidden: AdamW                1               1/m                   1/m
                 hidden: Muon, original       1               1                     1
                 hidden: Muon, match_rms      1               1/sqrt(m)             1/sqrt(m)
    weight_decay hidden                       1               1 / its lr            1 / its lr
    eps          outside the blocks           1               1/m                   1/m
                 inside (hidden, adapter, vector)  1          1/m                   1/(m l)
                 head_vector; scalar          1; 1            1/w; 1                1/(w l); 1/l
    grad_weight  hidden, adapter              1               1                     l
                 vector                       1               m                     m l
                 head_vector; scalar          1; 1            w; 1                  w l; l
                 embedding, readout, final    1               m                     m
    attention    scale of q k^T               1/sqrt(d_head)  sqrt(base_d_head)/d_head
    residual     x + this x branch            1               1                     1/l
    readout      logits x this                1               1/m                   1/m

w = d_head / base_d_head: what all heads share has a gradient that shrinks with the width of a head alone, and that of a
scalar does not shrink. `grad_weight` weighs a role's squared gradients in the norm that is clipped: wider copies of a
model have the same norm then, whereas the plain global norm shrinks with width and clips another model differently.
d_ff is taken to grow with d_model. A readout tied to the embedding has the embedding's numbers.
"""

from dataclasses import dataclass
from typing import Literal

from gpt_lightning.model.config import GPTConfig

Role = Literal["embedding", "hidden", "vector", "final_vector", "head_vector", "scalar", "readout", "adapter"]
HiddenUpdate = Literal["adamw", "original", "match_rms_adamw"]  # how hidden matrices are updated; the last two by Muon


@dataclass(frozen=True)
class RoleNumbers:
    """What multiplies the configured values for the parameters of one role."""

    init_std: float = 1.0
    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0
    grad_weight: float = 1.0


@dataclass(frozen=True)
class Parametrization:
    """The table's column for one model."""

    roles: dict[Role, RoleNumbers]
    residual_init: float
    attention_scale: float
    residual: float
    readout: float


def parametrization(config: GPTConfig, hidden_update: HiddenUpdate = "adamw") -> Parametrization:
    """The numbers for a model whose hidden matrices are updated in the given way."""
    standard, completep = config.parametrization == "standard", config.parametrization == "completep"
    m = 1.0 if standard else config.width_multiplier
    depth = config.depth_multiplier if completep else 1.0  # l
    d_head = config.d_head
    base_d_head = d_head if standard else config.base_d_head or d_head
    wider = d_head / base_d_head
    hidden_lr = {"adamw": 1 / m, "original": 1.0, "match_rms_adamw": m**-0.5}[hidden_update]
    return Parametrization(
        roles={
            "embedding": RoleNumbers(eps=1 / m, grad_weight=m),
            "hidden": RoleNumbers(m**-0.5, hidden_lr, 1 / hidden_lr, 1 / (m * depth), grad_weight=depth),
            "adapter": RoleNumbers(1.0, 1 / m, 1.0, 1 / (m * depth), grad_weight=depth),
            "vector": RoleNumbers(eps=1 / (m * depth), grad_weight=m * depth),
            "head_vector": RoleNumbers(eps=1 / (wider * depth), grad_weight=wider * depth),
            "scalar": RoleNumbers(eps=1 / depth, grad_weight=depth),
            "final_vector": RoleNumbers(eps=1 / m, grad_weight=m),
            "readout": RoleNumbers(eps=1 / m, grad_weight=m),
        },
        residual_init=(2 * config.n_layers / depth) ** -0.5,
        attention_scale=base_d_head**0.5 / d_head,
        residual=1 / depth,
        readout=1 / m,
    )

"""AdamW with its parameters in groups by role.

Vectors (LayerNorms and biases) are never decayed: they are scales and offsets, which decay would pull towards a
meaningless zero. Embeddings are a choice: nanoGPT decays them, PaLM and OLMo 2 do not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class OptimConfig:
    """AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101); the defaults are GPT-3's (appendix B)."""

    lr: float = 6.0e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay per step of the first and the second moment."""
    eps: float = 1.0e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decay of the weights per step, times the learning rate."""
    decay_embeddings: bool = True
    """Whether weight decay also acts on the token and position embeddings."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr {self.lr}: must be above 0")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay {self.weight_decay}: must be 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)}: each must be in [0, 1)")
        if self.eps <= 0:
            raise ValueError(f"eps {self.eps}: must be above 0")


def parameter_groups(
    parameters: Mapping[str, Tensor], roles: Mapping[str, str], config: OptimConfig
) -> list[dict[str, Any]]:
    """One optimizer group per role, each with its own lr and weight decay and its role as `name`.

    Every parameter is in exactly one group. Raises ValueError when a parameter has no role.
    """
    without_role = sorted(set(parameters) - set(roles))
    if without_role:
        raise ValueError(f"no role for parameters {', '.join(without_role)}; give each one a role")
    decayed = {"hidden", "readout"} | ({"embedding"} if config.decay_embeddings else set())
    groups = []
    for role in dict.fromkeys(roles.values()):
        members = [parameter for name, parameter in parameters.items() if roles[name] == role]
        weight_decay = config.weight_decay if role in decayed else 0.0
        groups.append({"name": role, "params": members, "lr": config.lr, "weight_decay": weight_decay})
    return groups


def number_by_model(state: dict[str, Any], roles: Mapping[str, str]) -> dict[str, Any]:
    """An optimizer's state_dict with parameters numbered as the model lists them, not as the groups do.

    Loading does not mind: it goes by position in the groups. But FSDP reads and writes numbers in the model's order,
    and so a checkpoint moves between one process, DDP and FSDP.
    """
    in_groups = [name for role in dict.fromkeys(roles.values()) for name in roles if roles[name] == role]
    in_model = {name: number for number, name in enumerate(roles)}
    numbers = [in_model[name] for name in in_groups]
    return {
        "state": {numbers[i]: value for i, value in state["state"].items()},
        "param_groups": [{**g, "params": [numbers[i] for i in g["params"]]} for g in state["param_groups"]],
    }


def adamw(parameters: Mapping[str, Tensor], roles: Mapping[str, str], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, in its fused form where the device has one."""
    groups = parameter_groups(parameters, roles, config)
    devices = {parameter.device.type for parameter in parameters.values()}
    fused = devices <= {"cpu", "cuda", "mps", "xpu"}
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)

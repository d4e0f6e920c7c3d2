"""The parameters in groups by role, each with its own learning rate, decay and eps.

Vectors (LayerNorms and biases) are never decayed: they are scales and offsets, which decay would pull towards a
meaningless zero. Embeddings are a choice: nanoGPT decays them, PaLM and OLMo 2 do not.

A group's learning rate is `lr` x `lr_ratio`, and the optimizer multiplies the two: whatever sets one lr on all groups
(schedulers, Lightning's finder) cannot change their ratios, which muP depends on.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from gpt_lightning.optim.config import OptimConfig


class Facts(Protocol):
    """What the owner of a parameter says of it (model/facts.py)."""

    @property
    def role(self) -> str: ...
    @property
    def parts(self) -> tuple[int, ...]: ...


class Multipliers(Protocol):
    """What a parametrization multiplies a role's settings by."""

    @property
    def lr(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def eps(self) -> float: ...
    @property
    def grad_weight(self) -> float: ...


def parameter_groups(
    parameters: Mapping[str, Tensor],
    facts: Mapping[str, Facts],
    config: OptimConfig,
    multipliers: Mapping[Any, Multipliers],
) -> list[dict[str, Any]]:
    """One optimizer group per name in `group_names`. Every parameter is in exactly one group.

    Raises ValueError when a parameter has no role, and when lr_ratios has one that no parameter has.
    """
    without_role = sorted(set(parameters) - set(facts))
    if without_role:
        raise ValueError(f"no role for parameters {', '.join(without_role)}; give each one a role")
    _check_ratios(config, {facts[name].role for name in parameters})
    names = group_names(facts)
    decayed = {"hidden", "readout"} | ({"embedding"} if config.decay_embeddings else set())
    decay = config.weight_decay
    assert decay != "timescale", "resolve it with timescale_weight_decay first"
    groups = []
    for group in dict.fromkeys(names.values()):
        members = {name: p for name, p in parameters.items() if names[name] == group}
        first = facts[next(iter(members))]
        role = first.role
        multiplier = multipliers[role]
        settings = {
            "name": group,
            "params": list(members.values()),
            "lr": config.lr,
            "lr_ratio": multiplier.lr * config.lr_ratios.get(tuned_role(role), 1.0),
            "weight_decay": float(decay) * multiplier.weight_decay if role in decayed else 0.0,
            "grad_weight": multiplier.grad_weight,
        }
        if role == "hidden" and config.name == "muon":
            _check_matrices(members)
            groups.append(settings | _muon(config, first.parts))
        else:
            groups.append(settings | _adamw(config, multiplier.eps, members.values()))
    return groups


def _check_ratios(config: OptimConfig, roles: Iterable[str]) -> None:
    absent = sorted(set(config.lr_ratios) - {tuned_role(role) for role in roles})
    if absent:
        tied = "; the readout is the embedding, for tie_embedding is true" if absent == ["readout"] else ""
        raise ValueError(f"lr_ratios {', '.join(absent)}: the model has no such parameter{tied}")


def tuned_role(role: str) -> Any:
    """The role that `lr_ratios` has for it: there all vectors and scalars are one."""
    return {"final_vector": "vector", "head_vector": "vector", "scalar": "vector", "adapter": "hidden"}.get(role, role)


def _muon(config: OptimConfig, parts: tuple[int, ...]) -> dict[str, Any]:
    settings = {"algorithm": "muon", "momentum": config.momentum, "adjust_lr": config.adjust_lr}
    return {**settings, "cautious": config.cautious_weight_decay, "parts": parts}


def _adamw(config: OptimConfig, eps_multiplier: float, members: Iterable[Tensor]) -> dict[str, Any]:
    fused = all(p.device.type in ("cpu", "cuda", "mps", "xpu") for p in members)
    eps = config.eps * eps_multiplier
    return {"algorithm": "adamw", "betas": tuple(config.betas), "eps": eps, "fused": fused}


def _check_matrices(members: Mapping[str, Tensor]) -> None:
    odd = [f"{name} has {p.ndim} dimensions" for name, p in members.items() if p.ndim != 2]
    if odd:
        raise ValueError(f"{odd[0]}; muon updates hidden matrices of 2: say another role in parameter_facts")


def group_names(facts: Mapping[str, Facts]) -> dict[str, str]:
    """The group of every parameter: its role, and the rows of its parts where a hidden matrix holds several."""
    return {
        name: f"hidden {'+'.join(map(str, f.parts))}" if f.role == "hidden" and f.parts else f.role
        for name, f in facts.items()
    }


def gradient_norm(groups: Iterable[Mapping[str, Any]]) -> Tensor:
    """Root of the sum over all groups of grad_weight x squared gradient: the norm that is clipped.

    With all weights 1, as in the standard parametrization, it is the global norm.
    """
    by_weight: dict[float, list[Tensor]] = {}
    for group in groups:
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        by_weight.setdefault(group.get("grad_weight", 1.0), []).extend(gradients)
    norms = []
    for weight, gradients in by_weight.items():
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        norms.append(norm * weight**0.5)
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


def number_by_model(state: dict[str, Any], facts: Mapping[str, Facts]) -> dict[str, Any]:
    """An optimizer's state_dict with parameters numbered as the model lists them, not as the groups do.

    Loading does not mind: it goes by position in the groups. But FSDP reads and writes numbers in the model's order,
    and so a checkpoint moves between one process, DDP and FSDP.
    """
    names = group_names(facts)
    in_groups = [name for group in dict.fromkeys(names.values()) for name in names if names[name] == group]
    in_model = {name: number for number, name in enumerate(facts)}
    numbers = [in_model[name] for name in in_groups]
    return {
        "state": {numbers[i]: value for i, value in state["state"].items()},
        "param_groups": [{**g, "params": [numbers[i] for i in g["params"]]} for g in state["param_groups"]],
    }

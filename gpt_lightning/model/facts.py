"""What the owner of a parameter says of it: role, initial values, fused parts, share of active weights.

Initialisation, optimizer groups, Muon, FLOPs, sharding, growth and export read these facts and never a name, so that a
block of your own works everywhere. A module says them in a method, for parameters of its own or below it:

    def parameter_facts(self) -> dict[str, Facts]:
        return {"gate": Facts("vector", std=0, mean=1), "out.weight": Facts("hidden", residual=True)}

What is not said is taken by type: the weight of nn.Linear is hidden and its bias a vector of zeros; nn.Embedding is a
look-up; norms start at ones and zeros; a bare parameter is a vector, or hidden when it is a matrix, and keeps what
its constructor gives it. Outer modules know where a part stands, so their word counts over that of inner ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from gpt_lightning.model.parametrization import Role

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Facts:
    """The facts of one parameter."""

    role: Role
    """Decides learning rate, decay, eps and initial std. final_vector: a vector outside the blocks; head_vector: one
    that all heads share; scalar: one number for all channels."""
    std: float | None = 1.0
    """Initial standard deviation, times the role's own (model/parametrization.py); 0: constant; None: as its
    module's constructor made it."""
    mean: float = 0.0
    """Initial mean."""
    residual: bool = False
    """Whether its output is added to the residual stream, as that of attn.proj and mlp.proj; zero_init sets it to 0."""
    parts: tuple[int, ...] = ()
    """Rows of each of several matrices that lie on top of each other, such as (D, d_kv, d_kv); empty for one."""
    active: float = 1.0
    """Share of a matrix that a token is multiplied with, for FLOPs; 0 for look-ups."""


LOOK_UP = Facts("embedding", active=0.0)
ZEROS = Facts("vector", std=0.0)
ONES = Facts("vector", std=0.0, mean=1.0)
HEAD_ONES = Facts("head_vector", std=0.0, mean=1.0)


def facts_of(module: nn.Module) -> dict[str, Facts]:
    """The facts of all parameters of a module, in the order of `named_parameters`.

    Raises ValueError naming the module when it speaks of a parameter that is not there.
    """
    facts: dict[str, Facts] = {}
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    for prefix, child in reversed(list(module.named_modules())):  # children come before their parents
        start = f"{prefix}." if prefix else ""
        said = child.parameter_facts() if hasattr(child, "parameter_facts") else {}
        unknown = sorted(name for name in said if start + name not in names)
        if unknown:
            raise ValueError(
                f"{type(child).__name__}.parameter_facts speaks of {unknown[0]}, which is no parameter of it"
            )
        by_type = {name: _by_type(child, name, p.ndim) for name, p in child.named_parameters(recurse=False)}
        facts |= {start + name: fact for name, fact in {**by_type, **said}.items()}
    return {name: facts[name] for name, _ in module.named_parameters()}


def _by_type(module: nn.Module, name: str, ndim: int) -> Facts:
    if isinstance(module, nn.Embedding):
        return LOOK_UP
    if isinstance(module, nn.Linear):
        return Facts("hidden") if name == "weight" else ZEROS
    if isinstance(module, NORMS):
        return ONES if name == "weight" else ZEROS
    return Facts("vector" if ndim < 2 else "hidden", std=None)


@contextmanager
def unset_is_nan() -> Iterator[None]:
    """Memory that a module asks for and never writes is NaN inside, so that `init_weights` finds and names it."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch fills what torch.empty gives only then
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)

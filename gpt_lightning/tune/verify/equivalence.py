"""Two proofs of a parametrization: duplicated models train alike, and initial weights follow the published laws.

Duplication (model/growth.py): a model and one k times as wide with the same function must have the same loss at every
step, as far as float64 can tell. Right rules give about 1e-15; any single wrong one (learning rate, decay, eps, output
multiplier, attention scale) at least 2e-4, because lr, decay and eps are large on purpose. It sees everything but the
initial weights, whose standard deviations are checked beside it: over widths m they follow m^-1/2 for hidden matrices
and stay for all others (Yang et al. 2022, arXiv 2203.03466, table 8); over depths the projections that are added to the
residual stream follow GPT-2's 1/sqrt(n_layers), which CompleteP drops (Dey et al. 2025, arXiv 2505.01618, table 1).
The laws are written here once more, apart from the table that they check.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from gpt_lightning.model.growth import duplicate_width
from gpt_lightning.model.loss import Loss
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.optim.groups import tuned_role
from gpt_lightning.tune.verify.miniature import Miniature, batch, optim_in_miniature, train

STEPS = 15
LR, WEIGHT_DECAY, EPS = 3e-2, 0.3, 1e-3
CLIP = 0.1  # of the gradient norm; every step of the miniatures is above it
DIFFERENCE = 1e-12  # of two losses, in nats: above what float64 loses, far below what a wrong rule makes
DOUBLINGS = 2  # between the models whose initial weights are compared
SIGMAS = 5.0  # sampling errors that a standard deviation may be off its law


def duplicated_losses(small: Miniature, doublings: int, loss: Loss, optim: OptimConfig, clip: float) -> list[float]:
    """Losses of `small`, made 2^doublings times as wide by duplication, over `STEPS` steps in float64.

    Where heads grow wider, they do not turn here: wider rotary heads have other frequencies, whatever the rules.
    """
    if small.gpt.positions == "rotary" and small.widening_heads:
        small = replace(small, gpt=replace(small.gpt, positions="none"))
    source, wide = small.build(0, torch.float64), small.wider(doublings).build(0, torch.float64)
    duplicate_width(source, wide)
    losses = train(wide, loss, optim_in_miniature(optim, LR, WEIGHT_DECAY, EPS), batch(0), clip)
    return [next(losses) for _ in range(STEPS)]


def largest_difference(losses: Iterable[float], others: Iterable[float]) -> float:
    """Largest difference of two loss curves; NaN when one has diverged."""
    return torch.tensor([abs(a - b) for a, b in zip(losses, others, strict=True)], dtype=torch.float64).max().item()


def initial_std(small: Miniature) -> dict[str, dict[str, float]]:
    """By law: the exponent that is measured and expected, and the worst parameter's distance in sampling errors."""
    model = small.build(0)
    n_layers = len(model.blocks) * 2**DOUBLINGS
    in_width, in_depth = small.wider(DOUBLINGS).build(1), small.deeper(n_layers).build(1)
    completep = small.gpt.parametrization == "completep"
    laws: dict[str, list[tuple[float, float, float]]] = {}
    wide, deep, facts = dict(in_width.named_parameters()), dict(in_depth.named_parameters()), model.facts()
    for name, p in model.named_parameters():
        role = tuned_role(facts[name].role)
        expected = -0.5 if role == "hidden" else 0.0
        laws.setdefault(f"over widths: {role}", []).append(_against_law(p, wide[name], expected))
        if role == "hidden":
            residual = facts[name].residual
            law = f"over depths: {'residual' if residual else 'other hidden'}"
            found = _against_law(p, deep[name], -0.5 if residual and not completep else 0.0)
            laws.setdefault(law, []).append(found)
    return {
        law: {
            "exponent": sum(row[0] for row in rows) / len(rows),
            "expected": sum(row[1] for row in rows) / len(rows),
            "sigmas": max(row[2] for row in rows),
        }
        for law, rows in laws.items()
    }


@torch.no_grad()
def _against_law(p: Tensor, other: Tensor, expected: float) -> tuple[float, float, float]:
    """Exponent of the standard deviation in the size, the one expected, and the distance in sampling errors."""
    growth = math.log(2**DOUBLINGS)
    if p.min() == p.max() and other.min() == other.max():  # constants have no scale; they are to stay the same
        same = p.flatten()[0] == other.flatten()[0]
        return (expected, expected, 0.0) if same else (math.nan, expected, math.inf)
    if min(p.std(), other.std()) == 0:
        return math.nan, expected, math.inf
    exponent = math.log(other.std() / p.std()) / growth
    error = math.sqrt(0.5 / p.numel() + 0.5 / other.numel()) / growth
    return exponent, expected, abs(exponent - expected) / error

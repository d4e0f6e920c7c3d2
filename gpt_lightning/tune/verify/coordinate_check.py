"""Coordinate check: how far a few steps of training move the activations, over widths and over depths.

Where hyper-parameters transfer, each kind of activation moves as far in a large model as in a small one: a slope of 0
in log-log (Yang et al. 2022, arXiv 2203.03466, appendix D.1; over depths, Dey et al. 2025, arXiv 2505.01618). It is a
picture for people and sees gross mistakes only; equivalence.py is the proof. Over depths, where there is no
duplication, it is all there is; there it does not see Muon's learning rates, whose steps are small beside the biases'.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gpt_lightning.model.gpt import GPT
from gpt_lightning.model.loss import Loss
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.tune.verify.miniature import Miniature, batch, optim_in_miniature, train

STEPS = 4
LR = 3e-3
WIDTH_TOLERANCE = 0.3  # of a slope over widths: right models reach 0.18, mistakes that can be seen here start at 0.76
DEPTH_TOLERANCE = 0.15  # over depths: right models reach 0.10, a residual multiplier l^-1/2 instead of 1/l has 0.21

Movements = dict[str, float]  # by kind of activation, mean absolute change


def movements(miniature: Miniature, loss: Loss, optim: OptimConfig, seed: int) -> Movements:
    """How far `STEPS` steps move each kind of activation."""
    gpt, data = miniature.build(seed), batch(seed)
    before = activations(gpt, data[0])
    losses = train(gpt, loss, optim_in_miniature(optim, LR, weight_decay=0.0, eps=1e-12), data)
    for _ in range(STEPS):
        next(losses)
    after = activations(gpt, data[0])
    return {kind: (after[kind] - before[kind]).abs().mean().item() for kind in before}


def mean_movements(seeds: Sequence[Movements]) -> Movements:
    """The geometric mean over seeds of each kind's movement."""
    return {kind: math.exp(sum(_log(row[kind]) for row in seeds) / len(seeds)) for kind in seeds[0]}


def slopes(by_size: Mapping[int, Movements]) -> dict[str, float]:
    """Exponent of each kind's movement in the width or depth: the slope of the line through its logarithms."""
    x = torch.tensor([math.log(size) for size in by_size], dtype=torch.float64)
    kinds = next(iter(by_size.values()))
    y = {kind: torch.tensor([_log(row[kind]) for row in by_size.values()], dtype=torch.float64) for kind in kinds}
    x -= x.mean()
    return {kind: ((x @ y[kind]) / (x @ x)).item() for kind in kinds}


@torch.no_grad()
def activations(gpt: GPT, tokens: Tensor) -> dict[str, Tensor]:
    """By kind: after the embedding, each branch in all blocks, the residual stream after the last one, logits."""
    seen: dict[str, list[Tensor]] = {}

    def keep(kind: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
            kept = args[0] if output is None else output
            if isinstance(kept, Tensor):
                seen.setdefault(kind, []).append(kept)

        return hook

    hooks = [gpt.blocks[0].register_forward_pre_hook(keep("embedding"))]
    for block in gpt.blocks:
        branches = {n: child for n, child in block.named_children() if "norm" not in type(child).__name__.lower()}
        hooks += [child.register_forward_hook(keep(name)) for name, child in branches.items()]
    hooks.append(gpt.blocks[-1].register_forward_hook(keep("residual stream")))
    logits = gpt(tokens)
    for hook in hooks:
        hook.remove()
    return {**{kind: torch.stack(kept) for kind, kept in seen.items()}, "logits": logits}


def _log(movement: float) -> float:
    return math.log(max(movement, 1e-30)) if math.isfinite(movement) else math.nan

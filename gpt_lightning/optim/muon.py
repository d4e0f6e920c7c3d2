"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al. 2024).

Equal to torch.optim.Muon, with what a GPT needs beside it: matrices that share a parameter, as queries, keys and
values do, are orthogonalised one by one, all matrices of one shape go through one batched product, a gradient that is
not finite changes nothing without a synchronisation, and weight decay can be cautious. Newton-Schulz runs in bf16 on
GPUs and in the gradient's own dtype on CPUs, where bf16 is often emulated. A sharded matrix is gathered on every rank.
"""

import math
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # chosen for the largest slope at 0 (Jordan et al. 2024)
EPS = 1e-7
STEPS = 5


def orthogonalize(
    matrices: Float[Tensor, "matrices rows columns"], dtype: torch.dtype | None = None
) -> Float[Tensor, "matrices rows columns"]:
    """Each matrix U S V^T as U S' V^T with all of S' near 1 (0.7 to 1.2), by five Newton-Schulz steps in `dtype`."""
    a, b, c = COEFFICIENTS
    x = matrices.to(dtype or (torch.bfloat16 if matrices.is_cuda else matrices.dtype))
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=EPS)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)


def lr_factor(adjust_lr: str, rows: int, columns: int) -> float:
    """What an update's learning rate is multiplied by for a matrix of this shape."""
    if adjust_lr == "original":
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))  # the root mean square of AdamW's updates (Liu et al. 2502.16982)


def muon_step(group: Mapping[str, Any], state: MutableMapping[Tensor, Any], found_inf: Tensor | None) -> None:
    """Update a group's matrices in place; where `found_inf` is 1, weights and momentum stay as they are."""
    parameters = [p for p in group["params"] if p.grad is not None]
    lr, momentum = group["lr"] * group["lr_ratio"], group["momentum"]
    keep = 1.0 if found_inf is None else 1 - found_inf  # 0 where nothing may change
    directions = []
    for p in parameters:
        if "momentum_buffer" not in state[p]:
            state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffer = state[p]["momentum_buffer"]
        grad = p.grad if found_inf is None else torch.nan_to_num(p.grad, 0.0, 0.0, 0.0)
        buffer.add_((grad - buffer) * ((1 - momentum) * keep))
        directions.append(torch.lerp(grad, buffer, momentum))  # Nesterov

    def length(rows: int, columns: int) -> float | Tensor:
        return lr * lr_factor(group["adjust_lr"], rows, columns) * keep

    for p, update in zip(parameters, _updates(directions, group["parts"], length), strict=True):
        decay = p * (lr * group["weight_decay"] * keep)
        if group["cautious"]:
            decay *= update * p >= 0
        p.sub_(decay).sub_(update)


def _updates(
    directions: list[Tensor], parts: tuple[int, ...], length: Callable[[int, int], float | Tensor]
) -> list[Tensor]:
    """Each direction's parts made orthogonal, times `length` of their shape; all of one shape in one batch."""
    whole = [d.full_tensor() if isinstance(d, DTensor) else d for d in directions]
    pieces = [list(d.split(parts or d.shape[0])) for d in whole]
    by_shape: dict[torch.Size, list[tuple[int, int]]] = {}
    for i, of_one in enumerate(pieces):
        for j, piece in enumerate(of_one):
            by_shape.setdefault(piece.shape, []).append((i, j))
    for shape, members in by_shape.items():
        batch = orthogonalize(torch.stack([pieces[i][j] for i, j in members])) * length(*shape)
        for (i, j), update in zip(members, batch, strict=True):
            pieces[i][j] = update
    return [_like(torch.cat(of_one), d) for of_one, d in zip(pieces, directions, strict=True)]


def _like(update: Tensor, direction: Tensor) -> Tensor:
    """The update, sharded as the direction is: every rank has it all and takes its own piece."""
    if not isinstance(direction, DTensor):
        return update
    return distribute_tensor(update, direction.device_mesh, direction.placements, src_data_rank=None)

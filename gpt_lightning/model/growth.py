"""A model in, another model with the same function out.

Duplication copies every hidden coordinate k times: vectors, embeddings and readouts are copied, and a hidden matrix
becomes (W (x) ones(k, k)) / k, because k equal inputs now add up where one stood. Normalisations see the same mean and
variance. With muP's multipliers (model/parametrization.py) the wide model computes the same logits and, trained with
muP's rules, stays the same model for ever, which is what `tune verify` builds on: a single wrong rule ends it
(Yang et al. 2022, arXiv 2203.03466, appendix; Net2Net, Chen et al. 2016, arXiv 1511.05641).
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from gpt_lightning.model.facts import Facts
from gpt_lightning.model.gpt import GPT, Block
from gpt_lightning.model.parametrization import parametrization


@torch.no_grad()
def duplicate_width(small: GPT, wide: GPT) -> None:
    """Fill `wide`, a model of the same class and depth and k times the width, with the function of `small`.

    Heads are copied whole where there are more of them, and widened where they are wider. Which dimensions grow is
    seen from the shapes; by their facts, hidden matrices are divided by how often their inputs are repeated.

    Raises ValueError naming the parameter that does not grow as the models do.
    """
    facts, sources = wide.facts(), dict(small.named_parameters())
    if sources.keys() != dict(wide.named_parameters()).keys():
        odd = sorted(sources.keys() ^ dict(wide.named_parameters()).keys())
        raise ValueError(f"only one of the two models has the parameter {odd[0]}; expected the same layers")
    for name, target in wide.named_parameters():
        value: Tensor = sources[name].detach()
        repeats = [_repeats(name, n, grown, small, wide) for n, grown in zip(value.shape, target.shape, strict=True)]
        for dim, repeat in enumerate(repeats):
            parts = value.split(_parts_of(facts[name], value, target) if dim == 0 else value.shape[dim], dim)
            value = torch.cat([_copy(part, dim, repeat, small, wide) for part in parts], dim)
        if facts[name].role == "hidden":
            value = value / math.prod(repeats[1:])  # torch's order: outputs first, then inputs
        target.copy_(value)


def with_more_ids(state: dict[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """Weights of a GPT whose embedding and readout have rows for `vocab_size` ids, the new ones the mean of the old.

    A new id's logit is then the mean logit, so its probability is at most one over the vocabulary (Jensen): the model
    goes on as it was. Rows drawn at random can take half of it.
    """
    grown = dict(state)
    for name in ("wte.weight", "lm_head.weight"):
        if name in state:
            rows = state[name]
            mean = rows.double().mean(0, keepdim=True).to(rows.dtype)
            grown[name] = torch.cat([rows, mean.expand(vocab_size - len(rows), -1)])
    return grown


def to_standard(gpt: GPT) -> GPT:
    """The same function as a model of parametrization "standard", for programs that know no other.

    For the built-in blocks alone. The attention scale goes into the queries, or into their norm where they have one;
    the residual multiplier into what is added to the residual stream, or into the norm after it; and the readout
    multiplier into the last norm. The weights of `gpt` stay as they are.
    """
    if gpt.config.parametrization == "standard":
        return gpt
    plain = replace(gpt.config, parametrization="standard", base_d_model=None, base_n_layers=None, base_d_head=None)
    with torch.device("meta"):
        standard = GPT(plain)
    state = {name: value.detach().clone() for name, value in gpt.state_dict().items()}
    numbers = parametrization(gpt.config)
    for name, facts in gpt.facts().items():
        if facts.role == "final_vector":
            state[name] *= numbers.readout
        if facts.residual:
            state[name] *= numbers.residual
    standard.load_state_dict(state, assign=True)
    for block in standard.blocks:
        assert isinstance(block, Block)
        scaled = block.attn.q_norm if plain.qk_norm else block.attn.qkv
        for value in scaled.parameters():
            value.data[: plain.d_model] *= numbers.attention_scale * plain.d_head**0.5  # of the rows: the queries
    return standard.requires_grad_().train(gpt.training)


def _parts_of(facts: Facts, value: Tensor, grown: Tensor) -> list[int]:
    """Rows of the small model's matrices that are fused in one, of which each is copied by itself."""
    return [rows * len(value) // len(grown) for rows in facts.parts] or [len(value)]


def _growth(small: GPT, wide: GPT) -> tuple[int, int]:
    """How many times as many heads, and how many times as wide ones."""
    heads, d_heads = ([config.n_heads, config.d_head] for config in (small.config, wide.config))
    if any(grown % n for n, grown in zip(heads, d_heads, strict=True)):
        raise ValueError(
            f"{d_heads[0]} heads of {d_heads[1]} are not whole multiples of {heads[0]} heads of {heads[1]}; "
            "expected n_heads and d_head that are"
        )
    return d_heads[0] // heads[0], d_heads[1] // heads[1]


def _repeats(name: str, n: int, grown: int, small: GPT, wide: GPT) -> int:
    """How often a dimension's coordinates are repeated. Raises ValueError when models do not grow so."""
    more, wider = _growth(small, wide)
    if grown not in (n, n * more, n * wider, n * more * wider):
        raise ValueError(f"{name} grows from {n} to {grown}; expected {n}, or {more * wider} x {n} with the width")
    return grown // n


def _copy(value: Tensor, dim: int, repeat: int, small: GPT, wide: GPT) -> Tensor:
    """Repeat the coordinates along a dimension: head by head where it is made of whole heads, else one by one.

    One order for all dimensions of one size, so that what one layer writes the next one reads.
    """
    more, wider = _growth(small, wide)
    n, d_head = value.shape[dim], small.config.d_head
    if repeat == 1:
        return value
    if repeat != more * wider or n % d_head or n == small.config.n_heads:
        return value.repeat_interleave(repeat, dim)
    heads = value.unflatten(dim, (n // d_head, d_head))
    return heads.repeat_interleave(more, dim).repeat_interleave(wider, dim + 1).flatten(dim, dim + 1)

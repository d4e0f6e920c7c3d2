"""The proxies of a wide model: the same structure with fewer heads, and with fewer layers where the depth carries over.

target      d_model 768, 12 heads, 12 layers
proxies     d_model 64, 128 and 192: 1, 2 and 3 heads of the same width; 6 layers under CompleteP, 12 under muP
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.flops import count_parameters, flops_per_token
from gpt_lightning.run.stack import Stack
from gpt_lightning.tune.trials import open_corpora

NARROWER = 4  # the widest proxy has a quarter of the heads
SHALLOWER = 2  # and half of the layers
N_WIDTHS = 3  # in which the best learning rate must be the same


@dataclass(frozen=True)
class Size:
    """A stack with its model's size. flops: of training on a token. n_params: non-embedding parameters."""

    stack: Stack = field(repr=False)
    d_model: int
    n_layers: int
    n_params: int
    flops: float

    @classmethod
    def of(cls, stack: Stack) -> "Size":
        corpora, _ = open_corpora(stack)
        sizes = {"vocab_size": corpora[0].vocab_size, "context_length": stack["data.context_length"]}
        gpt = replace(stack.settings("model.gpt"), **sizes)
        block = stack.own_block()
        n_params = count_parameters(gpt, block).non_embedding
        return cls(stack, gpt.d_model, gpt.n_layers, n_params, flops_per_token(gpt, block))


def target_and_proxies(stack: Stack, widths: Sequence[int] | None, n_layers: int | None) -> tuple[Size, list[Size]]:
    """The stack as it will be trained, and its proxies, the narrowest first; base width and depth are the widest's.

    A stack that has a base keeps it. Raises ValueError for widths that are no proxies.
    """
    gpt: GPTConfig = stack.settings("model.gpt")
    widths = sorted(widths) if widths else default_widths(gpt)
    _check(gpt, widths, n_layers)
    kind = "completep" if gpt.parametrization == "standard" else gpt.parametrization
    if n_layers is None:
        n_layers = max(gpt.n_layers // SHALLOWER, 1) if kind == "completep" else gpt.n_layers
    elif kind == "mup" and n_layers != gpt.n_layers:
        raise ValueError(
            f"tune.n_layers {n_layers}: with mup what is tuned holds for other widths, not for other depths than "
            f"{gpt.n_layers}; set model.gpt.parametrization completep"
        )
    base: dict[str, Any] = {"parametrization": kind, "base_d_model": gpt.base_d_model or widths[-1]}
    if kind == "completep":
        base["base_n_layers"] = gpt.base_n_layers or n_layers
    target = stack.with_({f"model.gpt.{name}": value for name, value in base.items()})
    return Size.of(target), [Size.of(target.with_(_smaller(gpt, width, n_layers))) for width in widths]


def default_widths(gpt: GPTConfig) -> list[int]:
    """A quarter of the heads, half of those, and half again; at least one, two and three of them."""
    widest = max(gpt.n_heads // NARROWER, N_WIDTHS)
    heads = [1, 2, 3] if widest == N_WIDTHS else [widest // 4, widest // 2, widest]
    return [n * gpt.d_head for n in heads]


def _smaller(gpt: GPTConfig, width: int, n_layers: int) -> dict[str, Any]:
    n_heads = width // gpt.d_head
    options: dict[str, Any] = {"d_model": width, "n_heads": n_heads, "n_layers": n_layers}
    if gpt.d_ff is not None:
        options["d_ff"] = max(round(gpt.d_ff * width / gpt.d_model), 1)
    if gpt.n_kv_heads is not None:
        shared = max(n_heads * gpt.n_kv_heads // gpt.n_heads, 1)
        options["n_kv_heads"] = next(n for n in range(shared, 0, -1) if n_heads % n == 0)
    return {f"model.gpt.{name}": value for name, value in options.items()}


def _check(gpt: GPTConfig, widths: Sequence[int], n_layers: int | None) -> None:
    if len(set(widths)) != N_WIDTHS:
        raise ValueError(f"tune.widths {list(widths)}: expected {N_WIDTHS} different widths")
    for width in widths:
        if width < 1 or width % gpt.d_head:
            raise ValueError(f"tune.widths {width}: expected multiples of {gpt.d_head}, the width of the model's heads")
    if widths[-1] >= gpt.d_model:
        raise ValueError(
            f"the widest proxy, {widths[-1]}, is not narrower than the model, d_model {gpt.d_model} with "
            f"{gpt.n_heads} heads; tune lr tunes it as it is"
        )
    if n_layers is not None and not 1 <= n_layers <= gpt.n_layers:
        raise ValueError(f"tune.n_layers {n_layers}: expected from 1 to {gpt.n_layers}, those of the model")

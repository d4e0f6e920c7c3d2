"""The proxies of a wide model: the same structure with fewer heads, and with fewer layers where the depth carries over.

target      d_model 768, 12 heads, 12 layers
proxies     d_model 64, 128 and 192: 1, 2 and 3 heads of the same width; 6 layers under CompleteP, 12 under muP
"""

from collections.abc import Sequence
from dataclasses import replace

from gpt_lightning.model.config import GPTConfig
from gpt_lightning.run.stack import Stack
from gpt_lightning.tune.sizes import Size, gpt_of, resized

NARROWER = 4  # the widest proxy has a quarter of the heads
SHALLOWER = 2  # and half of the layers
N_WIDTHS = 3  # in which the best learning rate must be the same


def target_and_proxies(stack: Stack, widths: Sequence[int] | None, n_layers: int | None) -> tuple[Size, list[Size]]:
    """The model as it will be trained, and its proxies, the narrowest first; base width and depth are the widest's.

    A stack that has a base keeps it. Raises ValueError for widths that are no proxies.
    """
    gpt = gpt_of(stack)
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
    base_n_layers = gpt.base_n_layers or (n_layers if kind == "completep" else None)
    base_d_model = gpt.base_d_model or widths[-1]
    target = replace(gpt, parametrization=kind, base_d_model=base_d_model, base_n_layers=base_n_layers)
    proxies = [resized(target, width // gpt.d_head, n_layers) for width in widths]
    block = stack.own_block()
    return Size.of(target, block), [Size.of(proxy, block) for proxy in proxies]


def default_widths(gpt: GPTConfig) -> list[int]:
    """A quarter of the heads, half of those, and half again; at least one, two and three of them."""
    widest = max(gpt.n_heads // NARROWER, N_WIDTHS)
    heads = [1, 2, 3] if widest == N_WIDTHS else [widest // 4, widest // 2, widest]
    return [n * gpt.d_head for n in heads]


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

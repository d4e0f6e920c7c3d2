"""Which runs: levels of compute, and at each of them several sizes, each as long as the level pays for.

    budget of the ladder = share x FLOPs of the target
    levels               4 times as much compute from one to the next; the highest is at most a quarter of the target
    sizes of a level     those of the structure that read about 4, 8, 16, 32 and 64 tokens per parameter, embeddings'
                         share of the compute counted: on both sides of the 20 that suit large models

The structure is the stack's: heads of one width, more of them and, with CompleteP, more layers in proportion, but not
fewer than four: a model of one layer cannot look up what followed the last time (induction heads, Olsson et al. 2022,
arXiv 2209.11895), and its law is another one (on source code, runs of one layer promised 3.41 where 3.20 was reached).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.own_block import MakeBlock
from gpt_lightning.tune.sizes import Size, resized

STEP = 4.0  # of compute between levels
LEVELS = 3
RATIOS = (4.0, 8.0, 16.0, 32.0, 64.0)  # tokens over a sixth of the FLOPs per token
FARTHEST = 3.0  # factor by which a size may miss what is wanted
LARGEST = 1 / 4  # of the target's compute, that a rung may take
WIDER = 16  # times the heads of the stack, up to which sizes are looked at
LEAST_LAYERS = 4  # where the stack has as many
LEAST_STEPS = 40  # optimizer steps of a run
LEAST_RUNS, LEAST_SIZES = 7, 3
DOUBLED = 24  # times, up to which a budget that would do is looked for


@dataclass(frozen=True)
class Rung:
    """One run of the ladder."""

    size: Size
    tokens: int

    @property
    def flops(self) -> float:
        return self.size.flops * self.tokens

    @property
    def key(self) -> str:
        """Names it in the folder."""
        return f"d_model {self.size.d_model} n_layers {self.size.n_layers} tokens {self.tokens}"


def sizes_of(gpt: GPTConfig, block: MakeBlock | None) -> list[Size]:
    """The structure in all sizes from one head to some times those that it has, the smallest first."""
    found = []
    for n_heads in _numbers(WIDER * gpt.n_heads):
        in_proportion = max(round(gpt.n_layers * n_heads / gpt.n_heads), min(LEAST_LAYERS, gpt.n_layers))
        n_layers = in_proportion if gpt.parametrization == "completep" else gpt.n_layers
        found.append(Size.of(resized(gpt, n_heads, n_layers), block))
    return found


def plan_ladder(sizes: Sequence[Size], flops: float, share: float, batch_tokens: int) -> list[Rung]:
    """Runs that cost `share` of `flops` in all, the cheapest first.

    Raises ValueError where so little compute makes fewer runs than a law needs, with the FLOPs that would do.
    """
    plan = _plan(sizes, flops, share, batch_tokens)
    if not _is_enough(plan):
        larger = [flops * 2**doubled for doubled in range(1, DOUBLED)]
        enough = next((more for more in larger if _is_enough(_plan(sizes, more, share, batch_tokens))), None)
        raise ValueError(
            f"{share:g} of {flops:.2g} FLOPs makes {len(plan)} runs, of {_n_sizes(plan)} sizes; a law needs at least "
            f"{LEAST_RUNS} runs and {LEAST_SIZES} sizes: raise --tune.flops"
            + (f" to {enough:.1e}" if enough else "")
            + " or --tune.share, or take narrower heads or a smaller batch"
        )
    return plan


def _n_sizes(plan: Sequence[Rung]) -> int:
    return len({rung.size.n_params for rung in plan})


def _is_enough(plan: Sequence[Rung]) -> bool:
    return len(plan) >= LEAST_RUNS and _n_sizes(plan) >= LEAST_SIZES


def _plan(sizes: Sequence[Size], flops: float, share: float, batch_tokens: int) -> list[Rung]:
    top = share * flops / (len(RATIOS) * sum(STEP**-level for level in range(LEVELS)))
    levels = [min(top, LARGEST * flops) * STEP**-level for level in reversed(range(LEVELS))]
    rungs: dict[str, Rung] = {}
    for level in levels:
        for ratio in RATIOS:
            rung = _nearest(sizes, level, ratio, batch_tokens)
            if rung is not None:
                rungs[rung.key] = rung
    return sorted(rungs.values(), key=lambda rung: rung.flops)


def _nearest(sizes: Sequence[Size], flops: float, ratio: float, batch_tokens: int) -> Rung | None:
    """The size that reads about so many tokens per parameter for this compute; None where none comes near."""
    wanted = math.sqrt(6 * flops / ratio)  # FLOPs per token
    size = min(sizes, key=lambda size: abs(math.log(size.flops / wanted)))
    tokens = round(flops / size.flops / batch_tokens) * batch_tokens
    if not 1 / FARTHEST < size.flops / wanted < FARTHEST or tokens < LEAST_STEPS * batch_tokens:
        return None
    return Rung(size, tokens)


def _numbers(largest: int) -> list[int]:
    """1 to 12, and from there steps of a tenth."""
    numbers: list[int] = [1]
    while (following := max(numbers[-1] + 1, round(numbers[-1] * 1.1))) <= largest:
        numbers.append(following)
    return numbers


def candidates(sizes: Sequence[Size], flops: float) -> list[tuple[float, float]]:
    """(N, D) of every size for a budget."""
    return [(float(size.n_params), flops / size.flops) for size in sizes]


def options(rung: Rung) -> dict[str, Any]:
    """What makes a trial of the stack this run."""
    return {**rung.size.options(), "max_tokens": rung.tokens}

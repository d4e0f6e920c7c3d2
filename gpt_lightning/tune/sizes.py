"""Models of one structure in other sizes: more or fewer heads of the same width, more or fewer layers."""

from dataclasses import dataclass, replace
from typing import Any

from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.flops import count_parameters, flops_per_token
from gpt_lightning.model.own_block import MakeBlock
from gpt_lightning.run.build import open_corpora
from gpt_lightning.run.stack import Stack

OF_SIZE = ("n_layers", "n_heads", "d_model", "d_ff", "n_kv_heads")
OF_BASE = ("parametrization", "base_d_model", "base_n_layers")


@dataclass(frozen=True)
class Size:
    """A model's size. n_params: without embeddings. flops: of training on a token, forward and backward."""

    gpt: GPTConfig
    n_params: int
    flops: float

    @classmethod
    def of(cls, gpt: GPTConfig, block: MakeBlock | None = None) -> "Size":
        """block: one's own, None for the built-in one."""
        return cls(gpt, count_parameters(gpt, block).non_embedding, flops_per_token(gpt, block))

    @property
    def d_model(self) -> int:
        return self.gpt.d_model

    @property
    def n_layers(self) -> int:
        return self.gpt.n_layers

    def options(self) -> dict[str, Any]:
        """What makes a stack one of this size, by dotted name."""
        given = {name: getattr(self.gpt, name) for name in (*OF_SIZE, *OF_BASE)}
        return {f"model.gpt.{name}": value for name, value in given.items() if value is not None}


def gpt_of(stack: Stack) -> GPTConfig:
    """The model's settings with what follows from the data."""
    corpora, _ = open_corpora(stack)
    sizes = {"vocab_size": corpora[0].vocab_size, "context_length": stack["data.context_length"]}
    return replace(stack.settings("model.gpt"), **sizes)


def resized(gpt: GPTConfig, n_heads: int, n_layers: int) -> GPTConfig:
    """The same structure: heads of the same width, d_ff and shared keys in the same proportion."""
    sizes: dict[str, Any] = {"d_model": n_heads * gpt.d_head, "n_heads": n_heads, "n_layers": n_layers}
    if gpt.d_ff is not None:
        sizes["d_ff"] = max(round(gpt.d_ff * n_heads / gpt.n_heads), 1)
    if gpt.n_kv_heads is not None:
        shared = max(n_heads * gpt.n_kv_heads // gpt.n_heads, 1)
        sizes["n_kv_heads"] = next(n for n in range(shared, 0, -1) if n_heads % n == 0)
    return replace(gpt, **sizes)

"""LoRA: a trained matrix stays as it is, and beside it a product of two thin ones is trained (Hu et al. 2021,
arXiv 2106.09685).

    W' = W + alpha / rank  B A      A: (rank, inputs), drawn as torch draws a layer; B: (outputs, rank), zeros

With alpha / rank an update moves the output by as much at every rank, so one learning rate serves all of them. A is a
hidden matrix, whose learning rate follows the width with mup; B is not, for it has `rank` inputs at any width. Neither
is decayed, and AdamW trains both, also beside Muon. `merged` gives plain weights back, which is what is deployed.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_lightning.model.facts import Facts, facts_of

SUFFIXES = ("lora_a", "lora_b", "lora_scale")


class LoRALinear(nn.Linear):
    """`layer` with its own, frozen parameters, under the names that they had, and a trained update beside them."""

    lora_scale: Tensor

    def __init__(self, layer: nn.Linear, rank: int, alpha: float):
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.requires_grad_(False)
        self._facts = facts_of(layer)
        device, dtype = layer.weight.device, layer.weight.dtype
        self.lora_a = nn.Parameter(torch.empty(rank, layer.in_features, device=device, dtype=dtype))
        self.lora_b = nn.Parameter(torch.zeros(layer.out_features, rank, device=device, dtype=dtype))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.register_buffer("lora_scale", torch.tensor(alpha / rank, device=device))
        self._scale = alpha / rank

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        update = F.linear(F.linear(x, self.lora_a), self.lora_b)
        return torch.add(super().forward(x), update, alpha=self._scale)

    def parameter_facts(self) -> dict[str, Facts]:
        """Those of the layer, and its own: see the module."""
        own = {"lora_a": Facts("adapter", std=None), "lora_b": Facts("vector", std=None)}
        return {**self._facts, **own}


def add_lora(gpt: nn.Module, matrices: tuple[str, ...], rank: int, alpha: float) -> None:
    """Give the named linear layers of every block of `gpt` an update to train.

    Raises ValueError for a name that no block has, and a rank that is none.
    """
    found = {name: layer for name, layer in gpt.named_modules() if isinstance(layer, nn.Linear) and "blocks." in name}
    ends = {name.split(".", 2)[2] for name in found}
    for wanted in matrices:
        if wanted not in ends:
            raise ValueError(
                f"trainable.matrices has {wanted}; the blocks of this model have {', '.join(sorted(ends))}"
            )
    for name, layer in found.items():
        if name.split(".", 2)[2] in matrices:
            gpt.set_submodule(name, LoRALinear(layer, rank, alpha))


def merged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights without updates beside them: each is added to its matrix, in float32, and rounded once."""
    plain = {name: value for name, value in state.items() if not name.endswith(SUFFIXES)}
    for name in state:
        if name.endswith(".lora_a"):
            layer = name.removesuffix(".lora_a")
            weight, a, b = (state[f"{layer}.{part}"].float() for part in ("weight", "lora_a", "lora_b"))
            update = state[f"{layer}.lora_scale"].float() * (b @ a)
            plain[f"{layer}.weight"] = (weight + update).to(state[f"{layer}.weight"].dtype)
    return plain

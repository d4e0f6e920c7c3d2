"""A model that only generates: its linear layers in the form whose weights come fastest from a CPU's memory.

Decoding multiplies one row per sequence with every weight, so a step takes the time to read them:

    weights     bytes of 124M   linear layers are
    float32     498 MB          nn.Linear in the products of few_rows.py
    bfloat16    249 MB          Bfloat16Linear: packed once, which torch does anew for every product
    int8        124 MB          Int8Linear (int8.py)

The readout is one of them, a third of the weights; the embedding, of which a step reads one row, stays as it is.
Activations, attention and its cache are float32 in all three.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gpt_lightning.model.few_rows import FewRowsLinear
from gpt_lightning.model.gpt import GPT
from gpt_lightning.model.int8 import Int8Linear
from gpt_lightning.model.linear import Linear


class Bfloat16Linear(nn.Module):
    """A linear layer for inference on a CPU whose weights are bf16; activations and bias are float32."""

    def __init__(self, weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None = None):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().bfloat16(), None)
        self.bias = None if bias is None else bias.detach().float()

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        y = torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.packed, None, "none", [], "")
        return y.float() if self.bias is None else torch.add(y, self.bias)  # float32, as the bias


KINDS: dict[str, type[nn.Module]] = {"float32": FewRowsLinear, "bfloat16": Bfloat16Linear, "int8": Int8Linear}


def prepare(gpt: GPT, weights: str = "float32") -> GPT:
    """Give `gpt`, in place, linear layers that are read fast; without gradients unless they stay float32.

    On a GPU, torch's own layers are kept. Raises ValueError where this machine has no such products.
    """
    if weights not in KINDS:
        raise ValueError(f"weights {weights!r}; expected one of {', '.join(KINDS)}")
    device = gpt.wte.weight.device.type
    if device != "cpu":
        if weights == "int8":
            raise ValueError(f"int8 weights are for a CPU, and the model is on {device}; take bfloat16")
        return gpt.to(getattr(torch, weights))
    if weights != "float32" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise ValueError(f"{weights} weights need a CPU with AVX-512 and torch's oneDNN; take float32")
    if weights == "int8" and not torch.cpu._is_vnni_supported():
        raise ValueError("int8 weights need a CPU with AVX-512 VNNI; take bfloat16")
    readout = KINDS[weights](gpt.readout.weight)
    for module in gpt.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and type(child).forward in (nn.Linear.forward, Linear.forward):
                setattr(module, name, KINDS[weights](child.weight, child.bias))
    gpt.lm_head = readout  # type: ignore[assignment]
    return gpt

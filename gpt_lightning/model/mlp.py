"""The MLP of a layer: two matrices around an activation, which may be gated."""

from jaxtyping import Float
from torch import Tensor, nn

from gpt_lightning.model.activations import ACTIVATIONS
from gpt_lightning.model.linear import Linear, after


class MLP(nn.Module):
    """proj(activation(fc(x))); of a gated activation, fc holds [gate | up].

    activation: a key of ACTIVATIONS; `gelu`, its tanh form, in GPT-2 and GPT-3.
    """

    def __init__(self, d_model: int, d_ff: int, dropout: float, bias: bool, activation: str = "gelu"):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        n_inputs = self.activation.n_inputs
        self.fc = Linear(d_model, n_inputs * d_ff, bias, parts=(d_ff,) * n_inputs if n_inputs > 1 else ())
        self.proj = Linear(d_ff, d_model, bias, residual=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time d_model"]:
        return self.dropout(after(self.activation, self.proj, self.fc(x)))

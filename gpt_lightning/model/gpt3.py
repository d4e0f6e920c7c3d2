"""GPT-3's eight sizes as data: Brown et al. 2020 (arXiv 2005.14165), Tables 2.1 and D.1. The only copy of them.

`configs/model/gpt3-*.yaml` are these rows to train, with batches rounded to what divides over devices; the tests hold
them, the formula of model/flops.py and the model itself against this table.
"""

from dataclasses import dataclass

GPT3_TOKENS = 3e11  # every row was trained on as many
GPT3_WEIGHT_DECAY = 0.1  # appendix B, all sizes
PETAFLOP_DAY = 8.64e19  # FLOPs


def gpt3_loss(n_flops: float) -> float:
    """Nats per token of its own web text that a compute budget buys: figure 3.1."""
    return 2.57 * (n_flops / PETAFLOP_DAY) ** -0.048


@dataclass(frozen=True)
class GPT3Row:
    """A row of the tables, numbers as printed: batch in tokens, parameters in millions, compute in PF-days."""

    name: str
    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    batch_tokens: float
    lr: float
    n_params_millions: float
    petaflop_days: float

    @property
    def n_params_non_embedding(self) -> int:
        return self.n_layers * (12 * self.d_model**2 + 13 * self.d_model) + 2 * self.d_model


# Two misprints are mended: the paper has n_heads 24 for 1.3b and d_model 5140 for 13b, which contradict its d_head 128.
GPT3_ROWS = (
    GPT3Row("125m", 12, 768, 12, 64, 0.5e6, 6.0e-4, 125, 2.60),
    GPT3Row("350m", 24, 1024, 16, 64, 0.5e6, 3.0e-4, 356, 7.42),
    GPT3Row("760m", 24, 1536, 16, 96, 0.5e6, 2.5e-4, 760, 15.8),
    GPT3Row("1.3b", 24, 2048, 16, 128, 1e6, 2.0e-4, 1_320, 27.5),
    GPT3Row("2.7b", 32, 2560, 32, 80, 1e6, 1.6e-4, 2_650, 55.2),
    GPT3Row("6.7b", 32, 4096, 32, 128, 2e6, 1.2e-4, 6_660, 139),
    GPT3Row("13b", 40, 5120, 40, 128, 2e6, 1.0e-4, 12_850, 268),
    GPT3Row("175b", 96, 12288, 96, 128, 3.2e6, 0.6e-4, 174_600, 3640),
)

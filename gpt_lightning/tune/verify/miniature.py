"""The user's model and optimizer in miniature: the same structure, small enough for a hundred runs in a minute.

What decides how a parametrization behaves is kept: the structure, the ratio of d_ff, how many heads share keys, whether
wider models have more or wider heads, the loss, the optimizer with its learning-rate ratios. Sizes, vocabulary, initial
and learning-rate levels are not. Steps are made as module.py makes them, so that a mistake in the table or in a changed
model shows here.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.loss import Loss, MicroStep
from gpt_lightning.model.own_block import MakeBlock
from gpt_lightning.model.parametrization import parametrization
from gpt_lightning.model.readout import Readout
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.optim.groups import gradient_norm
from gpt_lightning.optim.optimizer import build_optimizer

D_HEAD = 8
VOCAB, CONTEXT, SEQUENCES = 32, 16, 8


@dataclass(frozen=True)
class Miniature:
    """A small model of the user's structure, with its relatives of other widths and depths.

    widening_heads: the share of a doubling of the width that goes into wider heads; the rest gives more heads.
    """

    gpt: GPTConfig
    block: MakeBlock
    widening_heads: float

    @classmethod
    def of(cls, gpt: GPTConfig, block: MakeBlock, n_heads: int, n_layers: int) -> "Miniature":
        """The miniature of `gpt` at base width, which is here `n_heads` heads."""
        d_head, D = gpt.d_head, n_heads * D_HEAD
        base_d_head = gpt.base_d_head or d_head
        wider = gpt.parametrization != "standard" and base_d_head != d_head
        only_wider = wider and d_head * (gpt.base_d_model or 0) == base_d_head * gpt.d_model
        config = replace(
            gpt,
            vocab_size=VOCAB,
            context_length=CONTEXT,
            n_layers=n_layers,
            n_heads=n_heads,
            d_model=D,
            d_ff=max(round(gpt.inner_width / gpt.d_model * n_heads), 1) * D_HEAD,
            n_kv_heads=gpt.n_kv_heads and max(n_heads * gpt.n_kv_heads // gpt.n_heads, 1),
            dropout=0.0,
            init_std=0.02,
            attention_pattern=tuple(dict.fromkeys(gpt.attention_pattern)),
            band_width=CONTEXT // 4,
            base_d_model=None if gpt.parametrization == "standard" else D,
            base_n_layers=1 if gpt.parametrization == "completep" else None,
            base_d_head=D_HEAD if wider else None,
        )
        return cls(config, block, 1.0 if only_wider else 0.5 if wider else 0.0)

    def wider(self, doublings: int) -> "Miniature":
        """The relative 2^doublings times as wide: with more heads, wider heads, or both, as the user's."""
        of_d_head = math.ceil(doublings * self.widening_heads)
        config, factor = self.gpt, 2**doublings
        more_heads = factor // 2**of_d_head
        grown = {
            "d_model": config.d_model * factor,
            "n_heads": config.n_heads * more_heads,
            "n_kv_heads": config.n_kv_heads and config.n_kv_heads * more_heads,
            "d_ff": config.inner_width * factor,
        }
        return replace(self, gpt=replace(config, **grown))

    def deeper(self, n_layers: int) -> "Miniature":
        """The relative with another number of layers."""
        return replace(self, gpt=replace(self.gpt, n_layers=n_layers))

    def build(self, seed: int, dtype: torch.dtype = torch.float32) -> GPT:
        """A model with fresh weights; torch's own random numbers stay as they are."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return GPT(self.gpt, self.block).to(dtype)


@contextmanager
def one_thread() -> Iterator[None]:
    """Miniatures are several times faster on one thread than on two, above all where others use the machine too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    """Random tokens and their targets, to be learned by heart."""
    ids = torch.randint(0, VOCAB, (SEQUENCES, CONTEXT + 1), generator=torch.Generator().manual_seed(seed))
    return ids[:, :-1], ids[:, 1:]


def optim_in_miniature(optim: OptimConfig, lr: float, weight_decay: float, eps: float) -> OptimConfig:
    """The user's optimizer at other strengths; `lr` is that of the role with the largest ratio."""
    return replace(optim, lr=lr / max([1.0, *optim.lr_ratios.values()]), weight_decay=weight_decay, eps=eps)


def check_followable(loss: Loss) -> None:
    """Raise ValueError for a loss that cannot be followed here: of one vocabulary, or less exact than its input."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(SEQUENCES, CONTEXT, D_HEAD, dtype=torch.float64, generator=random)
    weight = torch.randn(VOCAB, D_HEAD, dtype=torch.float64, generator=random)
    name = f"model.loss {type(loss).__name__}"
    try:
        mean = mean_loss(_fresh(loss, hidden.dtype), MicroStep(hidden, Readout(weight), *batch(0), 0.0))
    except Exception as error:  # whatever a user's code raises
        raise ValueError(
            f"{name} cannot be verified: with a vocabulary of {VOCAB} it stops with {type(error).__name__}: {error}; "
            "tune verify trains miniatures of the model, so it expects a loss that works for any vocabulary"
        ) from error
    if mean.dtype != hidden.dtype:
        raise ValueError(
            f"{name} cannot be verified: it makes {mean.dtype} of float64, and models that should train alike are "
            "compared to the last digit; take the dtype of its input instead, as by logits.to(hidden.dtype)"
        )


def mean_loss(loss: Loss, step: MicroStep) -> Tensor:
    """The loss of one micro-step as training has it; random numbers that it draws are the same in every miniature."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        total, count = loss(step)
    return total / count


def _fresh(loss: Loss, dtype: torch.dtype) -> Loss:
    """The loss with the buffers that it starts with, so that no miniature sees what another one left there."""
    return copy.deepcopy(loss).to(dtype)


def train(gpt: GPT, loss: Loss, optim: OptimConfig, data: tuple[Tensor, Tensor], clip: float = 0.0) -> Iterator[float]:
    """Train on one batch, for as long as losses are asked for; each is that before its step."""
    loss = _fresh(loss, gpt.wte.weight.dtype)
    numbers = parametrization(gpt.config, optim.hidden_update).roles
    optimizer = build_optimizer(dict(gpt.named_parameters()), gpt.facts(), optim, numbers)
    while True:
        hidden = gpt.hidden_states(data[0])
        mean = mean_loss(loss, MicroStep(hidden, gpt.readout, *data, progress=0.0))
        optimizer.zero_grad()
        mean.backward()
        if clip:
            trained = [p for p in gpt.parameters() if p.grad is not None]
            torch.nn.utils.clip_grads_with_norm_(trained, clip, gradient_norm(optimizer.param_groups))
        optimizer.step()
        yield mean.item()

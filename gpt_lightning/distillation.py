"""A loss with a teacher: a trained model whose probabilities a smaller or newer one learns from (Hinton et al. 2015).

    (1 - share) cross entropy + share x temperature^2 x KL(teacher || student)      arXiv 1503.02531, section 2

The square keeps the gradient of the second part as large at any temperature. Logits of both exist for the same chunk of
tokens only. The teacher may have any architecture of the same tokenizer; it costs its forward pass, and is part of
neither the model nor its checkpoints, so that scores and generation do without it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from gpt_lightning.checkpoint import find_checkpoint, find_tokenizer, gpt_of, read_checkpoint, trained_block
from gpt_lightning.data.characters import read_tokenizer
from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.cross_entropy import (
    IGNORED,
    ReadoutLoss,
    default_chunk_tokens,
    matmul_dtype,
    rows_at_once,
    through_cap,
)
from gpt_lightning.model.gpt import GPT
from gpt_lightning.model.loss import Loss, MicroStep
from gpt_lightning.model.readout import at_least_float32, capped


class Distillation(Loss):
    """Cross entropy, and the divergence from the probabilities that a trained model, the teacher, gives each token.

    Args:
        teacher: Its run folder or checkpoint; any architecture, the same tokenizer. Its own block it may not have.
        share: What the divergence from the teacher counts for, 0 to 1; cross entropy counts for the rest.
        temperature: Divides the logits of both before their divergence is taken; above 0.
        chunk_tokens: Tokens whose logits exist at once, at chunk_tokens x vocab_size x 8 bytes; chosen by device when
            not given.
    """

    _teacher: GPT | None

    def __init__(self, teacher: str, share: float = 0.5, temperature: float = 1.0, chunk_tokens: int | None = None):
        super().__init__(chunk_tokens)
        if not 0 <= share <= 1:
            raise ValueError(f"share {share}: expected 0 to 1")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature {temperature}: expected a finite number above 0")
        self.path, self.share, self.temperature = teacher, share, temperature
        object.__setattr__(self, "_teacher", None)  # no submodule; read when training starts, and scores need none

    @property
    def checkpoints(self) -> tuple[str, ...]:
        return (self.path,)

    def teacher(self) -> GPT:
        """The frozen teacher. Raises ValueError where there is none that can be read without running code."""
        if self._teacher is None:
            checkpoint = read_checkpoint(find_checkpoint(self.path), optimizer=False, mapped=True)
            block = trained_block(checkpoint)
            if block is not None:
                raise ValueError(f"teacher {self.path} has the block {block['class_path']}; expected the built-in one")
            object.__setattr__(self, "_teacher", gpt_of(checkpoint).requires_grad_(False))
        assert self._teacher is not None
        return self._teacher

    def check_run(self, gpt: GPTConfig, tokenizer: str | None) -> None:
        teacher = self.teacher().config
        self._check_vocabulary(gpt.vocab_size)
        if teacher.context_length < gpt.context_length:
            raise ValueError(
                f"teacher {self.path} was trained with context_length {teacher.context_length}, here it is "
                f"{gpt.context_length}; expected no more than the teacher's"
            )
        if tokenizer is not None and read_tokenizer(find_tokenizer(self.path)).sha256 != tokenizer:
            raise ValueError(
                f"teacher {self.path} has another tokenizer than the data; expected one trained on the same"
            )

    def forward(self, step: MicroStep) -> tuple[Float[Tensor, ""], Tensor]:
        """Sum over the targets that are not -100, and their number. Differentiable once, in hidden and weight."""
        hidden, targets, readout = step.hidden.flatten(0, 1), step.targets.flatten(), step.readout
        self._check_vocabulary(len(readout.weight))
        teacher = self.teacher().to(hidden.device, readout.weight.dtype)
        with torch.no_grad():
            taught = teacher.hidden_states(step.tokens, positions=step.positions)
            taught = taught.flatten(0, 1).to(matmul_dtype(hidden))
            weight = teacher.readout.weight.to(taught.dtype)
        ids, caps = targets.clamp(min=0), (readout.softcap, teacher.readout.softcap)

        def score(logits: Tensor, chunk: slice) -> Tensor:
            return self._nats_and_gradient(logits, torch.mm(taught[chunk], weight.T), ids[chunk], caps)

        n = self.chunk_tokens or default_chunk_tokens(len(weight), hidden.device)
        counted = targets != IGNORED
        return ReadoutLoss.apply(hidden, readout.weight, counted, score, n), counted.sum()

    def _nats_and_gradient(
        self, scores: Tensor, taught: Tensor, targets: Tensor, caps: tuple[float | None, float | None]
    ) -> Tensor:
        """The loss of each token; in place of the student's logits it leaves the gradient of their sum."""
        n, share, temperature, losses = rows_at_once(scores), self.share, self.temperature, []
        for logits, teacher, index in zip(scores.split(n), taught.split(n), targets[:, None].split(n), strict=True):
            dtype = at_least_float32(logits.dtype)
            y, t = capped(logits.to(dtype), caps[0]), capped(teacher.to(dtype), caps[1])
            log_p, log_p_warm = y.log_softmax(1), (y / temperature).log_softmax(1)
            log_q = (t / temperature).log_softmax(1)
            q = log_q.exp()
            divergence = (q * (log_q - log_p_warm)).sum(1)
            losses.append(share * temperature**2 * divergence - (1 - share) * log_p.gather(1, index)[:, 0])
            gradient = (log_p_warm.exp() - q).mul_(share * temperature)
            target = torch.zeros_like(q).scatter_(1, index, 1.0)
            gradient += (1 - share) * (log_p.exp() - target)
            logits.copy_(through_cap(gradient, y, caps[0]))
        return torch.cat(losses)

    def _check_vocabulary(self, vocab_size: int) -> None:
        theirs = self.teacher().config.vocab_size
        if theirs != vocab_size:
            raise ValueError(f"teacher {self.path} has vocab_size {theirs}, this model {vocab_size}; expected the same")

"""Sampling from a GPT: one token at a time, several prompts at once, with a key-value cache.

Past the context length the window slides: the last half of it is read again and generation goes on. Re-reading at
every token, as a window of fixed length would need with learned positions, costs a full forward pass per token.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from gpt_lightning.model.attention import KVCache
from gpt_lightning.model.gpt import GPT


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen."""

    max_new_tokens: int = 200
    """Tokens to generate per prompt."""
    temperature: float = 0.8
    """Logits are divided by it; 0 takes the likeliest token (greedy)."""
    top_k: int | None = None
    """Choose among the k likeliest tokens only."""
    top_p: float | None = None
    """Choose among the fewest tokens whose probabilities sum to at least p (Holtzman et al. 2019)."""
    seed: int = 0
    """Same seed, same text."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens {self.max_new_tokens}: must be 0 or more")
        if self.temperature < 0:
            raise ValueError(f"temperature {self.temperature}: must be 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k}: must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p}: must be above 0 and at most 1")


def sample(
    logits: Float[Tensor, "batch vocab"], config: SamplingConfig, generator: torch.Generator
) -> Int[Tensor, " batch"]:
    """One token per row."""
    if config.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / config.temperature
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        smallest = logits.topk(config.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if config.top_p is not None:
        ordered, order = logits.softmax(-1).sort(descending=True)
        before = ordered.cumsum(-1) - ordered  # probability of all likelier tokens
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= config.top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


@torch.inference_mode()
def generate_tokens(
    gpt: GPT, prompts: list[list[int]], config: SamplingConfig, eot_id: int | None = None
) -> Iterator[list[int | None]]:
    """Yield, step by step, the next token of every prompt; None for a row that has reached `eot_id`.

    Rows are independent of each other in greedy decoding; when sampling they share one random stream.
    Raises ValueError for an empty prompt, one beyond context_length, or ids that the model does not know.
    """
    _check_prompts(gpt, prompts)
    device = gpt.wte.weight.device
    generator = torch.Generator(device).manual_seed(config.seed)
    rows = [list(prompt) for prompt in prompts]
    finished = [False] * len(rows)
    cache: KVCache | None = None
    for _ in range(config.max_new_tokens):
        if cache is None or cache.length == gpt.config.context_length:
            if cache is not None:
                rows = [row[-max(gpt.config.context_length // 2, 1) :] for row in rows]
            cache, tokens = _start(gpt, rows)
        hidden = gpt.hidden_states(tokens, cache)[:, -1]
        tokens = sample(F.linear(hidden, gpt.readout_weight), config, generator)[:, None]
        step: list[int | None] = []
        for i, token in enumerate(tokens[:, 0].tolist()):
            finished[i] = finished[i] or token == eot_id
            rows[i].append(token)
            step.append(None if finished[i] else token)
        yield step
        if all(finished):
            return


def _start(gpt: GPT, rows: list[list[int]]) -> tuple[KVCache, Int[Tensor, "batch time"]]:
    """A fresh cache, and the rows as one tensor, padded on the left where they differ in length."""
    device = gpt.wte.weight.device
    longest = max(map(len, rows))
    n_padding = torch.tensor([longest - len(row) for row in rows], device=device)
    tokens = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
    return gpt.new_cache(n_padding if n_padding.any() else None), tokens


def _check_prompts(gpt: GPT, prompts: list[list[int]]) -> None:
    for prompt in prompts:
        if not prompt:
            raise ValueError("the prompt is empty; give at least one token")
        if len(prompt) > gpt.config.context_length:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens, more than the model's context_length "
                f"{gpt.config.context_length}; shorten it"
            )
        if max(prompt) >= gpt.config.vocab_size:
            raise ValueError(f"token {max(prompt)} is outside the model's vocab_size {gpt.config.vocab_size}")

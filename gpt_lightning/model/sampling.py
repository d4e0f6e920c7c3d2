"""Sampling from a GPT: one token at a time, several prompts at once, with a key-value cache.

Past the context length the window slides: the last half of it is read again and generation goes on. Re-reading at
every token, as a window of fixed length would need with learned positions, costs a full forward pass per token. Each
row slides when it is full itself, so that a batch writes what each of its prompts would write alone.
"""

from collections.abc import Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
    """One token per row.

    The random numbers are drawn on the CPU, so that a seed gives the same text on every device, and looked up in the
    cumulative probabilities: torch.multinomial draws one for every token there is.
    """
    if config.temperature == 0:
        return logits.argmax(-1)
    candidates: Tensor | None = None  # the tokens left to choose from, likeliest first; None: all, in order
    logits = logits.float()
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        logits, candidates = logits.topk(config.top_k)
    elif config.top_p is not None and config.top_p < 1:
        logits, candidates = logits.sort(descending=True, stable=True)
    logits = logits - logits.max(-1, keepdim=True).values  # so that a tiny temperature gives -inf, never inf - inf
    probabilities = (logits / config.temperature).softmax(-1).cpu()
    if config.top_p is not None and config.top_p < 1:
        likelier = probabilities.cumsum(-1, dtype=torch.float64) - probabilities  # sum over all likelier tokens
        probabilities = probabilities.masked_fill(likelier >= config.top_p, 0)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    drawn = torch.rand(len(logits), 1, dtype=torch.float64, generator=generator) * cumulative[:, -1:]
    choice = torch.searchsorted(cumulative, drawn, right=True).to(logits.device)
    return (choice if candidates is None else candidates.gather(1, choice))[:, 0]


@torch.inference_mode()
def generate_tokens(
    gpt: GPT, prompts: list[list[int]], config: SamplingConfig, stop_ids: Collection[int] = ()
) -> Iterator[list[int | None]]:
    """Yield, step by step, the next token of every prompt; None for a row that has reached one of `stop_ids`.

    Rows do not influence each other in greedy decoding; when sampling they share one random stream.
    Raises ValueError for an empty prompt, one beyond context_length, or ids that the model does not know.
    """
    _check_prompts(gpt, prompts)
    generator = torch.Generator().manual_seed(config.seed)
    rows = [list(prompt) for prompt in prompts]
    finished = [False] * len(rows)
    cache: KVCache | None = None
    for _ in range(config.max_new_tokens if rows else 0):
        if cache is None or cache.length == gpt.config.context_length:
            rows = [_window(row, gpt.config.context_length, done) for row, done in zip(rows, finished, strict=True)]
            cache, tokens = _start(gpt, rows)
        tokens = sample(_next_logits(gpt, tokens, cache), config, generator)[:, None]
        step: list[int | None] = []
        for i, token in enumerate(tokens[:, 0].tolist()):
            finished[i] = finished[i] or token in stop_ids
            rows[i].append(token)
            step.append(None if finished[i] else token)
        yield step
        if all(finished):
            return


def _next_logits(gpt: GPT, tokens: Int[Tensor, "batch time"], cache: KVCache) -> Float[Tensor, "batch vocab"]:
    # A compiled block would be compiled anew for every length of the cache; asking imports the compiler, so only then.
    compiled = any(getattr(block, "_compiled_call_impl", None) is not None for block in gpt.blocks)
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    with eager:
        return gpt.logits(gpt.hidden_states(tokens, cache)[:, -1])


def _window(row: list[int], context_length: int, finished: bool) -> list[int]:
    """What is read again when the cache is full: half a window of the rows that fill it, all of shorter ones."""
    if finished:
        return row[-1:]
    return row if len(row) <= context_length else row[-max(context_length // 2, 1) :]


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

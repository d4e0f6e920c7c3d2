"""Learning-rate schedules: pure functions from tokens seen to a multiplier of the peak learning rate.

    constant  ____    linear  \\      cosine  ""\\_     wsd  _____
             /               / \\             /    \\_        /     \\

All of them warm up linearly from 0. They count tokens, not steps, so that another batch size, a batch ramp or another
number of devices changes no schedule.
"""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves over a run, in tokens."""

    name: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Shape after the warm-up; wsd holds the peak and decays at the end (Hu et al. 2024, arXiv 2404.06395)."""
    warmup_tokens: int = 0
    """Tokens over which the learning rate rises linearly from 0 to its peak (GPT-3: 375 million)."""
    decay_tokens: int | None = None
    """cosine, linear: tokens at which the floor is reached, counted from the start (GPT-3: 260 billion of 300);
    the horizon when not given. wsd: length of the decay at the end; 20% of the horizon when not given."""
    min_lr_ratio: float = 0.1
    """Floor, as a fraction of the peak (GPT-3: 0.1; linear decay to 0 is often better, arXiv 2502.15938)."""

    def __post_init__(self) -> None:
        if self.warmup_tokens < 0:
            raise ValueError(f"warmup_tokens {self.warmup_tokens}: must be 0 or more")
        if self.decay_tokens is not None and self.decay_tokens < 1:
            raise ValueError(f"decay_tokens {self.decay_tokens}: must be at least 1")
        if not 0 <= self.min_lr_ratio <= 1:
            raise ValueError(f"min_lr_ratio {self.min_lr_ratio}: must be in [0, 1]")


def lr_multiplier(config: ScheduleConfig, tokens: float, max_tokens: float) -> float:
    """Fraction of the peak learning rate after `tokens` of a run of `max_tokens`."""
    if tokens < config.warmup_tokens:
        return tokens / config.warmup_tokens
    if config.name == "constant":
        return 1.0
    if config.name == "wsd":
        start = max_tokens - (config.decay_tokens or 0.2 * max_tokens)
        end = max_tokens
    else:
        start, end = config.warmup_tokens, config.decay_tokens or max_tokens
    start = max(start, config.warmup_tokens)
    progress = min(max((tokens - start) / max(end - start, 1), 0.0), 1.0)
    remaining = (1 + math.cos(math.pi * progress)) / 2 if config.name == "cosine" else 1 - progress
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * remaining

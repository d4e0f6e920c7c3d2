"""An estimate of a run's tokens per second, without training: one block and the readout, timed forward and backward.

The FLOPs per second that this small model reaches are taken to be those of the whole one. Optimizer, data, validation
and communication between devices are left out, so a run is somewhat slower. Costs well under a second.
"""

import time
from dataclasses import replace

import torch
from torch.nn import functional as F

from gpt_lightning.model.flops import flops_per_token, has_native_bf16
from gpt_lightning.model.gpt import GPT, Block, GPTConfig
from gpt_lightning.model.own_block import MakeBlock

SECONDS = 0.2
STEP_FLOPS = 4e9  # per forward and backward, about: a tenth of a second on one core
WIDEST = 768  # wider blocks take too long to build; their FLOPs per second are about the same
LONGEST = 128  # tokens
VOCABULARY = 4096  # ids at most


def estimate_tokens_per_second(config: GPTConfig, precision: str, block: MakeBlock | None = None) -> float:
    """Of one device of this machine, in the precision that `fit` would use (bf16 only where it is native)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    small = _small(config)
    with device, torch.random.fork_rng(devices=[]):
        model = GPT(small, block or Block)
        tokens = torch.randint(small.vocab_size, (_n_rows(small), small.context_length + 1))
    autocast = torch.autocast(device.type, torch.bfloat16, enabled="bf16" in precision and has_native_bf16(device.type))
    n_tokens, started = 0, 0.0
    while n_tokens == 0 or time.perf_counter() - started < SECONDS:
        with autocast:
            logits = model(tokens[:, :-1])
            loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        loss.item()  # waits for the device
        if not started:  # the first one warms up
            started = time.perf_counter()
        else:
            n_tokens += tokens[:, 1:].numel()
    flops_per_second = flops_per_token(small, block) * n_tokens / (time.perf_counter() - started)
    return flops_per_second / flops_per_token(config, block)


def _small(config: GPTConfig) -> GPTConfig:
    vocab_size, context_length = min(config.vocab_size, VOCABULARY), min(config.context_length, LONGEST)
    small = replace(config, n_layers=1, vocab_size=vocab_size, context_length=context_length)
    if config.d_model > WIDEST:
        small = replace(small, d_model=WIDEST, n_heads=WIDEST // 64, d_ff=None)
    return small


def _n_rows(config: GPTConfig) -> int:
    return min(max(int(STEP_FLOPS / (flops_per_token(config) * config.context_length)), 1), 8)

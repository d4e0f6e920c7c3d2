"""What every check needs: where it runs and how large, how time is taken, and the rows that it gives back."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpt_lightning.model.flops import flops_per_token, peak_flops
from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.loss import linear_cross_entropy
from gpt_lightning.model.parametrization import parametrization
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.optim.optimizer import RoleOptimizer, build_optimizer

PATTERNS = {"dense": ("dense",), "banded": ("dense", "banded")}
Row = dict[str, Any]


def row(what: str, value: float | str, unit: str = "", expected: str = "", ok: bool | None = None) -> Row:
    """One line of a check's table; ok: whether the value is as expected, None where that is for the reader to judge."""
    return {"what": what, "value": value, "unit": unit, "expected": expected, "ok": ok}


@dataclass(frozen=True)
class Bench:
    """Where the checks run. tiny: every check in seconds, to see that it works; its numbers mean nothing."""

    device: torch.device
    folder: Path
    tiny: bool = False
    corpus: str = "stdlib"
    minutes: float = 10.0
    found: dict[str, Any] = field(default_factory=dict)
    """What later checks take from earlier ones: tokens_per_second, micro_batch_size."""

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def compiles(self) -> bool:
        """Compiling takes a minute for each shape."""
        return not self.tiny

    def config(self, pattern: str = "banded", **settings: Any) -> GPTConfig:
        """GPT-3 125M at T 2048; tiny: two layers."""
        shape: dict[str, Any] = {"n_layers": 12, "n_heads": 12, "d_model": 768, "context_length": 2048}
        if self.tiny:
            shape = {"n_layers": 2, "n_heads": 2, "d_model": 32, "context_length": 64}
        vocab = {"vocab_size": 257 if self.tiny else 50257, "band_width": 16 if self.tiny else 128}
        return GPTConfig(**{**shape, **vocab, "attention_pattern": PATTERNS[pattern], **settings})

    def judge(self, fast_enough: bool) -> bool | None:
        """A verdict on a speed; none where it means nothing."""
        return None if self.tiny else fast_enough

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any], warmup: int = 10, timed: int = 30) -> float:
        """Mean seconds of `work`; synchronised only at both ends."""
        warmup, timed = (1, 2) if self.tiny else (warmup, timed)
        for _ in range(warmup):
            work()
        self.synchronize()
        started = time.perf_counter()
        for _ in range(timed):
            work()
        self.synchronize()
        return (time.perf_counter() - started) / timed

    def mfu(self, config: GPTConfig, tokens_per_second: float) -> float | None:
        """Share of the device's dense bf16 peak; None where that is not known."""
        peak = peak_flops(self.device)
        return None if peak is None else tokens_per_second * flops_per_token(config) / peak


class Training:
    """A model with its optimizer and a batch of random tokens, for steps in a bare loop: clipped, as in a run."""

    def __init__(self, bench: Bench, config: GPTConfig, micro_batch_size: int, how: str = "eager", bf16: bool = True):
        torch.manual_seed(0)
        self.bench, self.bf16 = bench, bf16
        self.gpt = GPT(config).to(bench.device)
        if how == "blocks":
            self.gpt.compile_blocks()
        hidden_states = self.gpt.hidden_states
        self.hidden_states = torch.compile(hidden_states, dynamic=False) if how == "whole" else hidden_states
        numbers = parametrization(config).roles
        self.optimizer: RoleOptimizer = build_optimizer(
            dict(self.gpt.named_parameters()), self.gpt.facts(), OptimConfig(lr=6e-4), numbers
        )
        self.frequencies = 1 / torch.arange(1, config.vocab_size + 1)  # Zipf's law, as of words
        self.shape = (micro_batch_size, config.context_length)
        self.new_batch()

    def new_batch(self) -> None:
        """Other tokens; the same ones for the same seed."""
        ids = torch.multinomial(self.frequencies, 2 * self.shape[0] * self.shape[1], replacement=True)
        self.tokens, self.targets = ids.view(2, *self.shape).to(self.bench.device)

    def step(self, label: Callable[[str], Any] | None = None) -> torch.Tensor:
        """One step on one micro-batch; its loss in nats per token. label: a context manager around each part."""
        label = label or _no_label
        with torch.autocast(self.bench.device.type, torch.bfloat16, enabled=self.bf16):
            with label("## forward"):
                hidden = self.hidden_states(self.tokens)
            with label("## loss"):
                loss = linear_cross_entropy(hidden, self.gpt.readout, self.targets)
        with label("## backward"):
            loss.backward()
        with label("## optimizer"):
            torch.nn.utils.clip_grad_norm_(self.gpt.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


@contextmanager
def _no_label(name: str) -> Iterator[None]:
    yield


def to_json(check: str, rows: list[Row], seconds: float, bench: Bench) -> dict[str, Any]:
    """A check's result file."""
    settings = {key: str(value) for key, value in asdict(bench).items() if key in ("device", "corpus", "minutes")}
    return {"check": check, "seconds": round(seconds, 1), "tiny": bench.tiny, **settings, "rows": rows}

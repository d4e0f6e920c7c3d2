"""How fast and how large a micro-batch is: real training steps of the stack, timed for 1, 2, 4, ... sequences.

On a GPU the sizes go up until memory ends. On a CPU they go up until throughput does not: beyond that knee, where
caches are full, a larger micro-batch only costs memory. Each trial accumulates three micro-batches, so that a
micro-step and the optimizer's part of a step are timed apart.
"""

import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from gpt_lightning.callbacks.steps import ends_step
from gpt_lightning.data.batches import micro_step_tokens
from gpt_lightning.run.stack import Stack
from gpt_lightning.tune.trials import now, train

ACCUMULATION = 3
STEPS = 4
KNEE = 0.97  # of the best throughput is as good as the best
LARGEST = 1024


@dataclass(frozen=True)
class MicroBatch:
    """One size: seconds of a micro-step and of the optimizer's update, bytes at the peak."""

    micro_batch_size: int
    micro_step_seconds: float
    update_seconds: float
    peak_bytes: int

    def tokens_per_second(self, context_length: int) -> float:
        """Of micro-steps alone."""
        return micro_step_tokens(self.micro_batch_size, context_length) / self.micro_step_seconds


class StepTimes(Callback):
    """Seconds of every micro-step, those that update apart."""

    def __init__(self) -> None:
        self.plain: list[float] = []
        self.updating: list[float] = []
        self._started = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._started = now(pl_module.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        seconds = now(pl_module.device) - self._started
        (self.updating if ends_step(trainer, batch_idx) else self.plain).append(seconds)


def measure_micro_batch(stack: Stack, micro_batch_size: int) -> MicroBatch | None:
    """Train a few steps with this micro-batch; None when it does not fit the GPU's memory."""
    times = StepTimes()
    batch_tokens = ACCUMULATION * micro_step_tokens(micro_batch_size, stack["data.context_length"])
    options = {"data.micro_batch_size": micro_batch_size, "data.batch_tokens": batch_tokens}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        options |= {"max_tokens": STEPS * batch_tokens, "batch_ramp.ramp_tokens": 0}
        run = train(stack, options, callbacks=[times]).run
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    plain = min(times.plain)  # of several the least: whatever else runs on the machine only adds
    update = max(min(times.updating) - plain, 0.0)
    return MicroBatch(micro_batch_size, plain, update, peak_bytes(run.module.device))


def measure_micro_batches(measure: Callable[[int], MicroBatch | None], limit: int | None = None) -> list[MicroBatch]:
    """1, 2, 4, ... until it no longer fits, or two doublings in a row have brought no throughput.

    limit: bytes that must not be exceeded; the next size is taken to need twice what this one does.
    """
    found: list[MicroBatch] = []
    size = 1
    while size <= LARGEST:
        done = measure(size)
        if done is None:
            break
        found.append(done)
        rates = [one.micro_batch_size / one.micro_step_seconds for one in found]
        flat = len(rates) > 2 and max(rates[-2:]) < 1.02 * max(rates[:-2])
        if limit is not None and (flat or 2 * done.peak_bytes > limit):
            break
        size *= 2
    if not found:
        raise ValueError("not even a micro-batch of one sequence fits the memory; make the model or context smaller")
    return found


def knee(sizes: list[MicroBatch]) -> MicroBatch:
    """The smallest micro-batch that is within 3% of the best throughput."""
    best = max(one.micro_batch_size / one.micro_step_seconds for one in sizes)
    return next(one for one in sizes if one.micro_batch_size / one.micro_step_seconds >= KNEE * best)


def peak_bytes(device: torch.device) -> int:
    """Of a GPU since the last reset; on a CPU of this process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_limit(accelerator: str) -> int | None:
    """Bytes of main memory that a CPU run may use; None on a GPU, whose memory tells by itself when it ends."""
    if torch.cuda.is_available() and accelerator != "cpu":
        return None
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 2**33
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024

"""What an arm costs: its steps timed in turns with the baseline's, its memory, its parameters and FLOPs.

Other work on the machine comes and goes in the minutes that whole runs take, so that their seconds tell little. Short
trials in turns, baseline, arm, arm, baseline, meet the same; of several the least disturbed counts. Each arm is paired
with the baseline, so that an arm added later changes no number of those before.
"""

import contextlib
import ctypes
import gc
import re
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from gpt_lightning.callbacks.steps import ends_step
from gpt_lightning.model.flops import flops_per_token
from gpt_lightning.run.stack import Stack
from gpt_lightning.tune.compare.arms import Arm, naming
from gpt_lightning.tune.trials import now, train

TURNS = 3
STEPS, FIRST = 12, 2  # of a trial, and of these not timed: they set things up
RESET_BYTES = 2**23  # more than that above what is resident, and the peak is an old one
LR = 1e-6  # at most, in these trials: none shall diverge, and it changes no time


@dataclass(frozen=True)
class Cost:
    """Of an arm's training. peak_bytes: None where it cannot be measured."""

    seconds_per_token: float
    peak_bytes: int | None
    n_params: int
    flops_per_token: float


class StepEnds(Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if ends_step(trainer, batch_idx):
            self.seconds.append(now(pl_module.device))


def measure_in_turns(arms: list[Arm], timed: Callable[[Stack], Cost] | None = None) -> list[dict[str, Any]]:
    """The Cost of each arm as JSON values, by trials in which the arms take turns: 1 2, 2 1, 1 2."""
    found: dict[str, list[Cost]] = {arm.name: [] for arm in arms}
    for turn in range(TURNS):
        for arm in arms if turn % 2 == 0 else reversed(arms):
            with naming(arm.name):
                found[arm.name].append((timed or measure)(arm.stack))
    return [asdict(least_disturbed(costs)) for costs in found.values()]


def least_disturbed(costs: list[Cost]) -> Cost:
    """The fastest trial's time, for whatever else runs only adds, and the middle one's memory.

    The first trial of a process also holds what torch sets up once.
    """
    peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    seconds = min(cost.seconds_per_token for cost in costs)
    return Cost(seconds, statistics.median_low(peaks) if peaks else None, costs[0].n_params, costs[0].flops_per_token)


def measure(stack: Stack) -> Cost:
    """A short trial, without validation."""
    ends, batch_tokens = StepEnds(), stack["data.batch_tokens"]
    options = {"max_tokens": STEPS * batch_tokens, "batch_ramp.ramp_tokens": 0}
    memory = PeakMemory()
    run = train(stack, {**options, "model.optim.lr": min(stack["model.optim.lr"], LR)}, callbacks=[ends]).run
    peak = memory.peak_bytes(run.module.device)
    steps = [after - before for before, after in zip(ends.seconds, ends.seconds[1:], strict=False)]
    seconds = statistics.median(steps[FIRST:] or steps or [float("nan")])
    assert run.module.gpt is not None
    n_params = sum(parameter.numel() for parameter in run.module.gpt.parameters())
    flops = flops_per_token(run.module.gpt_config, run.module.own_block)
    return Cost(seconds / batch_tokens, peak, n_params, flops)


class PeakMemory:
    """Bytes that were in use at the peak since it was made, above those in use when it was made.

    On a CPU of this process, by Linux's own count, which can be reset; what was freed before is given back first, or
    the run would use it unseen.
    """

    def __init__(self) -> None:
        self._before = self._resident = None
        gc.collect()  # the model of the trial before
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        with contextlib.suppress(OSError, AttributeError):  # no Linux, no glibc, or not allowed
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            resident = _status("VmRSS")
            if _status("VmHWM") < resident + RESET_BYTES:  # the kernel has done so
                self._resident = resident

    def peak_bytes(self, device: torch.device) -> int | None:
        """None where it cannot be measured."""
        if device.type == "cuda" and self._before is not None:
            return torch.cuda.max_memory_allocated(device) - self._before
        if device.type != "cpu" or self._resident is None:
            return None
        return _status("VmHWM") - self._resident


def _status(name: str) -> int:
    """Bytes, from the kernel's account of this process."""
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {name}")
    return int(found[1]) * 1024

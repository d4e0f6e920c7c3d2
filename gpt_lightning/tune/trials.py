"""Trials: short runs of a stack with some settings changed.

A trial is a run like any other, with the same data, schedule shape, clipping and precision, but on one device, without
logger, samples and checkpoints, and it writes nothing. Its warm-up, decay and batch ramp are scaled as its horizon is,
so that every trial has a whole schedule: stopping a long run early would favour small learning rates.
"""

import contextlib
import gc
import importlib
import platform
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ProgressBar
from lightning.pytorch.utilities.exceptions import SIGTERMException

from gpt_lightning.callbacks.metrics import MAX_SKIPPED_STEPS
from gpt_lightning.callbacks.preemption import Preempted
from gpt_lightning.callbacks.steps import ends_step
from gpt_lightning.checkpoint import checkpoint_digest
from gpt_lightning.data.batches import micro_step_tokens
from gpt_lightning.run.build import Run, build, open_corpora, supported_precision
from gpt_lightning.run.stack import Stack
from gpt_lightning.terminal import quiet

WRITERS = (Checkpoint, LearningRateMonitor, ProgressBar)
BARE: dict[str, Any] = {
    "trainer.devices": 1,
    "trainer.num_nodes": 1,
    "trainer.strategy": "auto",
    "trainer.logger": False,
    "trainer.enable_checkpointing": False,
    "trainer.enable_progress_bar": False,
    "gradient_noise.interval_steps": 0,
}
WITHOUT_EFFECT = (  # on trials
    *("samples", "val_interval_tokens", "gradient_noise", "run_dir", "if_exists", "ckpt_path"),
    *("trainer.log_every_n_steps", *(name for name in BARE if name.startswith("trainer."))),
)


@dataclass(frozen=True)
class Trial:
    """What a trial gives: the training loss of every step and the validation loss at the end, nats per token.

    `val_loss` is infinite when the loss or a gradient stopped being finite. run: module, data and Trainer as they are
    at the end.
    """

    losses: list[float]
    val_loss: float
    tokens: int
    run: Run = field(repr=False)


def identity(stack: Stack, settings: Any) -> dict[str, Any]:
    """What decides the result of a verb that trains: stack, corpora and options, but not where results go."""
    options = {key: value for key, value in asdict(settings).items() if key not in ("dir", "if_exists")}
    return {**options, **run_identity(stack)}


def run_identity(stack: Stack) -> dict[str, Any]:
    """What decides the result of a trial of this stack: its settings, corpora and the machine."""
    kept = stack.to_dict()
    for name in WITHOUT_EFFECT:
        group, _, key = name.rpartition(".")
        (kept[group] if group else kept).pop(key, None)
    trained, scored = open_corpora(stack)
    corpora = {"corpora": [corpus.identity for corpus in trained], "scored": [corpus.identity for corpus in scored]}
    found = {"stack": kept, **corpora, "machine": _machine(stack), "torch": torch.__version__}
    read = [path for path in (stack["model.init_from"], *stack.loss().checkpoints) if path]
    return {**found, "checkpoints": {path: checkpoint_digest(path) for path in read}} if read else found


def check_data(stack: Stack) -> None:
    """Raise ValueError where the corpora lack what the data settings or the loss ask for; trains nothing."""
    with quiet():
        run = build(trial_stack(stack, {}))
        run.data.setup("fit")
    sha256 = run.data.tokenizer.sha256 if run.data.tokenizer else None
    run.module.loss.check_run(run.module.gpt_config, sha256)


def _machine(stack: Stack) -> str:
    """What computes, and in which precision."""
    name = platform.processor()
    with contextlib.suppress(OSError, IndexError):  # Linux has no name in platform
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
        name = re.findall(r"^model name\s*: (.*)$", text, re.MULTILINE)[0]
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else name
    return f"{name}, {supported_precision(stack['trainer.precision'], stack['trainer.accelerator'])[0]}"


def horizon(stack: Stack, tokens: int) -> dict[str, Any]:
    """A run's length as options; warm-up, decay and batch ramp keep their share of it."""
    share, decay = tokens / stack["max_tokens"], stack["model.schedule.decay_tokens"]
    return {
        "max_tokens": tokens,
        "model.schedule.warmup_tokens": round(stack["model.schedule.warmup_tokens"] * share),
        "model.schedule.decay_tokens": decay and max(round(decay * share), 1),
        "batch_ramp.ramp_tokens": round(stack["batch_ramp.ramp_tokens"] * share),
    }


def trial_stack(stack: Stack, options: Mapping[str, Any], seed: int = 0) -> Stack:
    """The stack of a trial: bare, of another seed, its schedule as long as its horizon, with `options` over all."""
    tokens = options.get("max_tokens", stack["max_tokens"])
    other = {
        "seed_everything": stack["seed_everything"] + seed,
        "data.seed": stack["data.seed"] + seed,
        "val_interval_tokens": tokens,
        "trainer.callbacks": _quiet_callbacks(stack),
    }
    return stack.with_({**BARE, **horizon(stack, tokens), **other, **options})


def train(
    stack: Stack,
    options: Mapping[str, Any],
    seed: int = 0,
    val_tokens: int = 0,
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
) -> Trial:
    """Train a trial, on from `checkpoint` if given, and score it on the first `val_tokens` of the validation split.

    options: settings by dotted name, as {"model.optim.lr": 1e-3, "max_tokens": 200_000}.
    """
    curve = LossCurve()
    short = trial_stack(stack, options, seed)
    unit = micro_step_tokens(short["data.micro_batch_size"], short["data.context_length"])
    short = short.with_({"trainer.limit_val_batches": -(-val_tokens // unit)})
    gc.collect()  # Lightning's objects refer to each other in circles: without this, old models pile up
    with quiet():
        run = build(short, [*callbacks, curve])
        with _stopping(run.trainer):
            run.trainer.fit(run.module, run.data, ckpt_path=checkpoint, weights_only=True)
    scores = run.trainer.callback_metrics
    val_loss = float("inf") if curve.diverged else float(scores.get("val/loss", float("nan")))
    return Trial(curve.losses, val_loss, run.module.tokens_seen, run)


def score(run: Run, tokens: int, micro_batch_size: int) -> dict[str, float]:
    """val/loss and, with a tokenizer, val/bits_per_byte of a trial on the first `tokens` of the validation split.

    micro_batch_size: sequences per forward; of `tokens` so many are read as fill whole batches.
    """
    run.data.micro_batch_size = micro_batch_size
    run.trainer.limit_val_batches = -(-tokens // micro_step_tokens(micro_batch_size, run.data.context_length))
    with quiet(), _stopping(run.trainer):
        run.trainer.validate(run.module, run.data, verbose=False)
    return {key: value.item() for key, value in run.trainer.callback_metrics.items()}


def now(device: torch.device) -> float:
    """Seconds, when all that the device was told is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextlib.contextmanager
def _stopping(trainer: Trainer) -> Iterator[None]:
    """A signal ends the verb, not the trial alone."""
    try:
        yield
    except SystemExit as stop:  # Lightning's way out of a signal, with code 0 or 1
        raise stopped(stop) from None
    if trainer.received_sigterm:  # after the last batch, where Lightning no longer looks
        raise stopped(SIGTERMException())


def stopped(stop: SystemExit) -> SystemExit:
    """The exit of a verb that was stopped by a signal, after a line that says how to go on."""
    number = stop.signal if isinstance(stop, Preempted) else signal.SIGINT
    number = signal.SIGTERM if isinstance(stop, SIGTERMException) else number
    print(f"stopped by {number.name}; the same command, with --tune.if_exists resume, goes on", file=sys.stderr)
    return SystemExit(128 + number)


class LossCurve(Callback):
    """The mean training loss of every step; stops the run when it is no longer finite."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.diverged = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if ends_step(trainer, batch_idx):
            loss = pl_module.step.loss.item()
            self.losses.append(loss)
            if not loss < float("inf") or pl_module.skipped_steps.item() >= MAX_SKIPPED_STEPS:
                self.diverged = trainer.should_stop = True


def _quiet_callbacks(stack: Stack) -> list[Any] | None:
    """The stack's own callbacks without those that write, or draw a bar."""
    kept = []
    for callback in stack["trainer.callbacks"] or []:
        module, _, name = callback.class_path.rpartition(".")
        if not issubclass(getattr(importlib.import_module(module), name), WRITERS):
            kept.append(callback.as_dict())
    return kept or None

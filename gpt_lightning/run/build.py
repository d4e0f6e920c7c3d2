"""From a stack to a run: module, data and Trainer. The only place that makes them, for `fit`, trials and comparisons.

What is counted in tokens becomes what Lightning counts in steps here, and the Trainer gets the callbacks that every
run has; with a run folder, also those that write into it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, Trainer, seed_everything

from gpt_lightning.callbacks.batch_ramp import BatchRamp, check_ramp
from gpt_lightning.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from gpt_lightning.callbacks.gradient_noise import GradientNoiseScale, check_measurable, refuse_sharded
from gpt_lightning.callbacks.horizon import TokenHorizon
from gpt_lightning.callbacks.metrics import RunMetrics
from gpt_lightning.callbacks.preemption import Preemption
from gpt_lightning.callbacks.progress import TokenProgressBar
from gpt_lightning.callbacks.resume import ResumeRandomState
from gpt_lightning.callbacks.steps import WholeSteps
from gpt_lightning.checkpoint import find_checkpoint
from gpt_lightning.data.batches import accumulation, micro_step_tokens
from gpt_lightning.data.corpus import Corpus
from gpt_lightning.data.datamodule import CorpusDataModule
from gpt_lightning.data.mixture import as_mixture, open_mixture, open_val_corpora
from gpt_lightning.model.flops import has_native_bf16
from gpt_lightning.module import GPTModule
from gpt_lightning.run.checkpoint_io import AtomicCheckpointIO
from gpt_lightning.run.folder import RunDir
from gpt_lightning.run.fsdp2 import check_strategy
from gpt_lightning.run.stack import Stack, plain

DERIVED = ("max_steps", "max_epochs", "max_time", "accumulate_grad_batches", "val_check_interval")


@dataclass
class Run:
    """One run, ready to start: `trainer.fit(module, data)`. metrics: what it measures, as it goes."""

    stack: Stack
    module: GPTModule
    data: CorpusDataModule
    trainer: Trainer
    metrics: RunMetrics
    folder: RunDir | None


def build(stack: Stack, callbacks: Sequence[Callback] = (), folder: RunDir | None = None) -> Run:
    """The run of a stack, with `callbacks` beside the stack's own; with a folder, it writes its files there.

    Reads the corpus, preparing it first if it is still text. Raises ValueError for settings that make no run.
    """
    check(stack)
    seed_everything(stack["seed_everything"], verbose=False)
    try:
        parts = stack.parser.instantiate_classes(_derived(stack, folder))
        steering = _steering(parts)
        metrics = RunMetrics(
            None if folder is None else folder / "metrics.csv",
            sources=[callback.metrics for callback in steering if isinstance(callback, GradientNoiseScale)],
        )
        whole_steps = WholeSteps(ramp=parts.batch_ramp.ramp_tokens > 0)
        own = [
            *(parts.trainer.callbacks or []),
            *steering,
            *callbacks,
            whole_steps,
            TokenHorizon(),
            ResumeRandomState(),
        ]
        if folder is not None:
            parts.samples.check(parts.data.tokenizer)
            own += [metrics, *_writing(stack, folder, metrics), parts.samples]
        trainer = _trainer(parts.trainer, own)
        trainer.accumulate_grad_batches = parts.data.accumulation(trainer.world_size)
        steps = max(round(stack["val_interval_tokens"] / parts.data.batch_tokens), 1)
        trainer.val_check_interval = steps * trainer.accumulate_grad_batches
        _check_steering(stack, trainer)
    except MisconfigurationException as error:
        raise ValueError(f"the Trainer cannot be made: {error}") from error
    return Run(stack, parts.model, parts.data, trainer, metrics, folder)


def check(stack: Stack) -> None:
    """Raise ValueError for settings that make no run, before anything is read or written."""
    stack.check()
    for name in DERIVED:
        if stack[f"trainer.{name}"] != stack.parser.get_default(f"trainer.{name}"):
            raise ValueError(f"trainer.{name} follows from max_tokens, val_interval_tokens and batch_tokens; set those")
    check_strategy(stack["trainer.strategy"])
    stack.loss()
    data, ramp = stack["data"], stack["batch_ramp"]
    BatchRamp(**plain(ramp))
    GradientNoiseScale(**plain(stack["gradient_noise"]))
    accumulation(data.batch_tokens, data.micro_batch_size, data.context_length, world_size=1)
    if ramp.ramp_tokens:
        check_ramp(
            ramp.start_batch_tokens, micro_step_tokens(data.micro_batch_size, data.context_length), data.batch_tokens
        )
    if stack["model.init_from"]:
        find_checkpoint(stack["model.init_from"])


def supported_precision(precision: Any, accelerator: Any) -> tuple[Any, str]:
    """The precision to train in, and a line that says why it is not the one asked for (empty when it is).

    bf16 is about twice as fast as float32 where the processor has it, and slower where it must be emulated.
    """
    if precision not in ("bf16-mixed", "bf16", "bf16-true"):
        return precision, ""
    on_gpu = torch.cuda.is_available() and accelerator != "cpu"
    where = torch.cuda.get_device_name() if on_gpu else "this processor"
    return (
        (precision, "")
        if has_native_bf16("cuda" if on_gpu else "cpu")
        else ("32-true", f"{where} has no native bf16: training in float32 instead")
    )


def is_rank_zero() -> bool:
    """Whether this process is the first of the run; known before the Trainer is."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _derived(stack: Stack, folder: RunDir | None) -> Any:
    config = stack.config.clone()
    config.trainer.max_epochs = -1  # the end is TokenHorizon's
    config.trainer.check_val_every_n_epoch = None
    config.trainer.precision, _ = supported_precision(config.trainer.precision, config.trainer.accelerator)
    if folder is not None:
        config.samples.path = config.samples.path or str(folder / "samples.txt")
    return config


def _steering(parts: Any) -> list[Callback]:
    """The callbacks that are there only when turned on; the ramp first, for the others read what it sets."""
    ramp, noise = parts.batch_ramp, parts.gradient_noise
    return [*([ramp] if ramp.ramp_tokens else []), *([noise] if noise.interval_steps else [])]


def _writing(stack: Stack, folder: RunDir, metrics: RunMetrics) -> list[Callback]:
    callbacks: list[Callback] = [Preemption(folder.checkpoints / "last.ckpt")]
    if stack["trainer.enable_progress_bar"] is not False:
        callbacks.append(TokenProgressBar(metrics))
    if stack["trainer.enable_checkpointing"] is not False:
        best = BestCheckpoint(folder.checkpoints)
        callbacks += [best, LastCheckpoint(folder.checkpoints / "last.ckpt", best)]
    return callbacks


def _trainer(settings: Any, callbacks: list[Callback]) -> Trainer:
    plugins = settings.plugins or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    return Trainer(**{**settings, "callbacks": callbacks, "plugins": [AtomicCheckpointIO(), *plugins]})


def _check_steering(stack: Stack, trainer: Trainer) -> None:
    """Check what depends on the devices, before the run folder is touched."""
    data, ramp, noise = stack["data"], stack["batch_ramp"], stack["gradient_noise"]
    unit = micro_step_tokens(data.micro_batch_size, data.context_length, trainer.world_size)
    first = data.batch_tokens
    if ramp.ramp_tokens:
        check_ramp(ramp.start_batch_tokens, unit, data.batch_tokens)
        first = ramp.start_batch_tokens
    if noise.interval_steps:
        refuse_sharded(trainer.strategy)
        n_micro_batches = first // unit * trainer.world_size
        check_measurable(n_micro_batches, data.micro_batch_size, stack["model.compile"])


def open_corpora(stack: Stack) -> tuple[list[Corpus], list[Corpus]]:
    """The corpora that a run of this stack is trained on, and those that it is scored on."""
    reading = stack.reading()
    trained = open_mixture(as_mixture(stack["data.corpus"]), reading)
    return trained, open_val_corpora(stack["data.val_corpus"], trained, reading)

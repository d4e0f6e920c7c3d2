"""The stack of `fit` plus a tuning verb's own options, and trials: short runs of that stack with some settings changed.

A trial is a run like any other, with the same data, schedule shape, clipping and precision, but on one device, without
logger, samples and checkpoints, and it writes nothing. Its warm-up, decay and batch ramp are shortened as its horizon
is, so that every trial has a whole schedule: stopping a long run early would favour small learning rates.
"""

import gc
import platform
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import SIGTERMException

from gpt_lightning.callbacks.horizon import TokenHorizon
from gpt_lightning.callbacks.metrics import MAX_SKIPPED_STEPS
from gpt_lightning.data.mixture import as_mixture, open_mixture
from gpt_lightning.data.prepare.prepare import PrepareConfig
from gpt_lightning.run.folder import RunDir
from gpt_lightning.run.gpt_cli import GPTCLI
from gpt_lightning.terminal import quiet

WITHOUT_EFFECT = (  # on trials: of the stack, and of its trainer
    *("samples", "val_interval_tokens", "gradient_noise"),
    *("logger", "log_every_n_steps", "enable_progress_bar"),
)
WRITERS = (Checkpoint, LearningRateMonitor)
NOT_PART_OF_A_STACK = ("tune", "run_dir", "if_exists", "ckpt_path")
TRAINER = {"devices": 1, "num_nodes": 1, "strategy": "auto", "logger": False, "enable_checkpointing": False}


@dataclass(frozen=True)
class Trial:
    """What a trial gives: the training loss of every step and the validation loss at the end, nats per token.

    `val_loss` is infinite when the loss or a gradient stopped being finite.
    """

    losses: list[float]
    val_loss: float
    tokens: int


class TuneCLI(GPTCLI):
    """Parse the arguments of a tuning verb, and train trials of the stack that they describe.

    Args:
        args: Those of the command line, after the verb.
        verb: Its name, as in "tune lr".
        settings: The frozen dataclass of its own options, --tune.NAME; its docstring describes the verb.

    `settings` holds the verb's options, `config` the parsed stack, `stack` the same as YAML.
    Raises ValueError, with one line that says what to change, for everything a user can get wrong.
    """

    def __init__(self, args: Sequence[str], verb: str, settings: type):
        self._settings_class = settings
        with quiet():
            super().__init__(args, verb, description=settings.__doc__)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(self._settings_class, "tune")

    def before_instantiate_classes(self) -> None:
        self._check()
        self.settings = self._settings_class(**self.config.tune.as_dict())
        self.stack = self._stack_as_yaml()
        self.run_dir = RunDir(Path(self.settings.dir) / "trials")
        self._derive(self.config)

    def instantiate_classes(self) -> None:
        """Nothing: each trial builds its own."""

    def _stack_as_yaml(self) -> str:
        layer = yaml.safe_load(super()._stack_as_yaml())
        return yaml.safe_dump({k: v for k, v in layer.items() if k not in NOT_PART_OF_A_STACK}, sort_keys=False)

    def question(self) -> dict[str, Any]:
        """What decides the verb's result, for TuneFolder: the stack and the options, but not where results go."""
        stack = yaml.safe_load(self.stack)
        for key in WITHOUT_EFFECT:
            stack.pop(key, None)
        stack["trainer"] = {key: value for key, value in stack["trainer"].items() if key not in WITHOUT_EFFECT}
        data = self.config.data
        corpora = open_mixture(as_mixture(data.corpus), PrepareConfig(**data.prepare.as_dict()), data.corpora_dir)
        machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
        options = {key: value for key, value in asdict(self.settings).items() if key not in ("dir", "if_exists")}
        return {"stack": stack, **options, "corpora": [c.fingerprint for c in corpora], "machine": machine}

    def build(self, options: Mapping[str, Any], seed: int, callbacks: Sequence[Callback] = ()) -> None:
        """Make `trainer`, `model` and `datamodule` of the stack with `options`, by dotted name, laid over it."""
        self.trainer = self.model = self.datamodule = self.config_init = None  # type: ignore[assignment]
        gc.collect()  # Lightning's objects refer to each other in circles: without this, old models pile up
        parsed = self.config
        seed_everything((parsed.seed_everything or 0) + seed, verbose=False)
        self.config = config = parsed.clone()
        for name, value in TRAINER.items():
            config.trainer[name] = value
        config.data.seed += seed
        tokens = options.get("max_tokens", config.max_tokens)  # of the trial
        share = min(tokens / config.max_tokens, 1.0)
        schedule = config.model.schedule
        schedule.warmup_tokens = round(schedule.warmup_tokens * share)
        schedule.decay_tokens = schedule.decay_tokens and max(round(schedule.decay_tokens * share), 1)
        config.batch_ramp.ramp_tokens = round(config.batch_ramp.ramp_tokens * share)
        config.gradient_noise.interval_steps = 0
        for name, value in options.items():
            config[name] = value
        config.model.max_tokens = config.max_tokens
        config.val_interval_tokens = config.max_tokens
        self._extra = list(callbacks)
        try:
            super().instantiate_classes()
        finally:
            self.config = parsed

    def _user_callbacks(self) -> list[Callback]:
        return [callback for callback in super()._user_callbacks() if not isinstance(callback, WRITERS)]

    def _callbacks(self) -> list[Callback]:
        return [*self._extra, TokenHorizon()]

    def train(
        self,
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
        with quiet():
            self.build({**options, "samples.max_new_tokens": 0}, seed, [*callbacks, curve])
            data = self.datamodule
            self.trainer.limit_val_batches = -(-val_tokens // (data.micro_batch_size * data.context_length))
            if self.trainer.progress_bar_callback is not None:
                self.trainer.progress_bar_callback.disable()
            try:
                self.trainer.fit(self.model, self.datamodule, ckpt_path=checkpoint, weights_only=True)
            except SystemExit as stop:  # Lightning's way out of a signal, with code 0 or 1
                raise stopped(stop) from None
        scores = self.trainer.callback_metrics
        val_loss = float("inf") if curve.diverged else float(scores.get("val/loss", float("nan")))
        return Trial(curve.losses, val_loss, self.model.tokens_seen)


def stopped(stop: SystemExit) -> SystemExit:
    """The exit of a verb that was stopped by a signal, after a line that says how to go on."""
    number = signal.SIGTERM if isinstance(stop, SIGTERMException) else signal.SIGINT
    print(f"stopped by {number.name}; the same command goes on where it was", file=sys.stderr)
    return SystemExit(128 + number)


class LossCurve(Callback):
    """The mean training loss of every step; stops the run when it is no longer finite."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.diverged = False
        self._sum: torch.Tensor | float = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._sum = self._sum + outputs["loss"].detach()  # Lightning has divided it by the accumulation
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            loss, self._sum = float(self._sum), 0.0
            self.losses.append(loss)
            skipped = getattr(pl_module, "skipped_steps", None)
            if not loss < float("inf") or (skipped is not None and skipped.item() >= MAX_SKIPPED_STEPS):
                self.diverged = trainer.should_stop = True

"""The stack of YAML layers and flags, parsed by LightningCLI and turned into module, data and Trainer.

The schema is the signatures of GPTModule, CorpusDataModule and the Trainer. This file adds what is counted in tokens
and derives from it what Lightning counts in steps, and gives the Trainer the callbacks that every run has.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import torch
import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from gpt_lightning.callbacks.batch_ramp import BatchRamp, check_ramp
from gpt_lightning.callbacks.gradient_noise import GradientNoiseScale, check_measurable, refuse_sharded
from gpt_lightning.callbacks.horizon import TokenHorizon
from gpt_lightning.callbacks.last_checkpoint import LastCheckpoint
from gpt_lightning.callbacks.metrics import RunMetrics
from gpt_lightning.callbacks.preemption import Preemption
from gpt_lightning.callbacks.progress import TokenProgressBar
from gpt_lightning.callbacks.resume import ResumeRandomState
from gpt_lightning.callbacks.samples import Samples
from gpt_lightning.checkpoint import find_checkpoint
from gpt_lightning.data.batches import accumulation
from gpt_lightning.data.datamodule import CorpusDataModule
from gpt_lightning.data.mixture import MAX_TOKENS
from gpt_lightning.data.prepare.prepare import PrepareConfig
from gpt_lightning.model.flops import has_native_bf16
from gpt_lightning.model.gpt import GPTConfig
from gpt_lightning.model.loss import LossConfig
from gpt_lightning.module import GPTModule
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.optim.schedules import ScheduleConfig
from gpt_lightning.run.checkpoint_io import AtomicCheckpointIO
from gpt_lightning.run.folder import IfExists, RunDir
from gpt_lightning.run.spelling import did_you_mean, flags_last, load_counts, plain_count
from gpt_lightning.terminal import say

VERBS = {
    "fit": "Train a model: one stack of YAML layers and flags, one run folder.",
    "validate": "Score a run's checkpoint on the validation split.",
    "test": "Score a run's checkpoint on the test split (the validation split where there is none).",
    "predict": "Write the loss of every sequence of the validation split to predictions.csv.",
}
SETTINGS = {
    "model.gpt": GPTConfig,
    "model.loss": LossConfig,
    "model.optim": OptimConfig,
    "model.schedule": ScheduleConfig,
    "data.prepare": PrepareConfig,
    "batch_ramp": BatchRamp,
    "gradient_noise": GradientNoiseScale,
}
DERIVED = ("max_steps", "max_epochs", "max_time", "accumulate_grad_batches", "val_check_interval")


class GPTCLI(LightningCLI):
    """LightningCLI for GPTModule and CorpusDataModule, with budgets in tokens and a run folder."""

    def __init__(self, args: Sequence[str], verb: str = "fit", description: str | None = None):
        jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
        jsonargparse.set_loader("yaml_counts", load_counts, exceptions=(yaml.YAMLError,))
        self.verb = verb
        super().__init__(
            GPTModule,
            CorpusDataModule,
            args=list(args),
            run=False,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={
                "parser_mode": "yaml_counts",
                "exit_on_error": False,
                "allow_abbrev": False,
                "prog": f"gpt-lightning {verb}",
                "description": description or VERBS[verb],
            },
            trainer_defaults={
                "precision": "bf16-mixed",
                "gradient_clip_val": 1.0,
                "log_every_n_steps": 10,
                "logger": False,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
                "use_distributed_sampler": False,
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add = parser.add_argument
        add("--max_tokens", type=int, default=MAX_TOKENS, help="Length of the run, in tokens; 3e6 and 3_000_000 work.")
        add("--val_interval_tokens", type=int, default=10_000_000, help="Tokens between validations and checkpoints.")
        add("--run_dir", type=str | None, default=None, help="Folder of the run; runs/DATE_TIME when not given.")
        add("--if_exists", type=IfExists, default="refuse", help="What to do when run_dir already holds a run.")
        add("--ckpt_path", type=str | None, default=None, help="validate, test, predict: which one; run_dir's best.")
        parser.add_lightning_class_args(Samples, "samples")
        parser.add_lightning_class_args(BatchRamp, "batch_ramp")
        parser.add_lightning_class_args(GradientNoiseScale, "gradient_noise")
        parser.link_arguments("max_tokens", "model.max_tokens")
        parser.link_arguments("data.context_length", "model.gpt.context_length")
        parser.link_arguments("data.vocab_size", "model.gpt.vocab_size", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # not Lightning's own, which warns when called from Python
        try:
            self.config = parser.parse_args(flags_last([plain_count(argument) for argument in args]))
        except jsonargparse.ArgumentError as error:
            raise ValueError(f"{error}{did_you_mean(str(error), parser)}") from error

    def before_instantiate_classes(self) -> None:
        """Check all settings before anything is read or written, then derive Lightning's own from tokens."""
        self._check()
        config = self.config
        config.run_dir = config.run_dir or time.strftime("runs/%Y-%m-%d_%H-%M-%S")
        self.run_dir = RunDir(Path(config.run_dir))
        if self.verb == "fit" and is_rank_zero():
            self.run_dir.check(config.if_exists)
        self.stack = self._stack_as_yaml()
        self._derive(config)

    def _check(self) -> None:
        """Raise ValueError for settings that make no run."""
        config = self.config
        for key, settings in SETTINGS.items():
            settings(**config[key].as_dict())  # raises ValueError
        for name in DERIVED:
            if config.trainer[name] != self.parser.get_default(f"trainer.{name}"):
                raise ValueError(
                    f"trainer.{name} follows from max_tokens, val_interval_tokens and batch_tokens; set those"
                )
        if config.max_tokens < 1 or config.val_interval_tokens < 1:
            raise ValueError("max_tokens and val_interval_tokens must be at least 1")
        data = config.data
        accumulation(data.batch_tokens, data.micro_batch_size, data.context_length, world_size=1)
        if config.batch_ramp.ramp_tokens:
            check_ramp(config.batch_ramp.start_batch_tokens, _micro_step_tokens(data), data.batch_tokens)
        if config.model.init_from:
            find_checkpoint(config.model.init_from)

    def _stack_as_yaml(self) -> str:
        """What config.yaml holds: all settings, without what is derived, and never to overwrite when run again."""
        config = self.config.clone()
        config.if_exists = "refuse"
        return self.parser.dump(config, skip_link_targets=True, skip_unset=True)

    def _derive(self, config: Any) -> None:
        config.trainer.max_epochs = -1  # the end is TokenHorizon's
        config.trainer.check_val_every_n_epoch = None
        config.trainer.precision, why = supported_precision(config.trainer.precision, config.trainer.accelerator)
        if why and is_rank_zero():
            say(why)
        config.samples.path = config.samples.path or str(self.run_dir / "samples.txt")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        steering = self._steering()
        sources = [callback.metrics for callback in steering if isinstance(callback, GradientNoiseScale)]
        self.metrics = RunMetrics(self.run_dir / "metrics.csv", sources=sources)
        trainer_config = self.config_init.trainer
        callbacks = [*self._user_callbacks(), *steering, *self._callbacks(), self.config_init.samples]
        plugins = trainer_config.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        trainer = self._instantiate_trainer(
            {**trainer_config, "callbacks": callbacks, "plugins": [AtomicCheckpointIO(), *plugins]}, []
        )
        steps = max(round(self.config.val_interval_tokens / self.config.data.batch_tokens), 1)
        trainer.accumulate_grad_batches = self.datamodule.accumulation(trainer.world_size)
        trainer.val_check_interval = steps * trainer.accumulate_grad_batches
        self._check_steering(trainer)
        return trainer

    def _user_callbacks(self) -> list[Callback]:
        return list(self.config_init.trainer.callbacks or [])

    def _steering(self) -> list[Callback]:
        """The callbacks that are there only when turned on; the ramp first, for the others read what it sets."""
        ramp, noise = self.config_init.batch_ramp, self.config_init.gradient_noise
        found = [ramp] if ramp.ramp_tokens else []
        return [*found, noise] if noise.interval_steps else found

    def _check_steering(self, trainer: Trainer) -> None:
        """Check what depends on the devices, before the run folder is touched."""
        if self.verb != "fit":
            return
        data, ramp, noise = self.config.data, self.config.batch_ramp, self.config.gradient_noise
        micro_step_tokens, first = _micro_step_tokens(data, trainer.world_size), data.batch_tokens
        if ramp.ramp_tokens:
            check_ramp(ramp.start_batch_tokens, micro_step_tokens, data.batch_tokens)
            first = ramp.start_batch_tokens
        if noise.interval_steps:
            refuse_sharded(trainer.strategy)
            n_micro_batches = first // micro_step_tokens * trainer.world_size
            check_measurable(n_micro_batches, data.micro_batch_size, self.config.model.compile)

    def _callbacks(self) -> list[Callback]:
        folder = self.run_dir.checkpoints
        preemption = Preemption(folder / "last.ckpt")
        callbacks: list[Callback] = [self.metrics, TokenHorizon(), ResumeRandomState(), preemption]
        if self.config.trainer.enable_progress_bar is not False:
            callbacks.append(TokenProgressBar(self.metrics))
        if self.config.trainer.enable_checkpointing is not False:
            best = ModelCheckpoint(
                folder, "best", monitor="val/loss", save_on_train_epoch_end=False, enable_version_counter=False
            )
            callbacks += [best, LastCheckpoint(folder / "last.ckpt", best)]
        return callbacks


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


def _micro_step_tokens(data: Any, world_size: int = 1) -> int:
    return data.micro_batch_size * data.context_length * world_size


def is_rank_zero() -> bool:
    """Whether this process is the first of the run; known before the Trainer is."""
    return getattr(rank_zero_only, "rank", 0) == 0

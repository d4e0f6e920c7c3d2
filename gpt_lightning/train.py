"""One run, from a stack of YAML layers and flags to a run folder: the only builder of a run.

LightningCLI parses; the schema is the signatures of GPTModule, CorpusDataModule and the Trainer. This file adds what
is counted in tokens and derives from it what Lightning counts in steps, and gives every run its folder, its
checkpoints, its numbers and its clean stop.
"""

import logging
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonargparse
import torch
import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from gpt_lightning.callbacks.horizon import TokenHorizon
from gpt_lightning.callbacks.metrics import RunMetrics
from gpt_lightning.callbacks.preemption import Preemption
from gpt_lightning.callbacks.progress import TokenProgressBar
from gpt_lightning.callbacks.resume import ResumeRandomState
from gpt_lightning.callbacks.samples import Samples
from gpt_lightning.checkpoint import find_checkpoint
from gpt_lightning.checkpoint_io import AtomicCheckpointIO
from gpt_lightning.data.batches import accumulation
from gpt_lightning.data.datamodule import CorpusDataModule
from gpt_lightning.data.prepare import PrepareConfig
from gpt_lightning.model.gpt import GPTConfig
from gpt_lightning.model.loss import LossConfig
from gpt_lightning.module import GPTModule
from gpt_lightning.optim.groups import OptimConfig
from gpt_lightning.optim.schedules import ScheduleConfig
from gpt_lightning.run_dir import IfExists, RunDir
from gpt_lightning.summary import print_scores, print_start, print_summary, summarise

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
}
DERIVED = ("max_steps", "max_epochs", "max_time", "accumulate_grad_batches", "val_check_interval")


class GPTCLI(LightningCLI):
    """LightningCLI for GPTModule and CorpusDataModule, with budgets in tokens and a run folder."""

    def __init__(self, args: Sequence[str], verb: str = "fit"):
        jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
        jsonargparse.set_loader("yaml_counts", _load_counts, exceptions=(yaml.YAMLError,), json_superset=False)
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
                "prog": f"gpt-lightning {verb}",
                "description": VERBS[verb],
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
        add("--max_tokens", type=int, default=300_000_000, help="Length of the run, in tokens; 3e6 and 3_000_000 work.")
        add("--val_interval_tokens", type=int, default=10_000_000, help="Tokens between validations and checkpoints.")
        add("--run_dir", type=str | None, default=None, help="Folder of the run; runs/DATE_TIME when not given.")
        add("--if_exists", type=IfExists, default="refuse", help="What to do when run_dir already holds a run.")
        add("--ckpt_path", type=str | None, default=None, help="validate, test, predict: which one; run_dir's best.")
        parser.add_lightning_class_args(Samples, "samples")
        parser.link_arguments("max_tokens", "model.max_tokens")
        parser.link_arguments("data.context_length", "model.gpt.context_length")
        parser.link_arguments("data.vocab_size", "model.gpt.vocab_size", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)  # without Lightning's warning when called from Python

    def before_instantiate_classes(self) -> None:
        config = self.config
        for name in DERIVED:
            if config.trainer[name] != self.parser.get_default(f"trainer.{name}"):
                raise ValueError(
                    f"trainer.{name} follows from max_tokens, val_interval_tokens and batch_tokens; set those"
                )
        if config.max_tokens < 1 or config.val_interval_tokens < 1:
            raise ValueError("max_tokens and val_interval_tokens must be at least 1")
        config.trainer.max_steps = math.ceil(config.max_tokens / config.data.batch_tokens)
        config.trainer.max_epochs = -1
        config.trainer.check_val_every_n_epoch = None
        config.run_dir = config.run_dir or time.strftime("runs/%Y-%m-%d_%H-%M-%S")
        precision, why = supported_precision(config.trainer.precision, config.trainer.accelerator)
        if why:
            say(why)
        config.trainer.precision = precision
        self.run_dir = RunDir(Path(config.run_dir))
        if self.verb == "fit" and is_rank_zero():
            self.run_dir.check(config.if_exists)
        config.samples.path = config.samples.path or str(self.run_dir / "samples.txt")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        self.metrics = RunMetrics(self.run_dir / "metrics.csv")
        trainer_config = self.config_init.trainer
        callbacks = [*(trainer_config.callbacks or []), *self._callbacks(), self.config_init.samples]
        plugins = trainer_config.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        trainer = self._instantiate_trainer(
            {**trainer_config, "callbacks": callbacks, "plugins": [AtomicCheckpointIO(), *plugins]}, []
        )
        steps = max(round(self.config.val_interval_tokens / self.config.data.batch_tokens), 1)
        trainer.accumulate_grad_batches = self.datamodule.accumulation(trainer.world_size)
        trainer.val_check_interval = steps * trainer.accumulate_grad_batches
        return trainer

    def _callbacks(self) -> list[Callback]:
        folder = self.run_dir.checkpoints
        at_validation: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
        at_validation["save_on_train_epoch_end"] = False
        preemption = Preemption(folder / "last.ckpt")
        callbacks: list[Callback] = [self.metrics, TokenHorizon(), ResumeRandomState(), preemption]
        if self.config.trainer.enable_progress_bar is not False:
            callbacks.append(TokenProgressBar(self.metrics))
        if self.config.trainer.enable_checkpointing is not False:
            callbacks.append(ModelCheckpoint(filename="best", monitor="val/loss", **at_validation))
            callbacks.append(ModelCheckpoint(filename="last", every_n_epochs=1, **at_validation))
        return callbacks


def run(args: Sequence[str], verb: str = "fit") -> dict[str, Any]:
    """Parse, build and run; the metrics, and for `fit` the summary of the run, with its `run_dir`.

    Raises ValueError, with one line that says what to change, for everything a user can get wrong.
    """
    with quiet():
        cli = GPTCLI(args, verb)
        try:
            return _fit(cli) if verb == "fit" else _evaluate(cli, verb)
        finally:
            cli.run_dir.release()


def _fit(cli: GPTCLI) -> dict[str, Any]:
    trainer, run_dir = cli.trainer, cli.run_dir
    checkpoint = run_dir.resume_checkpoint() if cli.config.if_exists == "resume" else None
    if is_rank_zero():
        run_dir.claim(cli.config.if_exists)
        config = cli.parser.dump(cli.config, skip_link_targets=True, skip_none=True)
        run_dir.write_text("config.yaml", config)
        if cli.datamodule.tokenizer is not None:
            cli.datamodule.tokenizer.save(run_dir / "tokenizer.json")
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(config))
    print_start(trainer, cli.model, cli.datamodule, run_dir.path, checkpoint)
    started = time.perf_counter()
    trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    summary = summarise(cli.model, cli.datamodule, cli.metrics.latest, time.perf_counter() - started)
    summary["run_dir"] = str(run_dir.path)
    if trainer.is_global_zero:
        run_dir.write_summary(summary)
        print_summary(summary)
    return summary


def _evaluate(cli: GPTCLI, verb: str) -> dict[str, Any]:
    checkpoint = find_checkpoint(cli.config.ckpt_path or cli.run_dir.path)
    method = {"validate": cli.trainer.validate, "test": cli.trainer.test}.get(verb)
    if method is not None:
        (scores,) = method(cli.model, cli.datamodule, ckpt_path=checkpoint, verbose=False, weights_only=True)
        print_scores(dict(scores), checkpoint)
        return dict(scores)
    batches = cli.trainer.predict(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    losses = torch.cat(list(batches)).tolist()  # type: ignore[arg-type]
    rows = [f"{i},{loss}" for i, loss in enumerate(losses) if not math.isnan(loss)]
    cli.run_dir.write_text("predictions.csv", "\n".join(["sequence,loss", *rows]) + "\n")
    say(f"loss of {len(rows)} sequences, in nats per token: {cli.run_dir / 'predictions.csv'}")
    return {"predictions": str(cli.run_dir / "predictions.csv"), "n_sequences": len(rows)}


def supported_precision(precision: Any, accelerator: Any) -> tuple[Any, str]:
    """The precision to train in, and a line that says why it is not the one asked for (empty when it is).

    bf16 is about twice as fast as float32 where the processor has it, and slower where it must be emulated.
    """
    if precision not in ("bf16-mixed", "bf16", "bf16-true"):
        return precision, ""
    if torch.cuda.is_available() and accelerator != "cpu":
        native, where = torch.cuda.is_bf16_supported(including_emulation=False), torch.cuda.get_device_name()
    else:
        capabilities = torch.cpu.get_capabilities()
        names = ("avx512_bf16", "amx_bf16", "bf16")
        native, where = any(capabilities.get(name) for name in names), "this processor"
    return (precision, "") if native else ("32-true", f"{where} has no native bf16: training in float32 instead")


def is_rank_zero() -> bool:
    """Whether this process is the first of the run; known before the Trainer is."""
    return getattr(rank_zero_only, "rank", 0) == 0


@rank_zero_only
def say(line: str) -> None:
    """One line for the user, from one process."""
    print(line, flush=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's and torch's tips and known deprecations off the screen; problems still show."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for pattern in (
            ".*does not have many workers.*",  # memory maps are faster without workers (data/datamodule.py)
            ".*LeafSpec.*",  # torch 2.13 about its own pytree
            ".*Checkpoint directory .* exists and is not empty.*",  # the run folder guards that
            ".*Trying to infer the `batch_size`.*",
            ".*Precision bf16-mixed is not supported by the model summary.*",
            ".*The `lr_scheduler.step\\(\\)`.*",
            ".*isinstance\\(treespec.*",
        ):
            warnings.filterwarnings("ignore", message=pattern)
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def _load_counts(text: str) -> Any:
    """YAML in which 3e6 is the integer 3000000, so that budgets can be written as people say them."""
    return _counts(jsonargparse.get_loader("yaml")(text))


def _counts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _counts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_counts(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) >= 1000 else value


def fit_main(arguments: list[str]) -> int:
    """The verb `fit`."""
    return _main(arguments, "fit")


def validate_main(arguments: list[str]) -> int:
    """The verb `validate`."""
    return _main(arguments, "validate")


def test_main(arguments: list[str]) -> int:
    """The verb `test`."""
    return _main(arguments, "test")


def predict_main(arguments: list[str]) -> int:
    """The verb `predict`."""
    return _main(arguments, "predict")


def _main(arguments: list[str], verb: str) -> int:
    try:
        run(arguments, verb)
    except jsonargparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    return 0

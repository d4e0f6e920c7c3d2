"""Which settings a stack has, and of what type: the schema of YAML overlays and flags, as a jsonargparse parser.

The schema is the signatures of GPTModule, CorpusDataModule and the Trainer, as LightningCLI has it. Importing Lightning
takes 5 seconds, so a verb that only looks at a stack reads it by `light_parser`, which holds what can be known without:
the same keys, types, defaults and checks, by the same program (stack.py); what it leaves out passes by unread.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import jsonargparse

from gpt_lightning.data import mixture
from gpt_lightning.data.examples.kinds import ExamplesConfig
from gpt_lightning.data.prepare.prepare import PrepareConfig
from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.trainable import TrainableConfig
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.optim.rescale import LRRule
from gpt_lightning.optim.schedules import ScheduleConfig

IfExists = Literal["refuse", "resume", "overwrite"]
PRECISION = "bf16-mixed"
TRAINER_DEFAULTS = {
    "precision": PRECISION,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    "logger": False,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}
UNREAD = ("samples", "gradient_noise")  # groups that light_parser leaves out


@dataclass(frozen=True)
class Model:
    """GPTModule, as far as it is known without torch."""

    gpt: GPTConfig = field(default_factory=GPTConfig)
    block: Any = None
    loss: Any = None
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    compile: bool = False
    init_from: str | None = None
    trainable: TrainableConfig = field(default_factory=TrainableConfig)


@dataclass(frozen=True)
class Data:
    """CorpusDataModule."""

    corpus: str | dict[str, float] = mixture.CORPUS
    context_length: int = mixture.CONTEXT_LENGTH
    micro_batch_size: int = mixture.MICRO_BATCH_SIZE
    batch_tokens: int = mixture.BATCH_TOKENS
    seed: int = 0
    val_corpus: str | None = None
    document_mask: bool = False
    fim_rate: float = 0.0
    fim_spm_rate: float = 0.5
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    examples: ExamplesConfig = field(default_factory=ExamplesConfig)
    corpora_dir: str = mixture.CORPORA_DIR
    base: str | None = None


@dataclass(frozen=True)
class Devices:
    """What is asked of the Trainer's settings before there is a Trainer."""

    accelerator: Any = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    precision: Any = PRECISION


@dataclass(frozen=True)
class Ramp:
    """BatchRamp."""

    start_batch_tokens: int = 32_768
    ramp_tokens: int = 0
    lr_rule: LRRule = "none"
    scale_beta2: bool = False


def light_parser(**kwargs: Any) -> jsonargparse.ArgumentParser:
    """The settings that are known without Lightning."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, **kwargs)
    _add_run_settings(parser)
    for key, settings in {"model": Model, "data": Data, "trainer": Devices, "batch_ramp": Ramp}.items():
        parser.add_class_arguments(settings, key, sub_configs=True)
    parser.link_arguments("data.context_length", "model.gpt.context_length")
    parser.link_arguments("model.init_from", "data.base")
    return parser


def full_parser(**kwargs: Any) -> jsonargparse.ArgumentParser:
    """All settings of a run; imports Lightning, and the losses, which model.loss then finds by their short names."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.cli import LightningArgumentParser

    import gpt_lightning.distillation
    import gpt_lightning.model.multi_token  # noqa: F401
    from gpt_lightning.callbacks.batch_ramp import BatchRamp
    from gpt_lightning.callbacks.gradient_noise import GradientNoiseScale
    from gpt_lightning.callbacks.samples import Samples
    from gpt_lightning.data.datamodule import CorpusDataModule
    from gpt_lightning.module import GPTModule

    parser = LightningArgumentParser(exit_on_error=False, allow_abbrev=False, **kwargs)
    _add_run_settings(parser)
    settings: dict[str, Any] = {"trainer": Trainer, "model": GPTModule, "data": CorpusDataModule, "samples": Samples}
    settings |= {"batch_ramp": BatchRamp, "gradient_noise": GradientNoiseScale}
    for key, kind in settings.items():
        parser.add_lightning_class_args(kind, key)
    parser.set_defaults({"model.loss": {"class_path": "gpt_lightning.model.loss.CrossEntropy"}})
    parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
    parser.link_arguments("max_tokens", "model.max_tokens")
    parser.link_arguments("data.context_length", "model.gpt.context_length")
    parser.link_arguments("model.init_from", "data.base")
    parser.link_arguments("data.vocab_size", "model.gpt.vocab_size", apply_on="instantiate")
    parser.link_arguments("data.labels", "model.gpt.n_labels", compute_fn=len, apply_on="instantiate")
    return parser


def _add_run_settings(parser: jsonargparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-c", "--config", action="config", help="A YAML overlay; later ones win, flags win over all.")
    add("--seed_everything", type=int, default=0, help="Of the initial weights, dropout and samples.")
    add(
        "--max_tokens",
        type=int,
        default=mixture.MAX_TOKENS,
        help="Length of the run, in tokens; 3e6 and 3_000_000 work.",
    )
    add("--val_interval_tokens", type=int, default=10_000_000, help="Tokens between validations and checkpoints.")
    add("--run_dir", type=str | None, default=None, help="Folder of the run; runs/DATE_TIME when not given.")
    add("--if_exists", type=IfExists, default="refuse", help="What to do when run_dir already holds a run.")
    add("--ckpt_path", type=str | None, default=None, help="validate, test, predict: which one; run_dir's best.")

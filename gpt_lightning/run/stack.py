"""The stack as a value: YAML overlays and flags, read, merged and checked; later overlays win, flags win over all.

    read_stack(arguments, "fit")          -> Stack       what the user wrote, with every default filled in
    stack.with_({"model.optim.lr": 1e-3}) -> Stack       another one; the first stays as it was
    build(stack)                          -> Run         (build.py)

One program reads for every verb. With light=True it does so without Lightning, which takes longer to import than a look
at a stack may last; a Stack that was read so cannot be built.
"""

import json
import os
import re
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse
import yaml
from jsonargparse import Namespace

from gpt_lightning.data.examples.kinds import ExamplesConfig
from gpt_lightning.data.mixture import Reading
from gpt_lightning.data.prepare.prepare import PrepareConfig
from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.trainable import TrainableConfig
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.optim.schedules import ScheduleConfig
from gpt_lightning.run.base import base_overlay
from gpt_lightning.run.light import load_light, without_unread
from gpt_lightning.run.schema import full_parser, light_parser
from gpt_lightning.run.spelling import flags, in_words, load_counts, overlays_first

if TYPE_CHECKING:
    from gpt_lightning.model.loss import Loss
    from gpt_lightning.model.own_block import MakeBlock

LIGHT = {
    "model.gpt": GPTConfig,
    "model.trainable": TrainableConfig,
    "model.optim": OptimConfig,
    "model.schedule": ScheduleConfig,
    "data.prepare": PrepareConfig,
    "data.examples": ExamplesConfig,
}
COUNTS = ("max_tokens", "val_interval_tokens", "data.context_length", "data.micro_batch_size", "data.batch_tokens")
NO_SETTINGS = ("config", "tune")  # parsed, but no settings of a run
ABSENT = object()


@dataclass(frozen=True, eq=False)
class Stack:
    """All settings of a run. `stack["model.optim.lr"]` is one of them, by dotted name.

    flags: names of those that were given as flags.
    """

    config: Any
    parser: jsonargparse.ArgumentParser
    flags: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> Any:
        return self.config[name]

    def with_(self, options: Mapping[str, Any]) -> "Stack":
        """The stack with `options`, values by dotted name, laid over it. Raises ValueError where they do not fit."""
        return self.over(nested(options))

    def over(self, *overlays: Mapping[str, Any]) -> "Stack":
        """The stack with nested settings, as YAML overlays have them, laid over it in order; checked at the end.

        Raises ValueError as `with_`.
        """
        config = self.config
        for overlay in overlays:
            config = _parse(partial(self.parser.parse_object, dict(overlay), config.clone()), self.parser)
        stack = replace(self, config=config)
        stack.check()
        return stack

    def check(self) -> None:
        """Raise ValueError for settings that make no run."""
        for name in COUNTS:
            if self[name] < 1:
                raise ValueError(f"{name} is {self[name]}; expected at least 1")
        for name in LIGHT:
            self.settings(name)

    def settings(self, name: str) -> Any:
        """The frozen dataclass of a group such as "model.optim"; it checks itself."""
        return LIGHT[name](**plain(self[name]))

    def reading(self) -> Reading:
        """How its corpora are opened, prepared first where they are text or examples."""
        prepare, examples = self.settings("data.prepare"), self.settings("data.examples")
        data = self["data"]
        return Reading(prepare, data.corpora_dir, examples, data.context_length, self["model.init_from"])

    def own_block(self) -> "MakeBlock | None":
        """The user's own block, imported, with its settings; None for the built-in one."""
        named = self["model.block"]
        if named is None:
            return None
        from gpt_lightning.model.own_block import import_block, own_block

        spec: dict[str, Any] = {"class_path": named} if isinstance(named, str) else Namespace(named).as_dict()
        return own_block(partial(import_block(spec["class_path"]), **spec.get("init_args", {})))

    def loss(self) -> "Loss":
        """The training loss, built-in or the user's own, with its settings; reads no corpus."""
        from gpt_lightning.model.loss import Loss
        from gpt_lightning.model.own_loss import check_loss

        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_argument("--loss", type=Loss)
        named = {"loss": Namespace(self["model.loss"]).as_dict()}
        config = _parse(lambda: parser.parse_object(named), parser)
        return check_loss(parser.instantiate_classes(config).loss)

    @property
    def n_devices(self) -> int:
        """Devices of all nodes, from the Trainer's settings: a number, a list of devices, or auto."""
        devices, trainer = self["trainer.devices"], self["trainer"]
        if isinstance(devices, str) and devices.strip("-").isdigit():
            devices = int(devices)
        if isinstance(devices, list):
            count = len(devices)
        elif isinstance(devices, int) and devices > 0:
            count = devices
        elif devices in ("auto", -1, None):
            on_gpu = trainer.accelerator not in ("cpu", "mps") and Path("/proc/driver/nvidia").exists()
            count = max(_n_gpus(), 1) if on_gpu else 1
        else:
            count = len(str(devices).split(","))
        return count * int(trainer.num_nodes)

    def to_dict(self) -> dict[str, Any]:
        """Every setting but what follows from others, nested, as YAML has it."""
        kept = yaml.safe_load(self.parser.dump(self.config, skip_link_targets=True, skip_unset=True))
        return {key: value for key, value in kept.items() if key not in NO_SETTINGS}

    def overlay_to(self, other: "Stack") -> dict[str, Any]:
        """The overlay that makes `other` of this stack: every setting that differs, whole, nested as in YAML."""
        here, there = self.flat(), other.flat()
        return nested({name: value for name, value in there.items() if here.get(name, ABSENT) != value})

    def flat(self) -> dict[str, Any]:
        """Settings by dotted name; one that is a mapping, such as lr_ratios or a loss with its settings, whole."""
        names = {action.dest for action in self.parser._actions if not action.dest.endswith(".help")}
        groups = {name[: i.start()] for name in names for i in re.finditer(r"\.", name)}
        return flatten(self.to_dict(), groups=groups)

    def to_yaml(self) -> str:
        """The overlay that, alone, is this stack; run again, it does not overwrite."""
        return yaml.safe_dump({**self.to_dict(), "if_exists": "refuse"}, sort_keys=False)


def read_stack(
    arguments: Sequence[str], verb: str, about: str = "", settings: type | None = None, light: bool = False
) -> tuple[Stack, Any]:
    """The stack that the arguments of a verb describe, and the verb's own settings, --tune.NAME, if it has a class.

    about: the first line of --help, which prints and exits. light: without Lightning.
    Raises ValueError, with one line that says what to change.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a block or loss of the user's own is found in the current folder
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True, instantiate_subclass_spec_in_any=False)
    mode = "stack_read_light" if light else "stack"
    jsonargparse.set_loader(mode, load_light if light else load_counts, exceptions=(yaml.YAMLError,))
    parser = (light_parser if light else full_parser)(
        prog=f"gpt-lightning {verb}", description=about or None, parser_mode=mode
    )
    if settings is not None:
        parser.add_class_arguments(settings, "tune")
    words = overlays_first(arguments, parser)
    given = frozenset(key[2:] for key, _ in flags(words))
    words = without_unread(words) if light else words
    config = _parse(lambda: parser.parse_args(words), parser)
    if base := base_overlay(config["model.init_from"]) if config["model.init_from"] else None:
        config = _parse(lambda: parser.parse_args([f"--config={json.dumps(base)}", *words]), parser)
    stack = Stack(config, parser, given)
    stack.check()
    return stack, settings(**plain(config.tune)) if settings is not None else None


def plain(namespace: Any) -> dict[str, Any]:
    """A group's settings by name; jsonargparse also keeps which file they came from."""
    return {name: value for name, value in namespace.as_dict().items() if name != "__path__"}


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted name as nested keys."""
    settings: dict[str, Any] = {}
    for name, value in options.items():
        *parents, last = name.split(".")
        inner = settings
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return settings


def flatten(values: Mapping[str, Any], prefix: str = "", groups: Collection[str] | None = None) -> dict[str, Any]:
    """Nested keys as dotted names; an empty mapping is a value. groups: the names to look into, where not all."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        is_group = isinstance(value, dict) and value and (groups is None or name in groups)
        flat |= flatten(value, f"{name}.", groups) if is_group else {name: value}
    return flat


def _parse(parse: Any, parser: jsonargparse.ArgumentParser) -> Any:
    try:
        return parse()
    except (jsonargparse.ArgumentError, TypeError, KeyError) as error:
        raise ValueError(in_words(str(error), parser)) from error
    except (NameError, AttributeError, ImportError, SyntaxError) as error:  # in a module of the user's own
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(f"{where.filename}, line {where.lineno}: {type(error).__name__}: {error}") from error


def _n_gpus() -> int:
    import torch

    return torch.cuda.device_count()

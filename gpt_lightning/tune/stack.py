"""The stack of `fit`, read without Lightning: YAML layers and dotted flags merged, later wins, flags over all.

Not a second config system: only the keys in `KEYS` are read, each with the class or default that `fit` itself uses;
the Trainer's and other settings pass by unread. It exists because importing Lightning takes longer than the answer.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from gpt_lightning.data import mixture
from gpt_lightning.data.prepare.prepare import PrepareConfig
from gpt_lightning.model.config import GPTConfig
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.optim.schedules import ScheduleConfig
from gpt_lightning.run.spelling import load_counts

GROUPS = {
    "model.gpt": GPTConfig,
    "model.optim": OptimConfig,
    "model.schedule": ScheduleConfig,
    "data.prepare": PrepareConfig,
}
MAPPINGS = ("data.corpus", "model.optim.lr_ratios")  # values that are mappings themselves
KEYS: dict[str, tuple[Any, Any]] = {
    "data.corpus": (str | dict[str, float], mixture.CORPUS),
    "data.context_length": (int, mixture.CONTEXT_LENGTH),
    "data.micro_batch_size": (int, mixture.MICRO_BATCH_SIZE),
    "data.batch_tokens": (int, mixture.BATCH_TOKENS),
    "data.corpora_dir": (str, mixture.CORPORA_DIR),
    "max_tokens": (int, mixture.MAX_TOKENS),
}
ALIKE = 0.65  # a key elsewhere that is this similar to one of ours is taken for a slip of the pen


@dataclass(frozen=True)
class Stack:
    """What is known of a run before it starts; the vocabulary in `gpt` is still to come from the corpus.

    trainer: the Trainer's settings, unchecked. flags: the keys given as flags. given: all keys that were given and
    are read here, flat.
    """

    gpt: GPTConfig
    optim: OptimConfig
    prepare: PrepareConfig
    mixture: dict[str, float]
    corpora_dir: str
    micro_batch_size: int
    batch_tokens: int
    max_tokens: int
    trainer: Mapping[str, Any]
    batch_ramp: Mapping[str, Any]
    flags: frozenset[str]
    given: Mapping[str, Any]


def read_stack(arguments: Sequence[str], options: type, verb: str) -> tuple[Stack, Any]:
    """The stack, and the verb's own options, a dataclass under `--tune.`. Raises ValueError naming the bad key.

    SystemExit after printing the help, when that is asked for.
    """
    parser = _parser(options, verb)
    if any(argument in ("-h", "--help") for argument in arguments):
        parser.print_help()
        raise SystemExit(0)
    layers, flags = _split(arguments)
    merged: dict[str, Any] = {}
    for path in layers:
        _merge(merged, _load(path))
    for key, value in flags.items():
        _assign(merged, key, value)
    ours = _ours(merged, parser)
    try:
        parsed = parser.parse_object(ours)
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise ValueError(str(error)) from error
    given = _flat({key: value for key, value in ours.items() if key != "tune"})
    return _stack(parsed, merged, frozenset(flags), given), options(**parsed.tune.as_dict())


def _stack(parsed: Any, merged: Mapping[str, Any], flags: frozenset[str], given: Mapping[str, Any]) -> Stack:
    settings = {name: group(**parsed[name].as_dict()) for name, group in GROUPS.items()}  # each checks itself
    data = parsed.data
    counts = {key: data[key] for key in ("context_length", "micro_batch_size", "batch_tokens")}
    for name, value in {**counts, "max_tokens": parsed.max_tokens}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    return Stack(
        gpt=replace(settings["model.gpt"], context_length=data.context_length),
        optim=settings["model.optim"],
        prepare=settings["data.prepare"],
        mixture=mixture.as_mixture(data.corpus),
        corpora_dir=data.corpora_dir,
        micro_batch_size=data.micro_batch_size,
        batch_tokens=data.batch_tokens,
        max_tokens=parsed.max_tokens,
        trainer=merged.get("trainer") or {},
        batch_ramp=merged.get("batch_ramp") or {},
        flags=flags,
        given=given,
    )


def _parser(options: type, verb: str) -> jsonargparse.ArgumentParser:
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=f"gpt-lightning {verb}",
        description=f"{options.__doc__} Takes the stack that fit takes: --config LAYER.yaml, and flags.",
        exit_on_error=False,
    )
    parser.add_class_arguments(options, "tune")
    for key, (kind, default) in KEYS.items():
        parser.add_argument(f"--{key}", type=kind, default=default)
    for key, group in GROUPS.items():
        parser.add_class_arguments(group, key)
    return parser


def _split(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Paths of the layers, and the flags by dotted key: --key=value, --key value, or --key alone."""
    layers, flags, rest = [], {}, list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ValueError(f"unexpected {word!r}; options are written --key value")
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        if key == "config":
            layers.append(value)
        else:
            flags[key] = _flag(value)
    return layers, flags


def _load(path: str) -> dict[str, Any]:
    try:
        layer = _yaml(Path(path).read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    if not isinstance(layer, dict | None):
        raise ValueError(f"{path} is not a YAML layer; expected keys such as model, data, max_tokens")
    return layer or {}


def _flag(text: str) -> Any:
    try:
        return load_counts(text)
    except yaml.YAMLError:  # a glob, say: as for `fit`, what is not YAML is text
        return text


def _yaml(text: str, where: str) -> Any:
    try:
        return load_counts(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {error}") from error


def _merge(into: dict[str, Any], layer: Mapping[str, Any], prefix: str = "") -> None:
    """Lay a layer over others; a mapping that is one value, as that of corpora to weights, replaces what was there."""
    for key, value in layer.items():
        inner = isinstance(value, dict) and isinstance(into.get(key), dict) and prefix + key not in MAPPINGS
        if inner:
            _merge(into[key], value, f"{prefix}{key}.")
        else:
            into[key] = value


def _assign(into: dict[str, Any], key: str, value: Any) -> None:
    """Set a flag's value; `lr_ratios.hidden` sets one entry of a mapping, `lr_ratios` all of it."""
    *parents, last = key.split(".")
    for name in parents:
        if not isinstance(into.get(name), dict):
            into[name] = {}
        into = into[name]
    into[last] = value


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict) and prefix + key not in MAPPINGS
        flat |= _flat(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat


def _ours(merged: Mapping[str, Any], parser: jsonargparse.ArgumentParser) -> dict[str, Any]:
    """The keys that are read here. Raises ValueError for one that looks like a misspelling of them."""
    known = {action.dest for action in parser._actions} - {"help"}
    ours: dict[str, Any] = {}
    for key, value in _flat(merged).items():
        if key in known:
            _assign(ours, key, value)
        else:
            _check_spelling(key, known)
    return ours


def _check_spelling(key: str, known: set[str]) -> None:
    """Every key below ours has to be known; elsewhere only what is much like one of ours is refused."""
    parts = key.split(".")
    for n, name in enumerate(parts):
        room = "".join(f"{part}." for part in parts[:n])
        names = {other.removeprefix(room).split(".")[0] for other in known if other.startswith(room)}
        if name not in names:
            strict = room.startswith((*[f"{group}." for group in GROUPS], "tune."))
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0 if strict else ALIKE)
            if nearest:
                raise ValueError(f"there is no key {room}{name}; did you mean {room}{nearest[0]}?")
            return


def n_devices(trainer: Mapping[str, Any]) -> int:
    """Devices of all nodes, from the Trainer's settings: a number, a list of devices, or auto."""
    devices, n_nodes = trainer.get("devices", "auto"), trainer.get("num_nodes", 1)
    if isinstance(devices, str) and devices.strip("-").isdigit():
        devices = int(devices)
    if isinstance(devices, list):
        count = len(devices)
    elif isinstance(devices, int) and devices > 0:
        count = devices
    elif devices in ("auto", -1, None):
        on_gpu = trainer.get("accelerator", "auto") not in ("cpu", "mps") and Path("/proc/driver/nvidia").exists()
        count = max(_n_gpus(), 1) if on_gpu else 1
    else:
        count = len(str(devices).split(","))
    return count * int(n_nodes)


def _n_gpus() -> int:
    import torch

    return torch.cuda.device_count()

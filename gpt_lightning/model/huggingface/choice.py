"""Which family holds a model."""

import json
from collections.abc import Iterable
from typing import Any

from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.huggingface.family import Family, shortest
from gpt_lightning.model.huggingface.gpt2 import GPT2, GPT_NEO
from gpt_lightning.model.huggingface.gpt_neox import GPT_NEOX
from gpt_lightning.model.huggingface.llama import LLAMA, MINISTRAL, MISTRAL, QWEN3
from gpt_lightning.model.huggingface.nanochat import NANOCHAT

WRITTEN = (GPT2, GPT_NEO, LLAMA, QWEN3, GPT_NEOX, MISTRAL, MINISTRAL)  # the first that holds a model is taken
READ = {family.model_type: family for family in (*WRITTEN, NANOCHAT)}


def family_of(config: GPTConfig) -> Family:
    """The family that a model is written as.

    Raises ValueError naming the option that no family has, or else the least that would have to change.
    """
    said = _structure(config)
    lacks = {family: [name for name in said if not _holds(family, name, said[name])] for family in WRITTEN}
    for family, options in lacks.items():
        if not options:
            return family
    considered = f"considered: {', '.join(family.name for family in WRITTEN)}"
    for name, value in said.items():
        if all(name in options for options in lacks.values()):
            held = dict.fromkeys(held for family in WRITTEN for held in _held(family, name))
            raise ValueError(
                f"no Hugging Face family has {name} {_spell(value)}; export needs {_needed(name, held)} ({considered})"
            )
    fewest = min(map(len, lacks.values()))
    changes: dict[str, list[str]] = {}  # as few as can be: the families that they make possible
    for family, options in lacks.items():
        if len(options) == fewest:
            needed = [f"{_needed(name, _held(family, name))} instead of {_spell(said[name])}" for name in options]
            changes.setdefault(", ".join(needed), []).append(family.name)
    ways = [f"{needed} ({', '.join(names)})" for needed, names in changes.items()]
    raise ValueError(
        f"no Hugging Face family has these options together; export needs {', or '.join(ways)}; {considered}"
    )


def why_not_written(config: GPTConfig) -> str:
    """What no family has of a model of the built-in block; empty when it can be exported."""
    try:
        family_of(config)
    except ValueError as error:
        return str(error)
    return ""


def family_named(model_type: Any) -> Family:
    """The family of a config.json. Raises ValueError for one that we do not know."""
    if model_type not in READ:
        raise ValueError(f"model_type is {model_type!r}; only these can be imported: {', '.join(READ)}")
    return READ[model_type]


def _structure(config: GPTConfig) -> dict[str, Any]:
    """The options that families differ in; what is the same function is spelled the same."""
    names = ["positions", "norm", "norm_place", "qk_norm", "mlp", "parallel", "logit_softcap", "value_residual", "bias"]
    names += ["n_labels"]
    banded = any(width is not None and width < config.context_length for width in config.band_widths())
    kinds = config.attention_kinds() if banded else ["dense"]
    n_kv_heads = None if config.n_kv_heads == config.n_heads else config.n_kv_heads
    structure = {name: getattr(config, name) for name in names}
    return structure | {"attention_pattern": shortest(kinds), "n_kv_heads": n_kv_heads}


def _held(family: Family, option: str) -> tuple[Any, ...]:
    """The values that a family holds; empty: all."""
    if option == "mlp":
        return tuple(dict.fromkeys(family.activations.values()))
    return family.options.get(option, (getattr(GPTConfig(), option),))


def _holds(family: Family, option: str, value: Any) -> bool:
    held = _held(family, option)
    return not held or value in held


def _needed(option: str, held: Iterable[Any]) -> str:
    return f"{option} {' or '.join(map(_spell, held))}"


def _spell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

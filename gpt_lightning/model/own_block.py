"""A user's own block, by name: what a checkpoint holds of it, and how it is found where the user names it again.

A checkpoint holds the class's import path and settings as text and plain values, and never imports it: that would run
whatever code the file names. Only a path that the user gives is imported.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.gpt import Block

PLAIN = (str, int, float, bool, type(None))
MakeBlock = Callable[[GPTConfig], nn.Module]


def own_block(block: MakeBlock) -> MakeBlock | None:
    """The block, or None when it is the built-in one."""
    return None if _parts(block) == (Block, {}) else block


def block_spec(block: MakeBlock) -> dict[str, Any] | None:
    """Import path and settings of a block of one's own, as {"class_path", "init_args"}; None for the built-in one.

    block: a class or function, or a functools.partial of it, as jsonargparse makes them. Raises ValueError for
    settings that a checkpoint cannot hold.
    """
    maker, settings = _parts(block)
    if own_block(block) is None:
        return None
    path = f"{maker.__module__}.{maker.__qualname__}"
    for name, value in settings.items():
        if not _is_plain(value):
            raise ValueError(
                f"model.block {path}: {name} is a {type(value).__name__}; expected numbers, text, or lists of them, "
                "which a checkpoint can hold"
            )
    return {"class_path": path, "init_args": settings}


def import_block(path: str) -> MakeBlock:
    """The class or function at an import path that the user gave; modules in the current folder are found too."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module_name, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"model.block {path}: {error}; expected an import path such as mine.MyBlock") from None
    if not callable(found):
        raise ValueError(f"model.block {path} is a {type(found).__name__}; expected a class of blocks")
    return found


def repeated_block(trained: dict[str, Any] | None, block: MakeBlock | str | None) -> MakeBlock:
    """The block as the user repeats it, with the settings that it was trained with. Raises ValueError."""
    if trained is None and block is None:
        return Block
    if block is None:
        path = trained["class_path"] if trained else ""
        raise ValueError(f"checkpoint was trained with block {path}; repeat --model.block {path}")
    if isinstance(block, str):
        if trained is None or block != trained["class_path"]:
            raise ValueError(f"checkpoint was trained with block {_in_words(trained)}, here it is {block}")
        block = import_block(block)
    given = block_spec(block)
    if trained and given and given["class_path"] == trained["class_path"] and not given["init_args"]:
        return functools.partial(block, **trained["init_args"])
    check_same_block(trained, given)
    return block if given else Block


def check_same_block(trained: dict[str, Any] | None, given: dict[str, Any] | None) -> None:
    """Raise ValueError where a checkpoint's block and the one here differ."""
    if trained != given:
        raise ValueError(f"checkpoint was trained with block {_in_words(trained)}, here it is {_in_words(given)}")


def _in_words(spec: dict[str, Any] | None) -> str:
    if spec is None:
        return "the built-in one"
    settings = ", ".join(f"{name} {value}" for name, value in spec["init_args"].items())
    return f"{spec['class_path']} ({settings})" if settings else str(spec["class_path"])


def _parts(block: Any) -> tuple[Any, dict[str, Any]]:
    """What makes the block, and its settings. jsonargparse's partial calls a function of its own with the class."""
    if not isinstance(block, functools.partial):
        return block, {}
    classes = [argument for argument in block.args if isinstance(argument, type)]
    maker, settings = _parts(classes[-1] if classes else block.func)
    return maker, {**settings, **block.keywords}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return isinstance(value, PLAIN)

"""How people write options: 3e6 where an integer is meant, and names that are nearly right."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

import jsonargparse


def load_counts(text: str) -> Any:
    """YAML in which 3e6 is the integer 3000000, so that budgets can be written as people say them."""
    return _counts(jsonargparse.get_loader("yaml")(text))


def _counts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _counts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_counts(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) >= 1000 else value


def plain_count(argument: str) -> str:
    """The same for the command line, whose numbers jsonargparse reads itself: --max_tokens=3e6 -> 3000000."""
    name, equals, value = argument.rpartition("=")
    if re.fullmatch(r"[0-9.]+[eE]\+?[0-9]+", value) and float(value) >= 1000 and float(value).is_integer():
        value = str(int(float(value)))
    return name + equals + value


def flags_last(arguments: Sequence[str]) -> list[str]:
    """The same arguments with the --config layers first, so that flags win over all of them wherever they stand."""
    layers: list[str] = []
    flags: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--config":
            layers += [word, *([value] if (value := next(words, None)) is not None else [])]
        else:
            (layers if word.startswith("--config=") else flags).append(word)
    return layers + flags


def did_you_mean(message: str, parser: jsonargparse.ArgumentParser) -> str:
    """The option nearest to an unknown one, named in either of jsonargparse's two ways."""
    flag = re.search(r"unrecognized arguments: --([\w.]+)", message, re.IGNORECASE)
    key = re.search(r"(?:Group '([\w.]+)' does not accept option|Key) '([\w.]+)'", message)
    if flag:
        unknown = flag[1]
    elif key:
        unknown = ".".join(part for part in key.groups() if part)
    else:
        return ""
    options = [action.dest for action in parser._actions]
    nearest = difflib.get_close_matches(unknown, options, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""

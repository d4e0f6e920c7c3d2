"""How people write options: 3e6 where an integer is meant, flags before overlays, and names that are nearly right."""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jsonargparse

EXPECTED = {
    "<class 'int'>": "whole number, such as 8 or 3e6",
    "<class 'float'>": "finite number, such as 0.1 or 3e-4",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "text",
}
CONFIG = ("--config", "-c")


def load_counts(text: str) -> Any:
    """YAML in which 3e6 is the integer 3000000, so that budgets can be written as people say them."""
    return _counts(jsonargparse.get_loader("yaml")(text))


def _counts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _counts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_counts(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) >= 1000 else value


def flags(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """(--key, value) of every option: --key=value, --key value, or alone. Raises ValueError for a stray word."""
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            raise ValueError(f"unexpected {word!r}; options are written --key value")
        key, equals, value = word.partition("=")
        if equals:
            yield key, value
        else:
            yield key, words.pop(0) if words and not words[0].startswith("--") else None


def overlays_first(arguments: Sequence[str], parser: jsonargparse.ArgumentParser) -> list[str]:
    """The same options with the overlays first, so that flags win over all of them wherever they stand.

    Counts such as 3e6 become integers, but where text is expected.
    """
    first: list[str] = []
    last: list[str] = []
    text = {action.dest for action in parser._actions if "str" in str(getattr(action, "_typehint", ""))}
    for key, value in flags(arguments):
        if value is not None and key[2:] not in text:
            value = plain_count(value)
        (first if key in CONFIG else last).append(key if value is None else f"{_long(key)}={value}")
    return first + last


def plain_count(value: str) -> str:
    """3e6 -> 3000000; everything else as it is."""
    if re.fullmatch(r"[0-9.]+[eE]\+?[0-9]+", value) and float(value) >= 1000 and float(value).is_integer():
        return str(int(float(value)))
    return value


def in_words(message: str, parser: jsonargparse.ArgumentParser) -> str:
    """jsonargparse's message as a user would say it, with the option that is nearest to an unknown one."""
    stray = re.search(r"(?:option|key|arguments:) '?(?:--)?(tune[.\w]*)", message, re.IGNORECASE)
    if stray and not any(action.dest.startswith("tune.") for action in parser._actions):
        return f"{stray[1]}: a setting of tuning verbs; give it to one, such as gpt-lightning tune compare"
    for kind, words in EXPECTED.items():
        message = message.replace(f"a {kind}", f"a {words}").replace(kind, words)
    return message.replace("a true or false", "true or false") + did_you_mean(message, parser)


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


def _long(key: str) -> str:
    return "--config" if key == "-c" else key

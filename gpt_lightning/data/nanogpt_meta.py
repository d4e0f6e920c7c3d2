"""nanoGPT's meta.pkl, the alphabet of a character corpus, read without unpickling: nothing in it can run.

    {"vocab_size": 65, "itos": {0: "\\n", 1: " ", ...}, "stoi": {"\\n": 0, " ": 1, ...}}

A pickle is a program. Python's own disassembler, which only lists the instructions, gives them one by one; those that
build dictionaries of integers and text are followed here, and any other (GLOBAL, REDUCE, ...) is refused by name.
"""

import pickletools
from pathlib import Path
from typing import Any

from gpt_lightning.data.characters import CharacterTokenizer

LARGEST_BYTES = 1 << 22  # the uint16 ids of nanoGPT, 65,536 at most, take 34 bytes each


def parse(data: bytes) -> Any:
    """The dictionary that the pickle `data`, of protocol 2 to 5, holds.

    Raises ValueError for another instruction, and as a dictionary or a list does for instructions that do not fit.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    for instruction, argument, _ in pickletools.genops(data):
        match instruction.name:
            case "PROTO" | "FRAME":
                pass
            case "BININT" | "BININT1" | "BININT2" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "MARK":
                marks.append(len(stack))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1][key] = value
            case "SETITEMS":
                start = marks.pop()
                for i in range(start, len(stack), 2):
                    stack[start - 1][stack[i]] = stack[i + 1]
                del stack[start:]
            case "STOP":
                return stack.pop()
            case name:
                raise ValueError(f"holds the instruction {name}; only dictionaries of integers and text are read")
    raise AssertionError("genops ends with STOP or raises")


def _is_mapping(value: Any, key_type: type, value_type: type) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, key_type) and isinstance(item, value_type) for key, item in value.items()
    )


def _vocabulary(meta: Any) -> dict[str, int]:
    """The id of each character. Raises ValueError where the parts do not fit."""
    parts = ("vocab_size", "itos", "stoi")
    if not isinstance(meta, dict) or not all(name in meta for name in parts):
        raise ValueError(f"does not hold {', '.join(parts)}")
    vocab_size, itos, stoi = (meta[name] for name in parts)
    if not _is_mapping(itos, int, str) or not _is_mapping(stoi, str, int):
        raise ValueError("itos does not map integers to text, or stoi text to integers")
    if not isinstance(vocab_size, int) or vocab_size != len(itos):
        found = vocab_size if isinstance(vocab_size, int) else "not a number"
        raise ValueError(f"vocab_size is {found}, but itos has {len(itos)} entries")
    if len(stoi) != len(itos) or any(stoi.get(character) != i for i, character in itos.items()):
        raise ValueError("itos and stoi are not the inverse of each other")
    return stoi


def read_meta(path: Path) -> CharacterTokenizer:
    """The tokenizer of a meta.pkl. Raises ValueError, naming the file, for any that is not an alphabet and no more."""
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise ValueError(f"is larger than the {LARGEST_BYTES:,} bytes that an alphabet can take")
        return CharacterTokenizer(_vocabulary(parse(path.read_bytes())))
    except (ValueError, LookupError, TypeError) as error:
        problem = error if isinstance(error, ValueError) else "is damaged"
        raise ValueError(
            f"{path}: {problem}; expected the alphabet that nanoGPT writes. Name a tokenizer (data.prepare.tokenizer), "
            "or take the file away to train on ids alone"
        ) from None

"""The verb `generate`: a model's text on the terminal, as it is written."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from gpt_lightning.serve.decoder import TextDecoder
from gpt_lightning.serve.text import load, sampling_config
from gpt_lightning.terminal import Parser


def _parser(about: str) -> Parser:
    parser = Parser(
        prog="gpt-lightning generate",
        description=about or None,
        epilog="One prompt streams to the terminal; several are written as one batch, under headers.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--run",
        dest="path",
        required=True,
        metavar="PATH",
        help="a run folder, a .ckpt file in one, or a Hugging Face folder",
    )
    add("--model.block", dest="block", metavar="PATH", help="the run's own block, as mine.MyBlock, when it has one")
    add("--prompt", action="append", metavar="TEXT", help="repeatable; without it, the start of a document")
    add("--suffix", metavar="TEXT", help="what is to follow; writes what stands between (a run with data.fim_rate)")
    add("--chat", action="store_true", help="a prompt is what a user says (a run fine-tuned on conversations)")
    add("--system", metavar="TEXT", help="with --chat: what the assistant is told first")
    add("--stop", action="append", metavar="TEXT", help="end before this text; repeatable")
    add("--max_new_tokens", type=int, metavar="N", help="tokens to write per prompt (default: 200)")
    add("--temperature", type=float, metavar="X", help="divides the logits; 0 is greedy (default: 0.8)")
    add("--top_k", type=int, metavar="N", help="choose among the N likeliest tokens (default: all)")
    add("--top_p", type=float, metavar="P", help="choose among the likeliest tokens that sum to P (default: all)")
    add("--seed", type=int, metavar="N", help="same seed, same text (default: 0)")
    add("--weights", metavar="TYPE", help="float32 (the default), bfloat16 or int8 (on a CPU): fewer bytes, faster")
    add("--greedy", action="store_true", help="always take the likeliest token; same as --temperature 0")
    return parser


def main(argv: list[str], about: str = "") -> int:
    """The verb `generate`."""
    options = vars(_parser(about).parse_args(argv))
    prompts, stop = ([_utf8(text) for text in options.pop(name, [])] for name in ("prompt", "stop"))
    messages = _conversation(options, prompts)
    suffix = _utf8(options.pop("suffix")) if "suffix" in options else None
    if options.pop("greedy", False):
        options["temperature"] = 0.0
    source: dict[str, Any] = {name: options.pop(name) for name in ("path", "block", "weights") if name in options}
    try:
        if messages:
            _show(lambda: load(**source).chat(messages, stop, **options), stop, options)
        else:
            _write(source, prompts or [""], stop, suffix, options)
    except BrokenPipeError:  # the reader has seen enough, as in `generate | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print()
        return 130
    return 0


def _conversation(options: dict[str, Any], prompts: list[str]) -> list[dict[str, str]]:
    """With --chat the messages to answer, else none. Raises ValueError for flags that do not go together."""
    system = _utf8(options.pop("system")) if "system" in options else None
    if not options.pop("chat", False):
        if system is not None:
            raise ValueError("--system is for conversations; add --chat")
        return []
    if len(prompts) != 1 or "suffix" in options:
        raise ValueError("--chat answers one --prompt, without --suffix")
    told = [] if system is None else [{"role": "system", "content": system}]
    return [*told, {"role": "user", "content": prompts[0]}]


def _utf8(text: str) -> str:
    """An argument as UTF-8, which it is even where the locale, such as C, says ASCII. Raises ValueError."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # bytes that the locale does not know came as surrogates
        try:
            return os.fsencode(text).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{os.fsencode(text)!r} is not UTF-8 text; expected a prompt or stop string in it"
            ) from error
    return text


def _write(
    source: dict[str, Any], prompts: list[str], stop: list[str], suffix: str | None, sampling: dict[str, Any]
) -> None:
    """Print each prompt and what follows; with a suffix, only what stands between."""
    shown = prompts if suffix is None else [""] * len(prompts)
    if len(prompts) == 1:
        config = sampling_config(**sampling)
        _show(lambda: load(**source).stream(prompts[0], config, stop, suffix), stop, sampling, shown[0])
        return
    _prepare(stop, sampling)
    texts = load(**source).generate(prompts, stop, suffix, **sampling)
    for i, (prompt, text) in enumerate(zip(shown, texts, strict=True)):
        print(f"=== prompt {i + 1} of {len(prompts)} ===\n{prompt}{text}\n", flush=True)


def _show(write: Callable[[], Iterator[str]], stop: list[str], sampling: dict[str, Any], first: str = "") -> None:
    """Print text as it is written, after `first`; nothing where it cannot be written at all."""
    _prepare(stop, sampling)
    pieces = write()
    print(first + next(pieces, ""), end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)


def _prepare(stop: list[str], sampling: dict[str, Any]) -> None:
    """Let stdout hold any text. Raises ValueError for settings that are none, before the model is loaded."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    sampling_config(**sampling)
    TextDecoder(stop)

"""A trained model that writes text: the verb `generate`, and what `gpt_lightning.load` returns.

Tokens are not characters: one character may be spread over several tokens, and a stop string may begin in the middle
of one and end in another. So bytes are decoded as they become whole characters, and the end of the text is held back
as long as it may be the beginning of a stop string; what has been printed is never taken back.
torch is imported when a model is loaded, so that --help answers at once.
"""

import argparse
import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from gpt_lightning.data.characters import AnyTokenizer
    from gpt_lightning.model.gpt import GPT
    from gpt_lightning.model.own_block import MakeBlock
    from gpt_lightning.model.sampling import SamplingConfig


class TextDecoder:
    """Bytes of tokens in, whole characters out, up to the first stop string."""

    def __init__(self, stop: Sequence[str] = ()):
        if isinstance(stop, str) or not all(stop):
            raise ValueError(f"stop {stop!r}: expected a list of strings that are not empty")
        self.stop = tuple(stop)
        self.stopped = False
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # may be the beginning of a stop string

    def push(self, data: bytes, final: bool = False) -> str:
        """The text that `data` makes certain; with `final`, all that is left."""
        if self.stopped:
            return ""
        text = self._held + self._utf8.decode(data, final)
        # The stop string that is complete first, however the text came in pieces.
        found = [(text.index(stop) + len(stop), text.index(stop)) for stop in self.stop if stop in text]
        if found:
            self.stopped = True
            return text[: min(found)[1]]
        n_held = 0 if final else self._n_held(text)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def _n_held(self, text: str) -> int:
        longest = max(map(len, self.stop), default=1) - 1
        for n in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self.stop):
                return n
        return 0


class TextGenerator:
    """A GPT and its tokenizer. Build it with `load`."""

    def __init__(self, gpt: "GPT", tokenizer: "AnyTokenizer"):
        if tokenizer.vocab_size > gpt.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model only {gpt.config.vocab_size}; "
                "expected the tokenizer.json that the model was trained with"
            )
        self.gpt, self.tokenizer = gpt, tokenizer

    @overload
    def generate(self, prompts: str = "", stop: Sequence[str] = (), **sampling: Any) -> str: ...
    @overload
    def generate(self, prompts: list[str], stop: Sequence[str] = (), **sampling: Any) -> list[str]: ...
    def generate(self, prompts: str | list[str] = "", stop: Sequence[str] = (), **sampling: Any) -> str | list[str]:
        """What the model writes after each prompt, without it; several prompts are one batch.

        `stop`: strings before which the text ends. `sampling`: the fields of SamplingConfig, such as max_new_tokens,
        temperature, top_k, top_p, seed. An empty prompt is the start of a document. Raises ValueError.
        """
        texts = [prompts] if isinstance(prompts, str) else prompts
        written = [""] * len(texts)
        for pieces in self._pieces(texts, sampling_config(**sampling), stop):
            written = [text + piece for text, piece in zip(written, pieces, strict=True)]
        return written[0] if isinstance(prompts, str) else written

    def stream(
        self, prompt: str = "", config: "SamplingConfig | None" = None, stop: Sequence[str] = ()
    ) -> Iterator[str]:
        """The same text piece by piece, as soon as it is certain; every piece is whole characters."""
        for (piece,) in self._pieces([prompt], config or sampling_config(), stop):
            if piece:
                yield piece

    def _pieces(self, prompts: list[str], config: "SamplingConfig", stop: Sequence[str]) -> Iterator[list[str]]:
        from gpt_lightning.model.sampling import generate_tokens

        eot_id = self.tokenizer.eot_id
        decoders = [TextDecoder(stop) for _ in prompts]
        tokens = [self.tokenizer.encode(prompt) or [self.tokenizer.start_id] for prompt in prompts]
        with contextlib.closing(generate_tokens(self.gpt, tokens, config, eot_id)) as steps:  # type: ignore[type-var]
            for step in steps:
                yield [d.push(self._bytes(token)) for d, token in zip(decoders, step, strict=True)]
                if all(d.stopped or token is None for d, token in zip(decoders, step, strict=True)):
                    break
        yield [d.push(b"", final=True) for d in decoders]

    def _bytes(self, token: int | None) -> bytes:
        """Nothing for the end of the text, and for ids that only fill the model's vocabulary up."""
        return b"" if token is None or token >= self.tokenizer.vocab_size else self.tokenizer.decode_bytes([token])


def sampling_config(**sampling: Any) -> "SamplingConfig":
    """SamplingConfig with some fields given. Raises ValueError for one that it does not have."""
    from dataclasses import fields

    from gpt_lightning.model.sampling import SamplingConfig

    names = [field.name for field in fields(SamplingConfig)]
    unknown = [name for name in sampling if name not in names]
    if unknown:
        raise ValueError(f"unknown sampling setting {unknown[0]!r}; expected one of {', '.join(names)}")
    return SamplingConfig(**sampling)


def load(path: str | Path, block: "MakeBlock | str | None" = None, weights: str = "float32") -> TextGenerator:
    """The model of a run folder, a checkpoint inside one, or a Hugging Face folder, on a GPU if there is one.

    block: that of the run when it was the user's own, or its import path; it is not imported otherwise.
    weights: how they are stored, float32, bfloat16 or int8 (on a CPU); fewer bytes are read faster.
    Raises ValueError when there is none at `path`, or it is damaged, or its tokenizer is missing.
    """
    import torch

    from gpt_lightning.checkpoint import find_tokenizer, load_gpt
    from gpt_lightning.data.characters import read_tokenizer
    from gpt_lightning.model.gpt import GPT
    from gpt_lightning.model.huggingface.folder import import_gpt
    from gpt_lightning.model.inference import prepare

    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist; expected a run folder, a .ckpt file or a Hugging Face folder")
    if (path / "config.json").is_file():
        tokenizer = read_tokenizer(path / "tokenizer.json")
        config, state = import_gpt(path)
        with torch.device("meta"):
            gpt = GPT(config)
        gpt.load_state_dict(state, assign=True)
    else:
        tokenizer = read_tokenizer(find_tokenizer(path))
        gpt = load_gpt(path, block)
    gpt = gpt.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return TextGenerator(prepare(gpt, weights), tokenizer)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]  # one line, printed by cli.py
        raise ValueError(message)


def _parser(about: str) -> _Parser:
    parser = _Parser(
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
    if options.pop("greedy", False):
        options["temperature"] = 0.0
    source: dict[str, Any] = {name: options.pop(name) for name in ("path", "block", "weights") if name in options}
    try:
        _write(source, prompts or [""], stop, options)
    except BrokenPipeError:  # the reader has seen enough, as in `generate | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print()
        return 130
    return 0


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


def _write(source: dict[str, Any], prompts: list[str], stop: list[str], sampling: dict[str, Any]) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    config = sampling_config(**sampling)
    TextDecoder(stop)  # raises ValueError before the model is loaded
    generator = load(**source)
    if len(prompts) > 1:
        for i, (prompt, text) in enumerate(zip(prompts, generator.generate(prompts, stop, **sampling), strict=True)):
            print(f"=== prompt {i + 1} of {len(prompts)} ===\n{prompt}{text}\n", flush=True)
        return
    pieces = generator.stream(prompts[0], config, stop)
    first = next(pieces, "")  # raises ValueError before anything is printed
    print(prompts[0] + first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)

"""A trained model that writes text: the verb `generate`, and what `gpt_lightning.load` returns.

torch is imported when a model is loaded, so that --help answers at once.
"""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from gpt_lightning.serve.decoder import TextDecoder
from gpt_lightning.terminal import Parser

if TYPE_CHECKING:
    from gpt_lightning.data.characters import AnyTokenizer
    from gpt_lightning.model.gpt import GPT
    from gpt_lightning.model.own_block import MakeBlock
    from gpt_lightning.model.sampling import SamplingConfig


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
    def generate(
        self, prompts: str = "", stop: Sequence[str] = (), suffix: str | None = None, **sampling: Any
    ) -> str: ...
    @overload
    def generate(
        self, prompts: list[str], stop: Sequence[str] = (), suffix: str | None = None, **sampling: Any
    ) -> list[str]: ...
    def generate(
        self, prompts: str | list[str] = "", stop: Sequence[str] = (), suffix: str | None = None, **sampling: Any
    ) -> str | list[str]:
        """What the model writes after each prompt, without it; several prompts are one batch.

        `stop`: strings before which the text ends. `suffix`: what is to follow, for a model trained with data.fim_rate;
        then what is written stands between the two, and ends at the latest with the context. `sampling`: the fields of
        SamplingConfig, such as max_new_tokens, temperature, top_k, top_p, seed. An empty prompt is the start of a
        document. Raises ValueError.
        """
        texts = [prompts] if isinstance(prompts, str) else prompts
        written = [""] * len(texts)
        for pieces in self._pieces(texts, sampling_config(**sampling), stop, suffix):
            written = [text + piece for text, piece in zip(written, pieces, strict=True)]
        return written[0] if isinstance(prompts, str) else written

    def stream(
        self,
        prompt: str = "",
        config: "SamplingConfig | None" = None,
        stop: Sequence[str] = (),
        suffix: str | None = None,
    ) -> Iterator[str]:
        """The same text piece by piece, as soon as it is certain; every piece is whole characters."""
        for (piece,) in self._pieces([prompt], config or sampling_config(), stop, suffix):
            if piece:
                yield piece

    def _pieces(
        self, prompts: list[str], config: "SamplingConfig", stop: Sequence[str], suffix: str | None
    ) -> Iterator[list[str]]:
        from gpt_lightning.data.fim import infilling_prompt
        from gpt_lightning.model.sampling import generate_tokens

        eot_id = self.tokenizer.eot_id
        decoders = [TextDecoder(stop) for _ in prompts]
        if suffix is None:
            tokens = [self.tokenizer.encode(prompt) or [self.tokenizer.start_id] for prompt in prompts]
        else:
            tokens = [infilling_prompt(self.tokenizer, prompt, suffix) for prompt in prompts]
            room = self.gpt.config.context_length + 1 - max(map(len, tokens), default=0)  # a sliding window loses it
            config = replace(config, max_new_tokens=max(0, min(config.max_new_tokens, room)))
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
    suffix = _utf8(options.pop("suffix")) if "suffix" in options else None
    if options.pop("greedy", False):
        options["temperature"] = 0.0
    source: dict[str, Any] = {name: options.pop(name) for name in ("path", "block", "weights") if name in options}
    try:
        _write(source, prompts or [""], stop, suffix, options)
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


def _write(
    source: dict[str, Any], prompts: list[str], stop: list[str], suffix: str | None, sampling: dict[str, Any]
) -> None:
    """Print each prompt and what follows; with a suffix, only what stands between."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    config = sampling_config(**sampling)
    TextDecoder(stop)  # raises ValueError before the model is loaded
    generator = load(**source)
    shown = prompts if suffix is None else [""] * len(prompts)
    if len(prompts) > 1:
        for i, (prompt, text) in enumerate(
            zip(shown, generator.generate(prompts, stop, suffix, **sampling), strict=True)
        ):
            print(f"=== prompt {i + 1} of {len(prompts)} ===\n{prompt}{text}\n", flush=True)
        return
    pieces = generator.stream(prompts[0], config, stop, suffix)
    first = next(pieces, "")  # raises ValueError before anything is printed
    print(shown[0] + first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)

"""A trained model that writes text: what `gpt_lightning.load` returns.

torch is imported when a model is loaded, so that --help answers at once.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from gpt_lightning.serve.decoder import TextDecoder

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
        config = sampling_config(**sampling)
        for pieces in self._pieces(*self._to_ids(texts, suffix, config), stop):
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
        for (piece,) in self._pieces(*self._to_ids([prompt], suffix, config or sampling_config()), stop):
            if piece:
                yield piece

    def chat(self, messages: "Sequence[Mapping[str, Any]]", stop: Sequence[str] = (), **sampling: Any) -> Iterator[str]:
        """The assistant's answer to a conversation of {role, content}, piece by piece.

        The oldest messages go where a conversation is longer than three quarters of the context, as in training.
        Raises ValueError for a model that was not fine-tuned on conversations, and for messages that are none.
        """
        from gpt_lightning.data.characters import CharacterTokenizer
        from gpt_lightning.data.examples.encode import chat_prompt

        if isinstance(self.tokenizer, CharacterTokenizer):
            raise ValueError("a model of characters knows no chat")
        ids = chat_prompt(messages, self.tokenizer, max(3 * self.gpt.config.context_length // 4, 1))
        for (piece,) in self._pieces([ids], sampling_config(**sampling), stop):
            if piece:
                yield piece

    def _to_ids(
        self, prompts: list[str], suffix: str | None, config: "SamplingConfig"
    ) -> "tuple[list[list[int]], SamplingConfig]":
        """The ids to go on from; with a suffix, no more is written than the context holds."""
        from gpt_lightning.data.fim import infilling_prompt

        if suffix is None:
            return [self.tokenizer.encode(prompt) or [self.tokenizer.start_id] for prompt in prompts], config
        tokens = [infilling_prompt(self.tokenizer, prompt, suffix) for prompt in prompts]
        room = self.gpt.config.context_length + 1 - max(map(len, tokens), default=0)  # a sliding window loses it
        return tokens, replace(config, max_new_tokens=max(0, min(config.max_new_tokens, room)))

    def _pieces(self, tokens: list[list[int]], config: "SamplingConfig", stop: Sequence[str]) -> Iterator[list[str]]:
        from gpt_lightning.model.sampling import generate_tokens

        decoders = [TextDecoder(stop) for _ in tokens]
        generated = generate_tokens(self.gpt, tokens, config, self.tokenizer.stop_ids)
        with contextlib.closing(generated) as steps:  # type: ignore[type-var]
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
    if gpt.label_head is not None:
        raise ValueError(f"{path} tells labels apart and writes no text; gpt-lightning validate scores it")
    gpt = gpt.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return TextGenerator(prepare(gpt, weights), tokenizer)

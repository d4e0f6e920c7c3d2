"""Byte-level BPE, stored as `tokenizer.json`, trained by `tokenizers`, run by `tiktoken`.

One file format and one code path: a tokenizer trained here, GPT-2's own file as transformers saves it, and plain
bytes (256 symbols, no merges) all become the same tiktoken encoder. It encodes about 14 MB/s on one core, four to
seven times what `tokenizers` does, without the GIL. Loading compares the two: a file read differently is refused.
Text that spells a special token stays text: only our own code writes `<|endoftext|>`.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import tokenizers

from gpt_lightning.data.markers import CHAT_MARKERS, FIM_MARKERS, ChatIds, FimIds, extends, with_markers
from gpt_lightning.data.stored_tokenizer import StoredTokenizer

EOT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257  # 256 bytes and <|endoftext|>
LARGEST_VOCABULARY = 1_000_000  # four times the largest in use; `tokenizers` aborts the process on some 1e11

# GPT-2's pre-tokenizer (Radford et al. 2019) in tiktoken's form: possessive quantifiers, the same matches, faster.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# Unicode White_Space, spelt out because Python's \s also has \x1c-\x1f, which the pattern above does not.
_LONG_BLANK = re.compile("([\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{65536,})")

_BATTERY = (
    "It's 1999, I'll say they've 3 x 14 =\t42...\n\n  def f(x):\n        return x  \n",
    " a  b   c\r\n\r\n \t \u3000x\xa0y\u2028z ",
    "Ünïcödé 東京タワー привет мир ١٢٣ Ⅷ ½ नमस्ते",
    "👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u200b\ufeff\x00\x1c\x7f don'T 'S''ll",
    f"a{EOT}b <|im_start|> <s>",
)


def byte_symbols() -> list[str]:
    """The printable character that stands for each of the 256 byte values in a byte-level vocabulary (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [symbols[byte] for byte in range(256)]


def canonical_json(text: str) -> str:
    """One spelling per tokenizer: what is saved, hashed and compared. Raises ValueError if `text` is not JSON."""
    try:
        return json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    except json.JSONDecodeError as error:
        raise ValueError(f"tokenizer is not JSON ({error}); expected the tokenizer.json of a BPE") from None


def _check_kind(spec: dict[str, Any]) -> None:
    """Refuse, by name, everything that tiktoken with GPT-2's pattern would not reproduce."""
    model, pre = spec.get("model") or {}, spec.get("pre_tokenizer") or {}
    problems = {
        f"model type {model.get('type')!r}": model.get("type") != "BPE",
        "no vocabulary or no merges": not ({"vocab", "merges"} <= set(model)),
        f"pre-tokenizer {pre.get('type')!r}": pre.get("type") != "ByteLevel" or not pre.get("use_regex", True),
        "add_prefix_space": bool(pre.get("add_prefix_space")),
        "a normalizer": spec.get("normalizer") is not None,
        "BPE dropout": bool(model.get("dropout")),
        "a word prefix or suffix": bool(model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")),
    }
    for problem, present in problems.items():
        if present:
            raise ValueError(
                f"tokenizer has {problem}; expected byte-level BPE with GPT-2's pre-tokenizer (train one here)"
            )


def _merged_symbols(model: dict[str, Any]) -> Iterator[str]:
    """The result of each merge, in order; a merge is written "a b" or ["a", "b"]."""
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left + right


class Tokenizer(StoredTokenizer):
    """Byte-level BPE. Build it with `from_file`, `from_json`, `bytes_only` or `train`.

    `vocab_size` counts ids including `<|endoftext|>` (`eot_id`); `json` is the canonical text of the file.
    """

    def __init__(self, text: str) -> None:
        self.json = canonical_json(text)
        spec = json.loads(self.json)
        if not isinstance(spec, dict):
            raise ValueError("tokenizer is not a JSON object; expected the tokenizer.json of a BPE")
        _check_kind(spec)
        added = {token["content"]: int(token["id"]) for token in spec.get("added_tokens") or []}
        vocab: dict[str, int] = spec["model"]["vocab"]
        if EOT not in added and EOT not in vocab:
            raise ValueError(f"tokenizer has no {EOT} token; it separates documents, add it as a special token")
        self.eot_id: int = added[EOT] if EOT in added else vocab[EOT]
        self.control_ids = sorted({*added.values(), self.eot_id})  # which no text gives
        self.start_id = self.eot_id  # what a text without a prompt starts from
        plain = {symbol: i for symbol, i in vocab.items() if symbol not in added and symbol != EOT}
        self.vocab_size: int = 1 + max(*added.values(), *vocab.values(), self.eot_id)
        if all(marker in added for marker in FIM_MARKERS):
            self.fim_ids = FimIds(*(added[marker] for marker in FIM_MARKERS))
        if all(marker in added for marker in CHAT_MARKERS):
            self.chat_ids = ChatIds(*(added[marker] for marker in CHAT_MARKERS))
        self._bytes = self._byte_table(plain, added)
        self._encoding, self._ids = self._build_encoding(plain, spec["model"])
        self._check_against_tokenizers(spec, sorted(plain.values()))

    def _byte_table(self, plain: dict[str, int], added: dict[str, int]) -> list[bytes]:
        value = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        table = [b""] * self.vocab_size
        try:
            for symbol, i in plain.items():
                table[i] = bytes(value[character] for character in symbol)
        except KeyError:
            raise ValueError(f"tokenizer entry {symbol!r} is not byte-level; expected byte-level BPE") from None
        for symbol, i in added.items():
            table[i] = symbol.encode()
        for i in (self.eot_id, *(self.fim_ids or ()), *(self.chat_ids or ())):
            table[i] = b""
        return table

    def _build_encoding(self, plain: dict[str, int], model: dict[str, Any]) -> tuple[tiktoken.Encoding, np.ndarray]:
        """tiktoken ranks (alphabet in id order, then merges in order) and the id of each rank."""
        missing = [symbol for symbol in byte_symbols() if symbol not in plain]
        if missing:
            raise ValueError(f"tokenizer lacks {len(missing)} of the 256 byte symbols; expected byte-level BPE")
        symbols = sorted(byte_symbols(), key=plain.__getitem__)
        # A token reached by two merges keeps its first place.
        symbols = list(dict.fromkeys([*symbols, *_merged_symbols(model)]))
        unknown = [symbol for symbol in symbols if symbol not in plain]
        if unknown:
            raise ValueError(f"tokenizer merges to {unknown[0]!r}, which is not in its vocabulary")
        ids = np.array([plain[symbol] for symbol in symbols], dtype=np.uint32)
        encoding = tiktoken.Encoding(
            "corpus",
            pat_str=GPT2_PATTERN,
            mergeable_ranks={self._bytes[i]: rank for rank, i in enumerate(ids.tolist())},
            special_tokens={EOT: len(ids)},  # tiktoken wants one; no call here ever allows it
        )
        return encoding, ids

    def _check_against_tokenizers(self, spec: dict[str, Any], plain_ids: list[int]) -> None:
        # Without added tokens and post-processor the reference reads every text as text, as we do.
        bare = spec | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        try:
            reference = tokenizers.Tokenizer.from_str(json.dumps(bare))
        except Exception as error:  # tokenizers raises plain Exception
            raise ValueError(f"tokenizer cannot be read by tokenizers: {error}") from None
        step = max(1, len(plain_ids) // 2000)
        texts = [*_BATTERY, *(self._bytes[i].decode(errors="replace") for i in plain_ids[::step])]
        for text, expected in zip(texts, reference.encode_batch(texts), strict=True):
            if self.encode(text) != expected.ids:
                raise ValueError(
                    f"tokenizer reads {text[:40]!r} differently in tiktoken and tokenizers; "
                    "expected plain byte-level BPE with GPT-2's pre-tokenizer (train one here)"
                )

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """From the text of a `tokenizer.json`. Raises ValueError if it is not byte-level BPE with `<|endoftext|>`."""
        return cls(text)

    @classmethod
    def from_file(cls, path: Path | str) -> "Tokenizer":
        """From a `tokenizer.json`, ours or GPT-2's. Raises ValueError naming the file."""
        try:
            return cls.bytes_only() if path == "bytes" else cls(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read tokenizer {path}: {error}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def bytes_only(cls) -> "Tokenizer":
        """Every byte is its own token: id = byte value, `<|endoftext|>` = 256, 257 ids in all."""
        vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        base = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
        return cls._finish(base)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn merges from `texts` up to `vocab_size` ids (fewer when no pair repeats). Same texts, same tokenizer.

        Raises ValueError below 257 (256 bytes and `<|endoftext|>` always have an id) and above LARGEST_VOCABULARY.
        """
        if not SMALLEST_VOCABULARY <= vocab_size <= LARGEST_VOCABULARY:
            raise ValueError(
                f"vocab_size is {vocab_size}; expected 257 (256 bytes and {EOT}) to {LARGEST_VOCABULARY:,}"
            )
        base = tokenizers.Tokenizer(tokenizers.models.BPE())
        base.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            min_frequency=2,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        base.train_from_iterator(texts, trainer)
        return cls._finish(base)

    @classmethod
    def _finish(cls, base: tokenizers.Tokenizer) -> "Tokenizer":
        base.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        base.decoder = tokenizers.decoders.ByteLevel()
        base.add_special_tokens([tokenizers.AddedToken(EOT, special=True, normalized=False)])  # last id, as GPT-2
        return cls(base.to_str())

    def with_fim_markers(self) -> "Tokenizer":
        """The same with three ids more, those of FIM_MARKERS; itself where it has them."""
        return self if self.fim_ids else Tokenizer(with_markers(self.json, FIM_MARKERS, self.vocab_size))

    def with_chat_markers(self) -> "Tokenizer":
        """The same with four ids more, those of CHAT_MARKERS; itself where it has them."""
        return self if self.chat_ids else Tokenizer(with_markers(self.json, CHAT_MARKERS, self.vocab_size))

    def extends(self, other: StoredTokenizer) -> bool:
        """Whether it is `other`, or `other` with further markers."""
        return extends(self.json, other.json)

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[str]]:
        return Tokenizer, (self.json,)  # spawned training processes rebuild it from its text

    def encode_array(self, text: str) -> np.ndarray:
        """uint32 ids of `text`, read as text throughout. Lone surrogates count as U+FFFD."""
        try:
            ranks = self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            return self.encode_array(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        except ValueError:
            # The regex backtracks over a run of blanks and gives up at some 10^5; the pattern takes such a run
            # without its last character as one piece, so cutting exactly there changes no id.
            pieces = _LONG_BLANK.split(text)
            if len(pieces) == 1:
                raise
            for i in range(1, len(pieces), 2):
                if pieces[i + 1]:
                    pieces[i], pieces[i + 1] = pieces[i][:-1], pieces[i][-1] + pieces[i + 1]
            return np.concatenate([self.encode_array(piece) for piece in pieces])
        return self._ids[ranks]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; text that spells `<|endoftext|>` is encoded as the text that it is."""
        return self.encode_array(text).tolist()

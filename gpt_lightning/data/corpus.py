"""A corpus on disk, opened for reading: memory maps, document ends, vocabulary, and the checks that go with them.

    corpus/  manifest.json   written last: version, dtype, vocabulary, and per shard its counts and checksums
             tokenizer.json
             train-00000.bin   raw little-endian uint16 or uint32 ids, each document followed by <|endoftext|>
             train-00000.idx   uint64 end of each document, in tokens
             val-00000.bin ...

One of packed examples has other files beside the ids (examples/packed.py). Opening costs no more than a few file sizes,
so it is done every time; it finds a shard that was truncated, padded or swapped and a tokenizer that is not the
corpus's. Before the first training `check_digests` reads everything once and finds a single flipped bit; `verify` does
so again.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt_lightning.data import digests, formats
from gpt_lightning.data.characters import AnyTokenizer, read_tokenizer
from gpt_lightning.data.examples.packed import SUFFIXES, WHERE, AnySplit, PackedShard, PackedSplit, open_packed
from gpt_lightning.data.nanogpt_meta import read_meta
from gpt_lightning.data.prepare.writer import FORMAT, VERSION
from gpt_lightning.data.shards import Shard, Split, map_file
from gpt_lightning.data.tokenizer import Tokenizer

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Corpus:
    """An opened corpus.

    `tokenizer` and `eot_id` are None where a foreign format does not tell them. `identity` is a hex digest of the
    data itself (shard checksums, vocabulary, tokenizer), equal for byte-identical corpora wherever they lie.
    """

    path: Path
    vocab_size: int
    eot_id: int | None
    tokenizer: AnyTokenizer | None
    identity: str
    splits: Mapping[str, AnySplit]
    manifest: Mapping[str, Any]

    @property
    def examples(self) -> Mapping[str, Any] | None:
        """Of packed examples: their kind, labels, context_length and counts; None where this is text."""
        return self.manifest.get("examples")

    @property
    def labels(self) -> list[str]:
        """Names of the classes, where targets are their numbers."""
        return list(self.examples["labels"]) if self.examples else []

    @property
    def negative(self) -> int | None:
        """Which of the labels stands for no relation, if one does."""
        return self.examples["negative"] if self.examples else None

    def split(self, name: str) -> AnySplit:
        """Raises ValueError naming the splits that there are."""
        if name not in self.splits:
            raise ValueError(f"corpus {self.path} has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]


def _expect(path: Path, what: str, expected: object, found: object) -> None:
    if expected != found:
        raise ValueError(f"{path}: {what} should be {expected}, found {found}; prepare the corpus again")


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the corpus folder `path`. Raises ValueError if it is missing, damaged or of a newer version."""
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"{file}: format is {manifest['format']!r}, expected {FORMAT!r}")
        version = manifest["version"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{file} is not the manifest of a corpus ({error}); prepare the corpus again") from None
    if version != VERSION:
        raise ValueError(f"{file}: format version is {version}, this gpt-lightning reads {VERSION}; upgrade it")
    return manifest


def _open_shard(path: Path, entry: dict[str, Any], dtype: np.dtype, vocab_size: int) -> Shard:
    bin_path, idx_path = path / f"{entry['name']}.bin", path / f"{entry['name']}.idx"
    for file, n_bytes in ((bin_path, entry["tokens"] * dtype.itemsize), (idx_path, entry["documents"] * 8)):
        if not file.is_file():
            raise ValueError(f"{file} is missing; prepare the corpus again")
        _expect(file, f"size in bytes ({dtype.name if file is bin_path else 'uint64'})", n_bytes, file.stat().st_size)
    if entry["max_id"] >= vocab_size:
        raise ValueError(f"{bin_path}: largest token id is {entry['max_id']}, the vocabulary has {vocab_size}")
    ends = map_file(idx_path, "<u8")
    _expect(idx_path, "end of the last document", entry["tokens"], int(ends[-1]) if len(ends) else 0)
    return Shard(entry["name"], map_file(bin_path, dtype), ends, entry["text_bytes"])


def _open_tokenizer(path: Path, manifest: dict[str, Any]) -> Tokenizer:
    file = path / "tokenizer.json"
    tokenizer = Tokenizer.from_file(file)
    _expect(file, "tokenizer sha256", manifest["tokenizer_sha256"], tokenizer.sha256)
    _expect(file, "vocab_size", manifest["vocab_size"], tokenizer.vocab_size)
    _expect(file, "id of <|endoftext|>", manifest["eot_id"], tokenizer.eot_id)
    return tokenizer


def _suffixes(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """The files of a shard."""
    return (*SUFFIXES, WHERE) if "examples" in manifest else ("bin", "idx")


def _open_splits(path: Path, manifest: Mapping[str, Any], dtype: np.dtype, vocab_size: int) -> dict[str, AnySplit]:
    if "examples" in manifest:
        packed: dict[str, list[PackedShard]] = {}
        for entry in manifest["shards"]:
            packed.setdefault(entry["split"], []).append(open_packed(path, entry, dtype))
        row = manifest["examples"]["context_length"]
        return {name: PackedSplit(tuple(packed[name]), row) for name in SPLITS if name in packed}
    shards: dict[str, list[Shard]] = {}
    for entry in manifest["shards"]:
        shards.setdefault(entry["split"], []).append(_open_shard(path, entry, dtype, vocab_size))
    return {name: Split(tuple(shards[name])) for name in SPLITS if name in shards}


def _open_prepared(path: Path) -> Corpus:
    manifest = read_manifest(path)
    try:
        if manifest["dtype"] not in ("uint16", "uint32"):
            raise ValueError(f"{path}: token dtype is {manifest['dtype']!r}, expected uint16 or uint32")
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        tokenizer = _open_tokenizer(path, manifest)
        splits = _open_splits(path, manifest, dtype, tokenizer.vocab_size)
        decisive = {key: manifest[key] for key in ("dtype", "vocab_size", "eot_id", "tokenizer_sha256")}
        suffixes = _suffixes(manifest)
        decisive["shards"] = [
            [entry["name"], entry["tokens"], *(entry[f"{suffix}_sha256"] for suffix in suffixes)]
            for entry in manifest["shards"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}/manifest.json lacks {error}; prepare the corpus again") from None
    return Corpus(
        path=path,
        vocab_size=tokenizer.vocab_size,
        eot_id=tokenizer.eot_id,
        tokenizer=tokenizer,
        identity=hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest(),
        splits=splits,
        manifest=manifest,
    )


def _find_tokenizer(folder: Path, named: Path | str | None, is_nanogpt: bool) -> AnyTokenizer | None:
    """For foreign token files in `folder`: the one named, or the tokenizer.json there, or nanoGPT's meta.pkl."""
    if named:
        return read_tokenizer(named)
    if (folder / "tokenizer.json").is_file():
        return read_tokenizer(folder / "tokenizer.json")
    meta = folder / "meta.pkl"
    return read_meta(meta) if is_nanogpt and meta.is_file() else None


def _open_foreign(path: Path, tokenizer: Path | str | None, val_fraction: float) -> Corpus:
    shards = formats.open_foreign(path)
    folder = path if path.is_dir() else path.parent
    opened = _find_tokenizer(folder, tokenizer, is_nanogpt=shards["train"][0].ends is None)
    # No tokenizer, no vocabulary: one read of everything, in pieces, finds it.
    vocab_size = opened.vocab_size if opened else 1 + max(formats.max_id(shard) for shard in shards["train"])
    if "val" not in shards:
        shards["train"], shards["val"] = formats.hold_out(shards["train"], val_fraction)
    return Corpus(
        path=path,
        vocab_size=vocab_size,
        eot_id=opened.eot_id if opened else None,
        tokenizer=opened,
        identity=formats.identity(shards),
        splits={name: Split(tuple(shards[name])) for name in SPLITS if name in shards},
        manifest={},
    )


def is_corpus(path: Path | str) -> bool:
    """Whether `path` is token ids (ours or a foreign format) rather than text still to be prepared."""
    return (Path(path) / "manifest.json").is_file() or formats.is_foreign(Path(path))


def open_corpus(path: Path | str, tokenizer: Path | str | None = None, val_fraction: float = 0.01) -> Corpus:
    """Open a prepared corpus, or token ids of nanoGPT, Megatron or datatrove, without copying.

    Args:
        path: corpus folder; for foreign formats a folder or a `.bin` or `.ds` file.
        tokenizer: foreign formats: the tokenizer.json of the ids, or "bytes". Without it, the one beside the data, or
            nanoGPT's meta.pkl; with none, the vocabulary is the largest id + 1, found by reading everything once.
        val_fraction: foreign formats without a val split: share held out at the end, at a document border.

    Raises ValueError naming the file, what was expected and what was found.
    """
    path = Path(path)
    if (path / "manifest.json").is_file():
        return _open_prepared(path)
    if formats.is_foreign(path):
        return _open_foreign(path, tokenizer, val_fraction)
    if not path.exists():
        raise ValueError(f"corpus {path} does not exist; make it with gpt-lightning prepare")
    raise ValueError(f"{path} is not a corpus (no manifest.json); make one with gpt-lightning prepare")


def check_digests(corpus: Corpus, afresh: bool = False) -> None:
    """Compare a prepared corpus with its manifest's checksums: each file once, with `afresh` all of them again.

    Raises ValueError naming the bad file. Foreign formats carry no checksums and pass.
    """
    shards = corpus.manifest.get("shards", ())
    suffixes = _suffixes(corpus.manifest)
    pairs = [(f"{e['name']}.{suffix}", e[f"{suffix}_sha256"]) for e in shards for suffix in suffixes]
    digests.check(corpus.path, dict(pairs), afresh)


def verify(path: Path | str) -> Corpus:
    """Open a prepared corpus and read every byte against its checksums. Raises ValueError naming the bad file."""
    corpus = open_corpus(path)
    if not corpus.manifest:
        raise ValueError(f"{path} carries no checksums to verify; only corpora made by gpt-lightning prepare do")
    check_digests(corpus, afresh=True)
    return corpus

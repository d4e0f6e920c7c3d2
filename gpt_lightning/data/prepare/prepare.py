"""Text -> corpus, the verb `prepare`: a tokenizer, trained or given, then every document encoded and written.

    source (sources.py) --documents--> token ids (encode.py) --in order--> shards and manifest (writer.py)
                                        held-out ones that copy another split move (near_copies.py)

Done once per source and settings: a corpus that is there already is opened and returned, and processes that ask for the
same one at the same time wait for the first. The result depends on nothing but the text and the settings.
"""

import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from gpt_lightning.data.corpus import SPLITS, Corpus, open_corpus, read_manifest, verify
from gpt_lightning.data.markers import FIM_MARKERS
from gpt_lightning.data.prepare import near_copies
from gpt_lightning.data.prepare.encode import Splitter, encode_splits, n_cores, train_tokenizer
from gpt_lightning.data.prepare.sources import Source, open_source
from gpt_lightning.data.prepare.writer import SplitWriter, folder_name, locked, token_dtype, write_manifest
from gpt_lightning.data.tokenizer import SMALLEST_VOCABULARY, Tokenizer
from gpt_lightning.files import new_folder
from gpt_lightning.terminal import progress

_BAR = (TextColumn("{task.description}"), BarColumn(), TransferSpeedColumn(), TimeRemainingColumn())


@dataclass(frozen=True)
class PrepareConfig:
    """How raw text becomes a corpus."""

    vocab_size: int = 8192
    """Ids to train the tokenizer for, `<|endoftext|>` included; 257 to 1,000,000."""
    tokenizer: str | None = None
    """Use this tokenizer.json, or "bytes" for one id per byte, instead of training one."""
    fim: bool = False
    """Give the tokenizer the markers for data.fim_rate: within vocab_size, or on top of the ids of `tokenizer`."""
    tokenizer_sample_bytes: int = 50_000_000
    """Bytes of text, spread over the training documents, that the tokenizer is trained on."""
    val_fraction: float = 0.01
    """Share of documents held out for validation, between 0 and 1."""
    test_fraction: float = 0.0
    """Share of documents held out for the test split; 0: no such split, `test` scores validation text."""
    near_copies: Literal["move", "drop", "keep"] = "move"
    """Held-out documents copied from another split: move them to it, drop them, or keep and only count them."""
    near_copy_overlap: float = 0.2
    """Share of a held-out document's 13-word spans in another split from which on it is a near copy; above 0."""
    glob: str = "**/*.txt"
    """For a folder: which files are documents."""
    text_field: str = "text"
    """For JSONL and Hugging Face data sets: the field that holds the text."""
    shard_tokens: int = 100_000_000
    """Tokens after which another shard is begun."""
    n_threads: int | None = None
    """Threads that encode; null: one per core. Changes the speed only."""

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction is {self.val_fraction}; expected a share between 0 and 1, such as 0.01")
        if not 0 <= self.test_fraction < 1 - self.val_fraction:
            raise ValueError(
                f"test_fraction is {self.test_fraction}; expected 0 to below 1 - val_fraction, such as 0.01"
            )
        if not 0 < self.near_copy_overlap <= 1:
            raise ValueError(f"near_copy_overlap is {self.near_copy_overlap}; expected a share above 0, such as 0.2")
        if self.shard_tokens < 1 or self.tokenizer_sample_bytes < 1 or (self.n_threads or 1) < 1:
            raise ValueError("shard_tokens, tokenizer_sample_bytes and n_threads must be at least 1")
        if self.fim and self.tokenizer is None and self.vocab_size < SMALLEST_VOCABULARY + len(FIM_MARKERS):
            raise ValueError(
                f"vocab_size is {self.vocab_size}; with fim expected 260 (256 bytes and four markers) or more"
            )


def _fixed_tokenizer(config: PrepareConfig) -> Tokenizer | None:
    if config.tokenizer is None:
        return None
    tokenizer = Tokenizer.from_file(config.tokenizer)
    return tokenizer.with_fim_markers() if config.fim else tokenizer


def _trained_tokenizer(source: Source, splitter: Splitter, config: PrepareConfig) -> Tokenizer:
    n_markers = len(FIM_MARKERS) if config.fim else 0
    tokenizer = train_tokenizer(source, splitter, config.vocab_size - n_markers, config.tokenizer_sample_bytes)
    return tokenizer.with_fim_markers() if config.fim else tokenizer


def _identity(source: Source, config: PrepareConfig, tokenizer: Tokenizer | None) -> dict[str, object]:
    """Everything that decides the bytes of the corpus, and nothing that does not."""
    identity = asdict(config) | {"source": source.name, "source_identity": source.identity}
    del identity["n_threads"]
    if not config.fim:
        del identity["fim"]  # as it was before there was a choice
    if tokenizer is not None:
        identity |= {"tokenizer": tokenizer.sha256, "vocab_size": tokenizer.vocab_size}
        del identity["tokenizer_sample_bytes"]
    return identity


def default_output(source: str, config: PrepareConfig, root: Path | str) -> Path:
    """`<root>/<name>-<8 hex>`; the digits cover the settings and the files' names and sizes.

    So other settings, another Python (stdlib) or an edited text get a folder of their own, and old runs keep theirs.
    """
    opened = open_source(source, config.glob, config.text_field)
    return Path(root) / folder_name(opened.name, _identity(opened, config, _fixed_tokenizer(config)))


def _write_splits(
    folder: Path, source: Source, tokenizer: Tokenizer, splitter: Splitter, config: PrepareConfig
) -> dict[str, Any]:
    """Encode everything into `folder`; returns the manifest's entries of shards, train first, and near copies."""

    def writer(folder: Path, split: str) -> SplitWriter:
        return SplitWriter(folder, split, tokenizer.vocab_size, config.shard_tokens)

    # Held-out documents get their place last, when all training text is there to be compared with.
    drafts = folder / "drafts"
    drafts.mkdir()
    first = {split: writer(folder if split == "train" else drafts, split) for split in splitter.splits}
    with progress(*_BAR) as bar:
        task = bar.add_task("encoding", total=source.n_bytes)
        for split, encoded in encode_splits(source, tokenizer, splitter, config.n_threads):
            first[split].append(*encoded)
            bar.advance(task, int(encoded.text_bytes.sum()))
    written = {split: draft.written() for split, draft in first.items()}
    drop, n_threads = config.near_copies == "drop", config.n_threads or n_cores()
    copies = near_copies.find(written, tokenizer, config.near_copy_overlap, drop, n_threads)
    if config.near_copies == "keep" or copies.emptied:
        copies = replace(copies, is_kept=True)
    writers = {split: first["train"] if split == "train" else writer(folder, split) for split in splitter.splits}
    for tokens, destination in zip(near_copies.held_out_documents(written), copies.destinations, strict=True):
        if destination != near_copies.DROPPED:
            n_bytes = tokenizer.token_bytes[tokens].sum(keepdims=True)
            writers[SPLITS[destination]].append(tokens, np.array([len(tokens)]), n_bytes)
    for each in (*first.values(), *writers.values()):
        each.close()
    report = near_copies.report(copies, written, tokenizer, config.near_copy_overlap)
    shutil.rmtree(drafts)
    return {"shards": [shard for split in splitter.splits for shard in writers[split].shards], "near_copies": report}


def _reuse(output: Path, identity: dict[str, object]) -> Corpus:
    made = read_manifest(output).get("identity", {})
    changed = [key for key in sorted(identity.keys() | made.keys()) if identity.get(key) != made.get(key)]
    if changed:
        what = ", ".join(f"{key} {made.get(key)!r} instead of {identity.get(key)!r}" for key in changed)
        raise ValueError(f"{output} holds a corpus made with {what}; choose another output or delete it")
    return open_corpus(output)


def prepare(source: str, output: Path | str, config: PrepareConfig) -> Corpus:
    """Make the corpus of `source` (see `sources.open_source`) in the folder `output`, or open it if it is there.

    Byte-identical for the same text and settings, whatever the threads. Whether the text is the same is judged by file
    names and sizes. Raises ValueError for bad input, leaving nothing behind, and if `output` holds something else.
    """
    output = Path(output)
    opened = open_source(source, config.glob, config.text_field)
    tokenizer = _fixed_tokenizer(config)
    identity = _identity(opened, config, tokenizer)
    with locked(output):
        if (output / "manifest.json").exists():
            return _reuse(output, identity)
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ValueError(f"{output} exists and is not a corpus; choose another output or delete it")
        started = time.perf_counter()
        with new_folder(output) as folder:
            splitter = Splitter(opened, config.val_fraction, config.test_fraction)
            tokenizer = tokenizer or _trained_tokenizer(opened, splitter, config)
            manifest = _write_splits(folder, opened, tokenizer, splitter, config)
            tokenizer.save(folder / "tokenizer.json")
            manifest |= {"dtype": token_dtype(tokenizer.vocab_size).name}
            manifest |= {"vocab_size": tokenizer.vocab_size, "eot_id": tokenizer.eot_id}
            manifest |= {"tokenizer_sha256": tokenizer.sha256, "identity": identity}
            write_manifest(folder, manifest)
        corpus = open_corpus(output)
        seconds = time.perf_counter() - started
    n_bytes = sum(split.n_bytes or 0 for split in corpus.splits.values())
    speed = f"{n_bytes / 1e6:.1f} MB of text, {n_bytes / 1e6 / seconds:.1f} MB/s"
    print(f"prepared {output}: {speed}", file=sys.stderr, flush=True)
    print(f"near copies: {near_copies.describe(manifest['near_copies'])}", file=sys.stderr, flush=True)
    return corpus


def summary(corpus: Corpus, seconds: float) -> str:
    """What was made and what to type next, one fact a line."""
    splits = corpus.splits.items()
    n_bytes = sum(split.n_bytes or 0 for _, split in splits)
    n_tokens = sum(split.n_tokens for _, split in splits)
    rows = {
        "documents": ", ".join(f"{name} {split.n_documents:,}" for name, split in splits),
        "tokens": ", ".join(f"{name} {split.n_tokens:,}" for name, split in splits),
        "vocabulary": f"{corpus.vocab_size:,} ids",
        "text": f"{n_bytes:,} bytes, {n_bytes / n_tokens:.2f} per token",
        "speed": f"{n_bytes / 1e6 / seconds:.1f} MB/s in all",
        "near copies": near_copies.describe(corpus.manifest["near_copies"]),
        "corpus": str(corpus.path),
        "next": f"gpt-lightning fit --config configs/quickstart.yaml --data.corpus {corpus.path} "
        f"--run_dir runs/{corpus.path.name}",
    }
    return "\n".join(f"{name:<12}{value}" for name, value in rows.items())


def main(argv: list[str], about: str = "") -> int:
    """The verb `prepare`. Raises ValueError for bad input; the caller prints it as one line."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="gpt-lightning prepare", description=about or None)
    parser.add_argument(
        "--corpus",
        default="stdlib",
        help="what to read: stdlib, a text file, a folder, .jsonl or .jsonl.gz, hf:org/name[/config]",
    )
    parser.add_argument("--output", type=str | None, help="folder to make; null: corpora/NAME-DIGITS")
    parser.add_argument("--verify", type=str | None, metavar="PATH", help="only check every byte of this corpus")
    parser.add_class_arguments(PrepareConfig, None)
    options = parser.parse_args(argv)
    if options.verify is not None:
        corpus = verify(options.verify)
        print(f"{corpus.path}: all {len(corpus.manifest['shards'])} shards are intact")
        return 0
    names = PrepareConfig.__dataclass_fields__
    config = PrepareConfig(**{name: options[name] for name in names})
    output = options.output or default_output(options.corpus, config, "corpora")
    started = time.perf_counter()
    corpus = prepare(options.corpus, output, config)
    print(summary(corpus, time.perf_counter() - started))
    return 0

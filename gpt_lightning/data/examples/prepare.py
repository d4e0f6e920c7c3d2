"""A file of examples -> packed corpus, once per file, settings, tokenizer and context_length; then it is opened.

    rows (read.py) -> examples (kinds.py) -> ids (encode.py) -> rows of one length (packing.py) -> files (packed.py)

The split of a row follows from what it asks, or from its group, so that no question is in two splits. Any fault names
file and row before anything is written.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpt_lightning import files
from gpt_lightning.data.corpus import SPLITS, Corpus, open_corpus, read_manifest
from gpt_lightning.data.examples.encode import Encoded, encode_example, fill
from gpt_lightning.data.examples.kinds import WITH_LABELS, Example, ExamplesConfig, to_example
from gpt_lightning.data.examples.packed import WHERE
from gpt_lightning.data.examples.packing import pack
from gpt_lightning.data.examples.read import read_rows
from gpt_lightning.data.prepare.encode import Splitter
from gpt_lightning.data.prepare.sources import Source
from gpt_lightning.data.prepare.writer import folder_name, locked, token_dtype, write_manifest
from gpt_lightning.data.tokenizer import Tokenizer

NAMED = 3  # rows of those that are cut or left out


@dataclass(frozen=True)
class Packing:
    """How examples become rows. tokenizer: of the model that is fine-tuned. Fractions: held out where no file is."""

    config: ExamplesConfig
    tokenizer: Tokenizer
    context_length: int
    val_fraction: float
    test_fraction: float

    def identity(self, source: str) -> dict[str, Any]:
        """All that decides the rows."""
        paths = [source, *(getattr(self.config, name) for name in ("targets", "val", "val_targets", "test"))]
        return {
            **asdict(self.config),
            "digests": [_digest(path) for path in [*paths, self.config.test_targets] if path],
            "tokenizer": self.tokenizer.sha256,
            "context_length": self.context_length,
            "fractions": [self.val_fraction, self.test_fraction],
        }


@dataclass
class _Report:
    """Of one split."""

    examples: int = 0
    also_trained: int = 0
    """How many ask what a training example asks."""
    cut: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def prepare_examples(source: str, packing: Packing, root: Path | str) -> Corpus:
    """The corpus of the examples in `source`, made in a folder below `root` where it is not there yet.

    Raises ValueError naming file and row, with nothing written.
    """
    identity = packing.identity(source)
    output = Path(root) / folder_name(Path(source).name, identity)
    with locked(output):
        if not (output / "manifest.json").exists():
            _make(output, source, packing, identity)
        elif read_manifest(output).get("identity") != identity:
            raise ValueError(f"{output} holds other examples; delete it")
    return open_corpus(output)


def _make(output: Path, source: str, packing: Packing, identity: dict[str, Any]) -> None:
    splits = _splits(source, packing)
    labels = _labels(splits) if packing.config.kind in WITH_LABELS else []
    numbers = {label: number for number, label in enumerate(labels)}
    asked = {example.key for example in splits["train"]}
    reports = {name: _Report(also_trained=sum(e.key in asked for e in each)) for name, each in splits.items()}
    reports["train"].also_trained = 0
    encoded = {name: list(_encoded(each, packing, numbers, reports[name])) for name, each in splits.items()}
    for name, each in encoded.items():
        if not each:
            raise ValueError(f"{source}: no {name} example fits data.context_length {packing.context_length}; raise it")
    with files.new_folder(output) as folder:
        shards = [_write(folder, name, each, packing) for name, each in encoded.items()]
        packing.tokenizer.save(folder / "tokenizer.json")
        tokenizer = packing.tokenizer
        manifest: dict[str, Any] = {"shards": shards, "dtype": token_dtype(tokenizer.vocab_size).name}
        manifest |= {"vocab_size": tokenizer.vocab_size, "eot_id": tokenizer.eot_id}
        manifest |= {"tokenizer_sha256": tokenizer.sha256, "identity": identity}
        negative = numbers.get(packing.config.negative_label) if packing.config.kind == "relation" else None
        told = {name: {key: value for key, value in asdict(report).items()} for name, report in reports.items()}
        manifest["examples"] = {
            **{"kind": packing.config.kind, "context_length": packing.context_length, "labels": labels},
            **{"negative": negative, "splits": told},
        }
        write_manifest(folder, manifest)
    print(f"prepared {output}: {_told(reports)}", file=sys.stderr, flush=True)


def _splits(source: str, packing: Packing) -> dict[str, list[Example]]:
    config = packing.config
    examples = _examples(source, config.targets, config)
    given = {"val": (config.val, config.val_targets), "test": (config.test, config.test_targets)}
    others = {name: _examples(path, targets, config, name) for name, (path, targets) in given.items() if path}
    fractions = [0.0 if name in others else getattr(packing, f"{name}_fraction") for name in ("val", "test")]
    splits = {"train": examples, **others}
    if any(fractions):
        splits |= _held_out(source, examples, *fractions)
    return {name: splits[name] for name in SPLITS if name in splits}


def _held_out(source: str, examples: list[Example], val: float, test: float) -> dict[str, list[Example]]:
    """By the hash of what they ask. Raises ValueError where there are fewer questions than splits."""
    names = ["train", *(["val"] if val else []), *(["test"] if test else [])]
    keys = dict.fromkeys(example.key for example in examples)
    if len(keys) < len(names):
        raise ValueError(f"{source} asks {len(keys)} different things; at least {len(names)} are needed, a split each")
    asked = Source(source, "", None, lambda keep: ((key, key) for key in keys if keep(key)))
    splitter = Splitter(asked, val or test, test if val else 0.0)
    called = {"train": "train", "val": "val" if val else "test", "test": "test"}
    found: dict[str, list[Example]] = {name: [] for name in names}
    for example in examples:
        found[called[splitter.split_of(example.key)]].append(example)
    return found


def _examples(path: str, targets: str | None, config: ExamplesConfig, split: str = "train") -> list[Example]:
    of_a_set = {"val": "validation"}.get(split, split)
    found = [to_example(row, config) for row in read_rows(path, targets, of_a_set)]
    if not found:
        raise ValueError(f"{path} has no rows; expected examples")
    return found


def _labels(splits: dict[str, list[Example]]) -> list[str]:
    """Sorted; those of the training examples. Raises ValueError for fewer than two, or another one elsewhere."""
    labels = sorted({str(example.label) for example in splits["train"]})
    if len(labels) < 2:
        raise ValueError(f"all training examples have the label {labels[0]!r}; expected at least two labels")
    for name, examples in splits.items():
        for example in examples:
            if example.label not in labels:
                raise ValueError(
                    f"{example.where}: the {name} example has the label {example.label!r}, which no training example "
                    f"has; expected one of {len(labels)}, such as {labels[0]!r}"
                )
    return labels


def _encoded(
    examples: Sequence[Example], packing: Packing, numbers: dict[str, int], report: _Report
) -> Iterator[Encoded]:
    for example in examples:
        made = encode_example(example, packing.tokenizer, packing.context_length + 1, numbers)
        if made is None:
            report.left_out.append(example.where)
            continue
        report.examples += 1
        if made.is_cut:
            report.cut.append(example.where)
        yield made


def _write(folder: Path, split: str, encoded: Sequence[Encoded], packing: Packing) -> dict[str, Any]:
    """The files of a split, and their entry in the manifest."""
    rows, name = pack([len(each.ids) - 1 for each in encoded], packing.context_length), f"{split}-00000"
    tokens, targets, positions = fill(encoded, rows, packing.context_length, packing.tokenizer.eot_id)
    arrays = {"bin": tokens.astype(token_dtype(packing.tokenizer.vocab_size))}
    arrays |= {"targets": targets.astype("<i4"), "positions": positions.astype("<u4")}
    where = "".join(encoded[i].where.replace("\n", " ") + "\n" for row in rows for i in row)
    digests = {}
    for suffix, data in {**{key: array.data for key, array in arrays.items()}, WHERE: where.encode()}.items():
        with files.replacing(folder / f"{name}.{suffix}") as file:
            file.write(data)
            digests[f"{suffix}_sha256"] = file.sha256
    has_labels = packing.config.kind in WITH_LABELS
    n_bytes = sum(int(packing.tokenizer.token_bytes[one.ids[: -1 if has_labels else None]].sum()) for one in encoded)
    counts = {"tokens": tokens.size, "documents": len(encoded), "text_bytes": n_bytes, "max_id": int(tokens.max())}
    return {"name": name, "split": split, **counts, **digests}


def _digest(path: str) -> str:
    """Of a file's bytes; of a Hugging Face data set, its name."""
    if path.startswith("hf:"):
        return path
    try:
        return files.sha256(Path(path))
    except OSError as error:
        raise ValueError(f"cannot read examples {path}: {error.strerror or error}") from None


def _told(reports: dict[str, _Report]) -> str:
    lines = [", ".join(f"{report.examples:,} {name}" for name, report in reports.items()) + " examples"]
    lines += [
        f"{report.also_trained:,} of the {name} examples ask what a training example asks"
        for name, report in reports.items()
        if report.also_trained
    ]
    for what, names in (
        ("lose some of what they ask", [where for report in reports.values() for where in report.cut]),
        ("are left out, their answers are too long", [where for r in reports.values() for where in r.left_out]),
    ):
        if names:
            more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
            lines.append(f"{len(names):,} {what}: {', '.join(names[:NAMED])}{more}")
    return "; ".join(lines)

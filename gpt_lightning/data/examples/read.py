"""Files of examples -> rows, each with the words that say where it stands, for every later fault.

    x.jsonl, x.jsonl.gz     one JSON object per line
    x.json                  an array of them, as TACRED has it
    x.csv, x.tsv            a header, then records; quoted fields may hold commas and new lines
    x.sgm                   the <seg> elements of a WMT file: text alone, so it needs a second file
    anything else           lines of text, likewise
    hf:org/name[/config]    a Hugging Face data set, or a local folder of one (extra `hf`)

Reading is strict: what is not UTF-8, not JSON or not as wide as the header is refused, by file and row.
"""

import csv
import gzip
import html
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gpt_lightning.data.prepare.sources import hugging_face_rows

_SEGMENT = re.compile(r"<seg\b[^>]*>(.*?)</seg>", re.DOTALL | re.IGNORECASE)
LARGEST_FIELD = 1 << 27  # csv's own limit, 128 KB, is shorter than a document


class Row(NamedTuple):
    """A row as it was read. where: file and line or number, for messages."""

    where: str
    values: dict[str, Any]


def read_rows(path: str, targets: str | None = None, split: str = "train") -> Iterator[Row]:
    """The rows of a file; with `targets`, those of two files of text, line by line, as source and target.

    split: of a Hugging Face data set. Raises ValueError naming file and row.
    """
    if targets is not None:
        return _pairs(Path(path), Path(targets))
    if path.startswith("hf:"):
        name = path.removeprefix("hf:")
        rows = enumerate(hugging_face_rows(name, split))
        return (_object(f"{path} row {number}", row) for number, row in rows)
    suffixes = "".join(Path(path).suffixes[-2:])
    readers = {".jsonl": _jsonl, ".jsonl.gz": _jsonl, ".json": _json, ".csv": _table, ".tsv": _table}
    for suffix, reader in readers.items():
        if suffixes.endswith(suffix):
            return reader(Path(path))
    raise ValueError(
        f"examples {path}: expected a .jsonl, .json, .csv or .tsv file or hf:NAME; two files of text, line by line, "
        "need data.examples.targets"
    )


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        return data.decode("utf-8-sig")  # spreadsheets put a mark before their CSV
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} line {line} is not UTF-8: byte 0x{data[error.start]:02x}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from None
    except OSError as error:
        raise ValueError(f"cannot read examples {path}: {error.strerror or error}") from None


def _object(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {type(value).__name__}; expected a JSON object")
    return Row(where, value)


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            where = f"{path} line {number}"
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where} is not JSON: {error}") from None
            yield _object(where, value)


def _json(path: Path) -> Iterator[Row]:
    try:
        values = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, list):
        raise ValueError(f"{path} is {type(values).__name__}; expected an array of objects")
    for number, value in enumerate(values, start=1):
        yield _object(f"{path} row {number}", value)


def _table(path: Path) -> Iterator[Row]:
    csv.field_size_limit(LARGEST_FIELD)
    lines = io.StringIO(_read(path), newline="")
    dialect: dict[str, Any] = {"delimiter": "\t"} if path.suffix == ".tsv" else {}
    records = csv.reader(lines, strict=True, **dialect)
    try:
        header = next(records, [])
        if len(set(header)) < len(header):
            raise ValueError(f"{path} names a column twice: {', '.join(header)}")
        for record in records:
            where = f"{path} line {records.line_num}"
            if not record:
                continue
            if len(record) != len(header):
                raise ValueError(f"{where} has {len(record)} fields; its header has {len(header)}")
            yield Row(where, dict(zip(header, record, strict=True)))
    except csv.Error as error:
        raise ValueError(f"{path} line {records.line_num}: {error}") from None


def _lines(path: Path) -> list[str]:
    text = _read(path)
    if path.suffix == ".sgm":
        return [html.unescape(segment).strip() for segment in _SEGMENT.findall(text)]
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def _pairs(sources: Path, targets: Path) -> Iterator[Row]:
    first, second = _lines(sources), _lines(targets)
    if len(first) != len(second):
        raise ValueError(f"{sources} has {len(first)} lines, {targets} {len(second)}; expected as many in both")
    for number, (source, target) in enumerate(zip(first, second, strict=True), start=1):
        yield Row(f"{sources} line {number}", {"source": source, "target": target})

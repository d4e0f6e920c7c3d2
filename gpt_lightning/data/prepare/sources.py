"""Where text comes from: every source becomes a stream of named documents, read one at a time.

    stdlib                   the running Python's own library, without tests: real text that every machine has
    book.txt                 one file, cut at blank lines into documents of about 64 KB
    folder/                  every file that matches a glob is one document (.jsonl files: one per line)
    data.jsonl, .jsonl.gz    one document per line, from its text field
    hf:org/name[/config]     a Hugging Face data set, streamed (extra `hf`); hf:/path is a local one

A document's name decides its split, so names are unique, stable and independent of where the files lie. Reading is
strict: a file that is not UTF-8 is refused with the byte that is not, for silently replaced text trains silently.
"""

import gzip
import hashlib
import json
import os
import platform
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

Document = tuple[str, str]  # name, text
Keep = Callable[[str], bool]  # by name; what is not kept is not read, where the format allows

PIECE_BYTES = 65536
_STDLIB_SKIP = ("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__")


@dataclass(frozen=True)
class Source:
    """A checked source. `identity` is a hex digest of file names and sizes (not of contents: it must be cheap)."""

    name: str
    identity: str
    n_bytes: int | None
    read: Callable[[Keep], Iterator[Document]]


def _decode(data: bytes, where: Path | str, offset: int = 0) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is not UTF-8: byte 0x{data[error.start]:02x} at offset {offset + error.start}; "
            "convert it (iconv -t UTF-8) or leave it out"
        ) from None


def _text_field(record: Any, field: str, where: str) -> str:
    if not isinstance(record, dict) or field not in record:
        found = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"{where} has no field {field!r} (found: {found}); name the right one with text_field")
    if not isinstance(record[field], str):
        raise ValueError(f"{where}: field {field!r} is {type(record[field]).__name__}, expected a string")
    # JSON may spell half of a surrogate pair, which no UTF-8 text can hold: U+FFFD, as any decoder gives.
    return record[field].encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _is_jsonl(path: Path) -> bool:
    return path.name.endswith((".jsonl", ".jsonl.gz"))


def _read_jsonl(path: Path, name: str, field: str, keep: Keep) -> Iterator[Document]:
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    offset = 0
    try:
        with opener(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                document, where = f"{name}:{number}", f"{path} line {number}"
                if line.strip() and keep(document):
                    try:
                        record = json.loads(_decode(line, path, offset))
                    except json.JSONDecodeError as error:
                        raise ValueError(f"{where} is not JSON: {error}") from None
                    yield document, _text_field(record, field, where)
                offset += len(line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from None


def _cut(data: bytes, at: int) -> int:
    """The first blank line in bytes [at, 2 at), else the first line end there, else the next character border."""
    for border in (b"\n\n", b"\n"):
        found = data.find(border, at - len(border), 2 * at)
        if found >= 0:
            return found + len(border)
    while at < len(data) and data[at] & 0xC0 == 0x80:  # UTF-8 continuation byte
        at += 1
    return at


def _pieces(file: BinaryIO, piece_bytes: int) -> Iterator[bytes]:
    data, more = b"", True
    while more:
        block = file.read(PIECE_BYTES)
        data, more = data + block, bool(block)
        while len(data) > (2 * piece_bytes if more else piece_bytes):
            end = _cut(data, piece_bytes)
            yield data[:end]
            data = data[end:]
    if data:
        yield data


def _read_text_file(path: Path, keep: Keep) -> Iterator[Document]:
    # A short text is cut finer, so that even one page gives documents for both splits.
    piece_bytes = max(1, min(PIECE_BYTES, path.stat().st_size // 16))
    offset = 0
    with path.open("rb") as file:
        for number, piece in enumerate(_pieces(file, piece_bytes)):
            if keep(name := f"{path.name}:{number}"):
                yield name, _decode(piece, path, offset)
            offset += len(piece)


def _read_files(root: Path, paths: list[Path], field: str, keep: Keep) -> Iterator[Document]:
    for path in paths:
        name = path.relative_to(root).as_posix()
        if _is_jsonl(path):
            yield from _read_jsonl(path, name, field, keep)
        elif keep(name):
            yield name, _decode(path.read_bytes(), path)


def _read_stdlib(root: Path, paths: list[Path], keep: Keep) -> Iterator[Document]:
    for path in paths:
        name = path.relative_to(root).as_posix()
        if keep(name):
            try:
                yield name, path.read_bytes().decode("utf-8")
            except UnicodeDecodeError:
                continue  # a few codec fixtures are in other encodings on purpose


def _stdlib_files() -> tuple[Path, list[Path]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = []
    for folder, folders, files in os.walk(root):
        # config-* and _sysconfigdata* hold this machine's compiler flags.
        folders[:] = [name for name in folders if name not in _STDLIB_SKIP and not name.startswith("config-")]
        paths += [Path(folder, f) for f in files if f.endswith(".py") and not f.startswith("_sysconfigdata")]
    return root, sorted(paths)


def _digest(root: Path, paths: Iterable[Path]) -> tuple[str, int]:
    sizes = [(path.relative_to(root).as_posix(), path.stat().st_size) for path in paths]
    return hashlib.sha256(json.dumps(sizes).encode()).hexdigest(), sum(size for _, size in sizes)


def _file_source(name: str, root: Path, paths: list[Path], read: Callable[[Keep], Iterator[Document]]) -> Source:
    identity, n_bytes = _digest(root, paths)
    if not n_bytes:
        raise ValueError(f"corpus {root if len(paths) > 1 else paths[0]} is empty; expected text")
    return Source(name, identity, n_bytes, lambda keep: (d for d in read(keep) if d[1]))


def _open_stdlib() -> Source:
    root, paths = _stdlib_files()
    name = f"stdlib-{platform.python_version()}"
    return _file_source(name, root, paths, lambda keep: _read_stdlib(root, paths, keep))


def _open_file(path: Path, text_field: str) -> Source:
    if _is_jsonl(path):
        source = _file_source(path.name, path.parent, [path], lambda k: _read_jsonl(path, path.name, text_field, k))
        return replace(source, n_bytes=None)  # size on disk says little about the text in it
    return _file_source(path.name, path.parent, [path], lambda keep: _read_text_file(path, keep))


def _open_folder(root: Path, glob: str, text_field: str) -> Source:
    paths = sorted(path for path in root.glob(glob) if path.is_file())
    if not paths:
        raise ValueError(f"corpus folder {root} has no file that matches {glob!r}; set glob")
    source = _file_source(root.resolve().name, root, paths, lambda k: _read_files(root, paths, text_field, k))
    return replace(source, n_bytes=None) if any(map(_is_jsonl, paths)) else source


def hugging_face_rows(spec: str, split: str = "train") -> Iterator[Any]:
    """Rows of a split, streamed, so that neither disk nor memory has to hold the set."""
    try:
        import datasets
    except ImportError:
        raise ValueError(f"hf:{spec} needs the extra: pip install 'gpt-lightning[hf]'") from None
    name, config = spec, None
    if not Path(spec).is_dir() and spec.count("/") == 2:
        name, config = spec.rsplit("/", 1)
    datasets.disable_progress_bars()
    try:
        yield from datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # the hub's errors share no base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot read hf:{spec}: {reason} (is the name right, is there a network?)") from None


def _open_hugging_face(spec: str, text_field: str) -> Source:
    local = Path(spec)

    def read(keep: Keep) -> Iterator[Document]:
        for number, row in enumerate(hugging_face_rows(spec)):
            document = f"{local.name}:{number}"
            if keep(document) and (text := _text_field(row, text_field, f"hf:{spec} row {number}")):
                yield document, text

    if local.is_dir():
        identity, _ = _digest(local, sorted(path for path in local.rglob("*") if path.is_file()))
        return Source(local.resolve().name, identity, None, read)
    next(read(lambda _: True), None)  # a wrong name or no network shows now, before anything is written
    return Source(spec, hashlib.sha256(spec.encode()).hexdigest(), None, read)


def open_source(source: str, glob: str = "**/*.txt", text_field: str = "text") -> Source:
    """Check that a source exists and holds files; its `read(keep)` then streams `(name, text)`, empty texts left out.

    Raises ValueError for what is missing or empty; `read` raises ValueError for text that is not UTF-8 or not JSON.
    """
    path = Path(source)
    if source.startswith("hf:"):
        return _open_hugging_face(source.removeprefix("hf:"), text_field)
    if source == "stdlib":
        return _open_stdlib()
    if path.is_dir():
        return _open_folder(path, glob, text_field)
    if path.is_file():
        return _open_file(path, text_field)
    raise ValueError(f"corpus {source!r} does not exist; expected a file, a folder, hf:NAME or stdlib")

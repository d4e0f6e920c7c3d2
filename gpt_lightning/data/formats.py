"""Token files that other programs wrote, read where they lie.

    nanoGPT    train.bin, val.bin      headerless uint16; no document borders; meta.pkl: nanogpt_meta.py
    Megatron   name.bin + name.idx     header "MMIDIDX", dtype, lengths, byte pointers, document index
    datatrove  name.ds + name.ds.index uint64 document ends; ids uint16 or uint32, told by the sizes

A folder may hold several; a file whose name starts with val or test belongs to that split, every other one to train.
Only memory maps are handed out, and a file whose size and index disagree is refused.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gpt_lightning.data.shards import Shard, map_file

_MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
_MEGATRON_HEADER = struct.Struct("<9sQBQQ")
# Codes 6 and 7 are floating point, which no token id is.
_MEGATRON_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_SCAN_TOKENS = 1 << 24
_SAMPLE_TOKENS = 1 << 16


def _check(path: Path, what: str, expected: object, found: object) -> None:
    if expected != found:
        raise ValueError(f"{path}: {what} should be {expected}, found {found}; the file is damaged or incomplete")


def _check_ends(path: Path, ends: np.ndarray) -> None:
    if len(ends) and (ends[0] < 0 or np.any(ends[1:] < ends[:-1])):
        raise ValueError(f"{path}: document ends do not increase; the file is damaged")


def _open_nanogpt(path: Path) -> Shard:
    size = path.stat().st_size
    if size % 2 or not size:
        raise ValueError(f"{path}: {size} bytes are not a whole number of uint16 tokens; the file is damaged or empty")
    return Shard(path.stem, map_file(path, "<u2"))


def _open_megatron(path: Path) -> Shard:
    index = path.with_suffix(".idx")
    header = index.open("rb").read(_MEGATRON_HEADER.size)
    if len(header) < _MEGATRON_HEADER.size or not header.startswith(_MEGATRON_MAGIC):
        raise ValueError(f"{index}: not a Megatron index (MMIDIDX), and no manifest.json of a prepared corpus is here")
    _, version, code, n_sequences, n_documents = _MEGATRON_HEADER.unpack(header)
    _check(index, "Megatron index version", 1, version)
    if code not in _MEGATRON_DTYPES:
        raise ValueError(f"{index}: dtype code is {code}, expected an integer type ({sorted(_MEGATRON_DTYPES)})")
    dtype = np.dtype(_MEGATRON_DTYPES[code])
    _check(index, "size in bytes", len(header) + 12 * n_sequences + 8 * n_documents, index.stat().st_size)
    lengths = map_file(index, "<i4", len(header), n_sequences).astype(np.int64)
    pointers = map_file(index, "<i8", len(header) + 4 * n_sequences, n_sequences)
    documents = map_file(index, "<i8", len(header) + 12 * n_sequences, n_documents)
    ends = np.cumsum(lengths)
    if np.any(lengths < 0) or not np.array_equal(pointers, (ends - lengths) * dtype.itemsize):
        raise ValueError(f"{index}: sequences do not follow each other in {path.name}; write it again in order")
    n_tokens = int(ends[-1]) if n_sequences else 0
    _check(path, f"size in bytes ({dtype.name})", n_tokens * dtype.itemsize, path.stat().st_size)
    _check_ends(index, documents)
    _check(index, "end of the last document, in sequences", n_sequences, int(documents[-1]) if n_documents else 0)
    # The document index lists sequence numbers, 0 first; document i ends where sequence documents[i + 1] starts.
    document_ends = np.concatenate([[0], ends])[documents[documents > 0]]
    return Shard(path.stem, map_file(path, dtype), document_ends)


def _open_datatrove(path: Path) -> Shard:
    index = path.with_name(path.name + ".index")
    if not index.is_file() or index.stat().st_size % 8:
        raise ValueError(f"{index} is missing or not a list of uint64 document ends; {path.name} needs it")
    ends = map_file(index, "<u8")
    _check_ends(index, ends)
    n_tokens, size = int(ends[-1]) if len(ends) else 0, path.stat().st_size
    dtype = {2 * n_tokens: "<u2", 4 * n_tokens: "<u4"}.get(size)
    if dtype is None or not size:
        raise ValueError(
            f"{path}: {size} bytes found, its index tells {n_tokens} tokens ({2 * n_tokens} or {4 * n_tokens} bytes)"
        )
    return Shard(path.stem, map_file(path, dtype), ends)


def _token_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.suffix in (".bin", ".ds") and p.is_file())
    return [path] if path.suffix in (".bin", ".ds") and path.is_file() else []


def is_foreign(path: Path) -> bool:
    """Whether `path` is a `.bin` or `.ds` file, or a folder that holds some."""
    return bool(_token_files(path))


def open_foreign(path: Path) -> dict[str, list[Shard]]:
    """Shards of each split found at `path`, at least `train`. Raises ValueError naming the damaged file."""
    shards: dict[str, list[Shard]] = {}
    for file in _token_files(path):
        if file.suffix == ".ds":
            shard = _open_datatrove(file)
        else:
            shard = _open_megatron(file) if file.with_suffix(".idx").is_file() else _open_nanogpt(file)
        named = [name for name in ("val", "test") if path.is_dir() and file.name.startswith(name)]
        shards.setdefault(named[0] if named else "train", []).append(shard)
    if "train" not in shards:
        raise ValueError(f"{path} has no training tokens; expected a .bin or .ds file not named val or test")
    return shards


def max_id(shard: Shard) -> int:
    """Largest token id, by reading everything once in pieces. Raises ValueError for a negative id."""
    largest = 0
    for start in range(0, len(shard.tokens), _SCAN_TOKENS):
        piece = shard.tokens[start : start + _SCAN_TOKENS]
        if piece.min() < 0:
            raise ValueError(f"shard {shard.name} holds the negative token id {piece.min()}; ids are 0 or more")
        largest = max(largest, int(piece.max()))
    return largest


def _cut(shard: Shard, at: int) -> tuple[Shard, Shard]:
    """Two shards over one memory map, cut at the last document border up to `at`, or at `at` if there is none."""
    if shard.ends is None or at == len(shard.tokens):
        return Shard(shard.name, shard.tokens[:at], shard.ends), Shard(shard.name, shard.tokens[at:])
    n_left = int(np.searchsorted(shard.ends, at, side="right"))
    at = int(shard.ends[n_left - 1]) if n_left else at
    left, right = shard.ends[:n_left], shard.ends[n_left:] - np.asarray(at, shard.ends.dtype)
    return Shard(shard.name, shard.tokens[:at], left), Shard(shard.name, shard.tokens[at:], right)


def hold_out(shards: Sequence[Shard], fraction: float) -> tuple[list[Shard], list[Shard]]:
    """Split off the last `fraction` of the tokens; no copy, and no document in both parts where borders are known."""
    budget = int(sum(len(shard.tokens) for shard in shards) * (1 - fraction))
    kept: list[Shard] = []
    held: list[Shard] = []
    for shard in shards:
        left, right = _cut(shard, max(0, min(budget, len(shard.tokens))))
        budget -= len(shard.tokens)
        kept += [left] if len(left.tokens) else []
        held += [right] if len(right.tokens) else []
    return kept, held


def identity(shards: Mapping[str, Sequence[Shard]]) -> str:
    """Hex digest of each shard's split, size, dtype and 16 evenly spaced samples of its ids (all of a small one)."""
    digest = hashlib.sha256()
    for split in sorted(shards):
        for shard in shards[split]:
            digest.update(f"{split} {len(shard.tokens)} {shard.tokens.dtype.str};".encode())
            for start in np.linspace(0, max(0, len(shard.tokens) - _SAMPLE_TOKENS), 16, dtype=np.int64):
                digest.update(np.ascontiguousarray(shard.tokens[start : start + _SAMPLE_TOKENS]).tobytes())
    return digest.hexdigest()

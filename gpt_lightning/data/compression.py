"""What gzip and xz need for the text that a model is scored on: the yardsticks beside its own bits per byte.

A model that loses to gzip has a bug. The hardest of the three is xz that has read the training text, as the model has:
how many bytes the text adds to the compressed training text, with a dictionary as large as both. It takes about 2 s
per MB of training text and ten times the text in memory, so it stops at AFTER_TRAINING_BYTES, and a prepared corpus
remembers all three in compression.json beside its shards.
"""

import contextlib
import hashlib
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from gpt_lightning.data.characters import AnyTokenizer
from gpt_lightning.data.corpus import Corpus
from gpt_lightning.data.digests import turn
from gpt_lightning.data.examples.packed import AnySplit
from gpt_lightning.files import write_text

COMPRESSED_BYTES = 50_000_000  # of held-out text at most: xz -9e manages a few MB per second
AFTER_TRAINING_BYTES = 32_000_000
REMEMBERED = "compression.json"
_DECODE_TOKENS = 1 << 20


def text_of(split: AnySplit, tokenizer: AnyTokenizer, skip: int = 0) -> Iterator[bytes]:
    """The text behind a split, in pieces, without the first `skip` tokens of each shard."""
    for shard in split.shards:
        for start in range(skip, len(shard.tokens), _DECODE_TOKENS):
            yield tokenizer.decode_bytes(shard.tokens[start : start + _DECODE_TOKENS].tolist())


def text_digest(corpora: Iterable[Corpus]) -> str | None:
    """SHA-256 of the text of their validation splits, whatever the vocabulary; None where one has no tokenizer."""
    found = hashlib.sha256()
    for corpus in corpora:
        if corpus.tokenizer is None:
            return None
        for piece in text_of(corpus.split("val"), corpus.tokenizer):
            found.update(piece)
    return found.hexdigest()


def alone(text: Iterable[bytes]) -> dict[str, float]:
    """Bits per byte of gzip -9 and xz -9e over a text, or its first COMPRESSED_BYTES; empty when there is none."""
    gzip = zlib.compressobj(9, wbits=31)
    xz = lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    n_bytes = gzip_bytes = xz_bytes = 0
    for chunk in text:
        n_bytes += len(chunk)
        gzip_bytes += len(gzip.compress(chunk))
        xz_bytes += len(xz.compress(chunk))
        if n_bytes >= COMPRESSED_BYTES:
            break
    if not n_bytes:
        return {}
    gzip_bytes += len(gzip.flush())
    xz_bytes += len(xz.flush())
    return {"gzip_bits_per_byte": 8 * gzip_bytes / n_bytes, "xz_bits_per_byte": 8 * xz_bytes / n_bytes}


def after_training(training: bytes, text: bytes) -> float:
    """Bits per byte that `text` adds to what xz -9e makes of `training`."""
    with ThreadPoolExecutor(2) as pool:  # lzma leaves the GIL
        before, both = pool.map(_xz_bytes, (training, training + text))
    return 8 * (both - before) / len(text)


def _xz_bytes(text: bytes) -> int:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": max(4096, len(text))}]
    return len(lzma.compress(text, check=lzma.CHECK_NONE, filters=filters))


def measure(corpora: Sequence[Corpus], name: str, trained_on: Sequence[Corpus] | None = None) -> dict[str, float]:
    """All three for the tokens that the windows of the named split score: all but the first of each shard.

    trained_on: whose training text xz has read; their own when not given. Empty without a tokenizer, and for examples,
    of which only answers are scored; without xz after training text where that is too long or of unknown length.
    """
    tokenizer = corpora[0].tokenizer
    if tokenizer is None or any(corpus.examples for corpus in corpora):
        return {}
    splits = [corpus.split(name) for corpus in corpora]
    trains = [corpus.split("train") for corpus in trained_on or corpora]
    measured = alone(piece for split in splits for piece in text_of(split, tokenizer, skip=1))
    sizes = [split.n_bytes for split in (*splits, *trains)]
    if measured and sum(AFTER_TRAINING_BYTES + 1 if size is None else size for size in sizes) <= AFTER_TRAINING_BYTES:
        training = b"".join(piece for split in trains for piece in text_of(split, tokenizer))
        text = b"".join(piece for split in splits for piece in text_of(split, tokenizer, skip=1))
        measured["xz_after_training_bits_per_byte"] = after_training(training, text)
    return measured


def compression(
    corpora: Sequence[Corpus], name: str = "val", trained_on: Sequence[Corpus] | None = None
) -> dict[str, float]:
    """As `measure`, once for a prepared corpus: `gzip_`, `xz_` and `xz_after_training_bits_per_byte`."""
    own = trained_on is None or [one.identity for one in trained_on] == [one.identity for one in corpora]
    if len(corpora) > 1 or not corpora[0].manifest or not own:
        return measure(corpora, name, trained_on)
    corpus = corpora[0]
    path = corpus.path / REMEMBERED
    with turn(path):
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["corpus"] == corpus.identity and isinstance(known[name], dict):
                return known[name]
        except (OSError, ValueError, KeyError, TypeError):
            known = {}
        measured = measure(corpora, name)
        known = {**known, "corpus": corpus.identity, name: measured}
        with contextlib.suppress(OSError):  # a folder that cannot be written
            write_text(path, json.dumps(known, indent=1) + "\n")
    return measured

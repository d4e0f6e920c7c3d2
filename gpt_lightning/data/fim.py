"""Fill in the middle: some pieces of a training row are rearranged, so that left-to-right training learns to infill.

Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle", arXiv 2207.14255, section 3. A
piece is what a row holds of one document ("context-level"). It is cut at two places, uniform over its characters, and
its parts are encoded one by one ("character-level"), for a user's cursor stands within tokens too:

    piece   prefix middle suffix |                                      | is <|endoftext|>
    PSM     <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle |
    SPM     <|fim_prefix|> <|fim_suffix|> suffix <|fim_middle|> prefix middle |

A row keeps its length: the markers take three places per rearranged piece, cut words a few more, and the last piece
gives its end up for all of them: first of its suffix, so that the middle is whole. Sample number g is rearranged by
random numbers of (seed, g) alone, so neither ranks nor a resume change it, and each epoch cuts anew. It costs encoding
the rearranged pieces again, about a million tokens a second.
"""

from collections.abc import Iterator

import numpy as np

from gpt_lightning.data.characters import AnyTokenizer
from gpt_lightning.data.markers import FIM_MARKERS, FimIds
from gpt_lightning.data.tokenizer import Tokenizer

_STREAM = 0xF1  # keeps these random numbers apart from those of the sample order
_LONGEST_CHARACTER = 4  # bytes of UTF-8, so a window's border cuts at most three tokens' characters


def _with_markers(tokenizer: AnyTokenizer | None, what: str) -> tuple[Tokenizer, FimIds]:
    """The tokenizer and its markers. Raises ValueError, beginning with `what` was asked for, where it has none."""
    if not isinstance(tokenizer, Tokenizer) or tokenizer.fim_ids is None:
        raise ValueError(
            f"{what}: the tokenizer has no {', '.join(FIM_MARKERS)}; prepare the text with --data.prepare.fim true "
            "(gpt-lightning prepare --fim true) and train with --data.fim_rate 0.5"
        )
    return tokenizer, tokenizer.fim_ids


def infilling_prompt(tokenizer: AnyTokenizer, prefix: str, suffix: str) -> list[int]:
    """What a model that was trained on rearranged text goes on with the middle from, up to `<|endoftext|>` (PSM).

    Raises ValueError where the tokenizer has no markers.
    """
    _, ids = _with_markers(tokenizer, f"suffix {suffix[:40]!r}")
    return [ids.prefix, *tokenizer.encode(prefix), ids.suffix, *tokenizer.encode(suffix), ids.middle]


class FillInTheMiddle:
    """Rearranges training rows.

    Args:
        tokenizer: one with markers.
        seed: selects the random numbers, with the sample's number.
        rate: share of the pieces that are rearranged.
        spm_rate: share of those that become SPM rather than PSM.

    Raises ValueError for a tokenizer without markers.
    """

    def __init__(self, tokenizer: AnyTokenizer | None, seed: int, rate: float, spm_rate: float) -> None:
        self._tokenizer, self._ids = _with_markers(tokenizer, f"fim_rate {rate}")
        self._seed, self._rate, self._spm_rate = seed, rate, spm_rate

    def __call__(self, rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Rows of the same shape, int64 [n, context_length + 1], from those of the samples `numbers` [n]."""
        return np.stack([self._row(row, int(number)) for row, number in zip(rows, numbers, strict=True)])

    def _row(self, row: np.ndarray, number: int) -> np.ndarray:
        random = np.random.default_rng((self._seed, number, _STREAM))
        parts, room = [], len(row)
        for piece, end in _pieces(row, self._tokenizer.eot_id):
            chosen, is_spm = random.random(2) < (self._rate, self._spm_rate)
            moved = self._rearranged(piece, room, bool(is_spm), random) if chosen else piece
            parts += [moved, end]
            room -= len(moved) + len(end)
            if room <= 0:
                break
        return np.concatenate(parts)[: len(row)]

    def _rearranged(self, piece: np.ndarray, room: int, is_spm: bool, random: np.random.Generator) -> np.ndarray:
        """The piece with its middle moved; itself where it has no character, or is not UTF-8."""
        found = self._whole_characters(piece)
        if not found:
            return piece
        first, stop, text = found
        cuts = np.sort(random.integers(len(text) + 1, size=2))
        prefix, middle, suffix = (
            self._tokenizer.encode_array(part).astype(np.int64)
            for part in (text[: cuts[0]], text[cuts[0] : cuts[1]], text[cuts[1] :])
        )
        prefix, suffix = np.concatenate([piece[:first], prefix]), np.concatenate([suffix, piece[stop:]])
        n_tokens = len(self._ids) + len(prefix) + len(middle) + len(suffix)
        if n_tokens < len(piece):  # ids that the tokenizer itself would not have written
            return piece
        suffix = suffix[: max(0, len(suffix) - max(0, n_tokens - room))]
        ids = self._ids
        if is_spm:
            return np.concatenate([[ids.prefix, ids.suffix], suffix, [ids.middle], prefix, middle])
        return np.concatenate([[ids.prefix], prefix, [ids.suffix], suffix, [ids.middle], middle])

    def _whole_characters(self, piece: np.ndarray) -> tuple[int, int, str] | None:
        """`(first, stop, text)` of the tokens of `piece` that are whole characters; a row may begin and end within one.

        None where there is no character, or bytes that are not UTF-8, or a control token such as a marker.
        """
        if np.isin(piece, self._tokenizer.control_ids).any():
            return None
        for first in range(min(_LONGEST_CHARACTER, len(piece))):
            for stop in range(len(piece), max(first, len(piece) - _LONGEST_CHARACTER), -1):
                try:
                    text = self._tokenizer.decode_bytes(piece[first:stop].tolist()).decode()
                except UnicodeDecodeError:
                    continue
                return (first, stop, text) if text else None
        return None


def _pieces(row: np.ndarray, eot_id: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What the row holds of each document, and the separator that ends it: one id, or none at the end of the row."""
    begin = 0
    for end in np.flatnonzero(row == eot_id):
        yield row[begin:end], row[end : end + 1]
        begin = int(end) + 1
    yield row[begin:], row[len(row) :]

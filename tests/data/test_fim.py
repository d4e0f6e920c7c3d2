"""Fill in the middle: what a row holds after it, by brute force and by its inverse, and what it never depends on."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from gpt_lightning.data.characters import CharacterTokenizer
from gpt_lightning.data.datamodule import CorpusDataModule
from gpt_lightning.data.fim import FillInTheMiddle, infilling_prompt
from gpt_lightning.data.prepare.prepare import PrepareConfig, prepare
from gpt_lightning.data.tokenizer import Tokenizer

BYTES = Tokenizer.bytes_only().with_fim_markers()
EOT, PRE, SUF, MID = 256, 257, 258, 259
TEXT = "def f(x):\n    return 'naïve 東京 👩‍👩‍👧 привет'  # <|fim_middle|> <|endoftext|>\n\n"


@pytest.fixture(scope="module")
def trained():
    return Tokenizer.train([TEXT * 3, "the middle of a word and the end of another " * 9], 400).with_fim_markers()


def rearranged(tokenizer, rows, rate=1.0, spm_rate=0.5, numbers=None, seed=0):
    rows = np.array(rows, dtype=np.int64)
    numbers = np.arange(len(rows)) if numbers is None else np.array(numbers)
    found = FillInTheMiddle(tokenizer, seed, rate, spm_rate)(rows, numbers)
    assert found.shape == rows.shape and found.dtype == np.int64
    return found


def in_order(tokens, tokenizer):
    """The text of a piece as it was before, by the definition of PSM and SPM: prefix, middle, suffix. Bytes."""
    pre, suf, mid = tokenizer.fim_ids
    if tokens[:1] != [pre]:
        assert not {pre, suf, mid} & set(tokens)
        return tokenizer.decode_bytes(tokens)
    parts = {pre: [], suf: [], mid: []}
    for token in tokens:
        if token in parts:
            part = parts[token]
        else:
            part.append(token)
    assert [token for token in tokens if token in parts] == [pre, suf, mid][: sum(t in parts for t in tokens)]
    before, after, last = (tokenizer.decode_bytes(part) for part in parts.values())
    return before + last + after  # SPM: nothing before, and the last part is prefix and middle


def pieces(row, eot_id):
    """Token lists between the separators of a row."""
    found = [[]]
    for token in row:
        if token == eot_id:
            found.append([])
        else:
            found[-1].append(token)
    return found


def random_row(draw, tokenizer, length):
    """Documents of 0 to 60 characters, the first of them cut anywhere."""
    ids = []
    while len(ids) < length + 10:
        start, size = draw.integers(len(TEXT)), draw.integers(60)
        ids += [*tokenizer.encode((TEXT * 2)[start : start + size]), tokenizer.eot_id]
    skip = draw.integers(10)
    return ids[skip : skip + length]


@pytest.mark.parametrize("spm_rate", [0.0, 1.0])
def test_a_piece_is_cut_anywhere_and_its_parts_stand_in_the_order_of_the_paper(spm_rate):
    row = [*b"abc", EOT, *b"the next document, which gives its end up"]
    expected = set()
    for i, j in itertools.combinations_with_replacement(range(4), 2):
        p, m, s = (list(part) for part in (b"abc"[:i], b"abc"[i:j], b"abc"[j:]))
        expected.add(tuple([PRE, SUF, *s, MID, *p, *m] if spm_rate else [PRE, *p, SUF, *s, MID, *m]))
    found = rearranged(BYTES, [row] * 2000, spm_rate=spm_rate)
    counts = {tuple(first): 0 for first in expected}
    for line in found:
        first, second = pieces(line.tolist(), EOT)
        counts[tuple(first)] += 1  # KeyError: not one of those that there may be
        assert b"the next document, which gives its end up".startswith(in_order(second, BYTES))
    if not spm_rate:  # of two draws from 4 places, i < j comes twice as often; in SPM some orders coincide
        for i, j in itertools.combinations_with_replacement(range(4), 2):
            share = counts[(PRE, *b"abc"[:i], SUF, *b"abc"[j:], MID, *b"abc"[i:j])] / 2000
            assert share == pytest.approx((1 + (i < j)) / 16, abs=0.025)


@pytest.mark.parametrize("kind", ["bytes", "trained"])
@pytest.mark.parametrize("length", [2, 3, 5, 17, 65])
def test_the_inverse_gives_back_every_piece_but_the_end_of_the_last(trained, kind, length):
    tokenizer, draw = BYTES if kind == "bytes" else trained, np.random.default_rng(length)
    rows = [random_row(draw, tokenizer, length) for _ in range(300)]
    n_rearranged = 0
    for row, found in zip(rows, rearranged(tokenizer, rows).tolist(), strict=True):
        before, after = pieces(row, tokenizer.eot_id), pieces(found, tokenizer.eot_id)
        n_rearranged += sum(piece[:1] == [tokenizer.fim_ids.prefix] for piece in after)
        assert len(after) <= len(before)
        *whole, last = [in_order(piece, tokenizer) for piece in after]
        assert whole == [tokenizer.decode_bytes(piece) for piece in before[: len(whole)]]
        assert tokenizer.decode_bytes(before[len(whole)]).startswith(last)
        n_text = sum(token not in (*tokenizer.fim_ids, tokenizer.eot_id) for token in found)
        assert n_text >= length - 4 * len(after), "the rest of the row is text"
    assert n_rearranged > 100


def test_the_last_piece_keeps_its_middle_whole_where_its_suffix_is_long_enough():
    row = list(b"0123456789" * 4)
    for line in rearranged(BYTES, [row] * 200).tolist():
        pre, suf, mid = (line.index(marker) for marker in (PRE, SUF, MID))
        n_prefix, n_suffix = suf - pre - 1, mid - suf - 1
        text = in_order(line, BYTES)
        assert len(text) == len(row) - 3 and bytes(row).startswith(text)
        if n_suffix and n_prefix:  # PSM: the middle ends where the suffix begins
            assert text[-n_suffix:] == bytes(line[suf + 1 : mid])


@pytest.mark.parametrize("row", [[EOT] * 6, [EOT, 97, EOT, EOT, 98, EOT], [97, EOT, 97, EOT, 97, EOT], [EOT, EOT, 97]])
def test_empty_pieces_stay_empty_and_separators_stay_at_ends(row):
    for line in rearranged(BYTES, [row] * 50).tolist():
        for before, after in zip(pieces(row, EOT), pieces(line, EOT), strict=False):
            assert bool(before) == bool(after) or after == pieces(line, EOT)[-1]
    assert rearranged(BYTES, [[EOT] * 6]).tolist() == [[EOT] * 6]


def test_characters_cut_by_the_window_stay_where_they_are():
    cut = "京".encode()[1:] + b"ab" + "京".encode()[:2]
    for line in rearranged(BYTES, [[*cut, EOT, *b"second and more"]] * 100).tolist():
        assert in_order(pieces(line, EOT)[0], BYTES) == cut and line[0] == PRE
        text = bytes(token for token in pieces(line, EOT)[0] if token < 256)
        assert b"\xba\xac" in text and "京".encode()[:2] in text, "no character is cut in its middle"
    broken = [0xFF, 97, 97, 97, 97, 0xFF, 97, 97, 97, 97, 0xFF, 97]
    assert rearranged(BYTES, [broken]).tolist() == [broken], "not UTF-8 at all"
    marked = [97, PRE, 97, SUF, 97, MID, 97]
    assert rearranged(BYTES, [marked]).tolist() == [marked], "rearranged already"
    spec = json.loads(BYTES.json)
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": 260, "content": "<|user|>"})
    chat = [260, *b"hello", 260]
    assert rearranged(Tokenizer.from_json(json.dumps(spec)), [chat]).tolist() == [chat], "no text gives a control token"


def test_rates_are_shares_of_the_pieces():
    row = [*b"abcdefgh", EOT] * 20 + [97] * 120
    for rate, spm_rate in ((0.5, 0.5), (0.9, 0.1), (0.1, 0.0), (1.0, 1.0)):
        found = [pieces(line, EOT)[:20] for line in rearranged(BYTES, [row] * 200, rate, spm_rate).tolist()]
        moved = [piece for line in found for piece in line if piece[0] == PRE]
        spm = sum(piece[1] == SUF for piece in moved)  # PSM without a prefix begins alike
        without_prefix = 17 / 81  # of two places among 0..8, the smaller is 0
        expected = spm_rate + (1 - spm_rate) * without_prefix
        assert len(moved) / 4000 == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / 4000))
        assert spm / len(moved) == pytest.approx(expected, abs=4 * math.sqrt(0.25 / len(moved)))
        if rate < 1:
            assert len({tuple(piece[0] == PRE for piece in line) for line in found}) > 100, "rows differ"


def test_a_row_follows_from_seed_and_sample_number_alone(trained):
    draw = np.random.default_rng(0)
    rows = [random_row(draw, trained, 65) for _ in range(40)]
    whole = rearranged(trained, rows).tolist()
    backwards = rearranged(trained, rows[::-1], numbers=range(39, -1, -1)).tolist()
    assert whole == backwards[::-1]
    assert whole != rearranged(trained, rows, seed=1).tolist()
    assert whole != rearranged(trained, rows, numbers=range(1, 41)).tolist()


@pytest.fixture(scope="module")
def marked(short_documents, tmp_path_factory):
    """Short documents, with markers in the tokenizer."""
    config = PrepareConfig(vocab_size=400, val_fraction=0.1, near_copies="keep", fim=True)
    return prepare(str(short_documents), tmp_path_factory.mktemp("corpora") / "marked", config)


def data_of(corpus, **settings):
    settings = {"context_length": 32, "micro_batch_size": 4, "fim_rate": 0.5} | settings
    return CorpusDataModule(str(corpus.path), **settings)


def rows_of(data, count):
    batches = itertools.islice(data.train_dataloader(), count)
    return [row for tokens, targets, *_ in batches for row in torch.cat([tokens, targets[:, -1:]], 1).tolist()]


def test_rows_of_a_run_are_those_of_the_order_rearranged(marked):
    found, plain = rows_of(data_of(marked), 20), rows_of(data_of(marked, fim_rate=0.0), 20)
    split, order = marked.split("train"), data_of(marked).order()
    assert plain == split.windows(order.samples(0, 80)[1], 32).rows.tolist()
    assert found == FillInTheMiddle(marked.tokenizer, 0, 0.5, 0.5)(np.array(plain), np.arange(80)).tolist() != plain
    assert rows_of(data_of(marked, fim_rate=0.0, fim_spm_rate=0.0), 20) == plain


def test_neither_ranks_nor_micro_batches_nor_a_resume_change_a_sample(marked, monkeypatch):
    alone, ranks = rows_of(data_of(marked), 12), []
    assert rows_of(data_of(marked, micro_batch_size=8), 6) == alone
    state = data_of(marked).state_dict() | {"samples_consumed": 24}
    for rank in range(2):
        data = data_of(marked)
        data.load_state_dict(state)
        monkeypatch.setattr(type(data), "replica", (rank, 2))
        ranks.append(rows_of(data, 3))
    assert [row for pair in zip(*ranks, strict=True) for row in pair] == alone[24:]


def test_a_window_is_cut_anew_in_every_epoch(marked):
    data = data_of(marked, fim_rate=1.0)
    n_windows = data.order().sizes[0]
    windows = data.order().samples(0, 2 * n_windows)[1]
    rows = rows_of(data, -(-2 * n_windows // 4))
    again = {window: g for g, window in enumerate(windows)}
    assert sum(rows[g] != rows[again[window]] for g, window in enumerate(windows[:n_windows])) > 0.9 * n_windows


@pytest.mark.parametrize("loader", ["val", "test", "predict"])
def test_validation_text_stays_as_it_is(marked, loader):
    found, plain = (list(getattr(data_of(marked, fim_rate=rate), f"{loader}_dataloader")()) for rate in (1.0, 0.0))
    for batch, expected in zip(found, plain, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))


def test_with_a_document_mask_a_rearranged_document_is_one_document(marked):
    tokens, _, positions = next(iter(data_of(marked, fim_rate=1.0, document_mask=True).train_dataloader()))
    assert (tokens == marked.tokenizer.fim_ids.middle).any()
    for row, places in zip(tokens.tolist(), positions.tolist(), strict=True):
        assert [t for t, place in enumerate(places) if place == 0][1:] == [
            t + 1 for t, token in enumerate(row[:-1]) if token == marked.eot_id
        ]


def test_a_corpus_without_markers_is_refused_saying_how_to_prepare_it(short_corpus, tmp_path):
    for tokenizer in (short_corpus.tokenizer, CharacterTokenizer({"a": 0, "b": 1}), None):
        with pytest.raises(ValueError, match=r"fim_rate 0.5: .* <\|fim_prefix\|>.* --data.prepare.fim true") as caught:
            FillInTheMiddle(tokenizer, 0, 0.5, 0.5)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="prepare.fim true"):
        data_of(short_corpus).setup("fit")
    data_of(short_corpus).setup("validate")  # which rearranges nothing
    with pytest.raises(ValueError, match="suffix 'x': the tokenizer has no"):
        infilling_prompt(short_corpus.tokenizer, "a", "x")


@pytest.mark.parametrize("name", ["fim_rate", "fim_spm_rate"])
@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_out_of_range_are_refused(name, share):
    with pytest.raises(ValueError, match=f"{name} is {share}; expected a share from 0 to 1"):
        CorpusDataModule(**{name: share})


def test_a_run_is_not_resumed_with_another_rate(marked):
    state = data_of(marked).state_dict()
    data_of(marked).load_state_dict(state)
    for setting in ({"fim_rate": 0.0}, {"fim_rate": 0.9}, {"fim_spm_rate": 0.1}):
        with pytest.raises(ValueError, match=f"{next(iter(setting))} 0.5, this run has"):
            data_of(marked, **setting).load_state_dict(state)
    off = data_of(marked, fim_rate=0.0).state_dict()
    data_of(marked, fim_rate=0.0, fim_spm_rate=0.9).load_state_dict(off)
    del off["fim_rate"], off["fim_spm_rate"]  # a checkpoint of a version that had none
    data_of(marked, fim_rate=0.0).load_state_dict(off)
    with pytest.raises(ValueError, match="fim_rate 0.0, this run has 0.5"):
        data_of(marked).load_state_dict(off)

"""Held-out text that is copied from another split is found, said and moved; the reference: sets of tuples of words."""

import json
import random
import re
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from gpt_lightning.data.prepare.encode import Splitter, encode
from gpt_lightning.data.prepare.near_copies import DROPPED, HeldOut, decide, describe, find
from gpt_lightning.data.prepare.prepare import PrepareConfig, main, prepare
from gpt_lightning.data.prepare.sources import open_source
from gpt_lightning.data.prepare.word_spans import SPAN_WORDS, WordSpans
from gpt_lightning.data.shards import Shard, Split
from gpt_lightning.data.tokenizer import Tokenizer

BYTES = Tokenizer.bytes_only()
CONFIG = {"tokenizer": "bytes", "val_fraction": 0.2, "test_fraction": 0.2}


def words_of(text):
    """Words by the documented rule, one by one."""
    lower = re.sub("[A-Z]", lambda letter: letter[0].lower(), text)
    return re.findall(r"[\u3000-\U0010ffff]?[a-z0-9\x80-\u2fff]+|[\u3000-\U0010ffff]", lower)


def spans_of(text):
    words = words_of(text)
    starts = range(max(len(words) - SPAN_WORDS, 0) + 1) if words else ()
    return [tuple(words[start : start + SPAN_WORDS]) for start in starts]


def random_text(seed, n_words=200):
    numbers = random.Random(seed)
    return " ".join(str(numbers.randrange(10**6)) for _ in range(n_words))


def split_of(texts):
    """The documents as one shard of bytes."""
    encoded = encode(BYTES, texts)
    return Split((Shard("s", encoded.tokens, np.cumsum(encoded.lengths)),))


def texts_of(corpus):
    """Per split, the documents in order."""
    texts = {}
    for name, split in corpus.splits.items():
        for shard in split.shards:
            for start, end in pairwise([0, *shard.ends.tolist()]):
                texts.setdefault(name, []).append(corpus.tokenizer.decode(shard.tokens[start : end - 1].tolist()))
    return texts


@pytest.fixture
def planted(tmp_path):
    """120 unrelated documents; `plant(split, texts)` puts texts into documents of that split."""
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(120):
        (folder / f"{i}.txt").write_text(random_text(i))
    splitter = Splitter(open_source(str(folder)), CONFIG["val_fraction"], CONFIG["test_fraction"])
    names = {
        split: [f"{i}.txt" for i in range(120) if splitter.split_of(f"{i}.txt") == split]
        for split in ("val", "test", "train")
    }

    def plant(split, *texts):
        for text in texts:
            (folder / names[split].pop()).write_text(text)
        return folder

    return plant


@pytest.mark.parametrize("tokenizer", ["bytes", "trained"])
def test_spans_are_thirteen_words_whatever_the_tokens_they_are_cut_into(tokenizer, corpus):
    documents = [text for _, text in open_source("stdlib").read(lambda name: name < "b")]
    documents += [
        "",
        "?!",
        "one",
        "a b c",
        "naïve 東京タワー, ünï 3x14 don't",
        "word " * 13,
        "ABC-def " * 40,
        "x" * 200_000,
    ]
    tokenizer = BYTES if tokenizer == "bytes" else corpus.tokenizer
    hashes, numbers = WordSpans(tokenizer)(encode(tokenizer, documents).tokens)
    expected = [(number, span) for number, text in enumerate(documents) for span in spans_of(text)]
    assert numbers.tolist() == [number for number, _ in expected]
    named = {}
    for (_, span), hashed in zip(expected, hashes.tolist(), strict=True):
        assert named.setdefault(span, hashed) == hashed  # one hash per span ...
    assert len(set(named.values())) == len(named)  # ... and no two spans with one hash


def test_overlaps_are_those_of_sets_of_words():
    text = [text for _, text in open_source("stdlib").read(lambda name: name.startswith(("encodings/", "email/")))]
    train, val = text[::2], text[1::2]
    copies = find({"train": split_of(train), "val": split_of(val)}, BYTES, 0.2, True, 2)
    seen = {span for document in train for span in spans_of(document)}
    expected = [len(set(spans_of(document)) & seen) / max(1, len(set(spans_of(document)))) for document in val]
    assert copies.overlaps.tolist() == pytest.approx(expected, abs=1e-12)
    assert (copies.goals == DROPPED).tolist() == [share >= 0.2 for share in expected]
    assert 3 < sum(share >= 0.2 for share in expected) < len(val)


def test_copies_edited_and_partial_ones_move_to_training_text_and_others_stay(planted, tmp_path, capsys):
    exact, edited, part, little, laid_out = (random_text(seed) for seed in range(1000, 1005))
    planted("train", exact, edited, part, little, "the " + laid_out)
    words = edited.split()
    words[50] = words[150] = "changed"
    other = random_text(2000).split()
    copies = {
        "exact": exact,
        "edited": " ".join(words),
        "part": " ".join(part.split()[:80] + other[:120]),
        "laid out": laid_out.upper().replace(" ", ";\n\n "),
    }
    stays = " ".join(little.split()[:40] + random_text(2001).split()[:160])  # 28 of 188 spans
    planted("val", copies["exact"], copies["part"], stays)
    folder = planted("test", copies["edited"], copies["laid out"])
    corpus = prepare(str(folder), tmp_path / "corpus", PrepareConfig(**CONFIG))
    texts = texts_of(corpus)
    assert set(copies.values()) <= set(texts["train"]) and stays in texts["val"]
    found = corpus.manifest["near_copies"]
    assert found["found"] == {"val -> train": 2, "test -> train": 2}
    overlaps = {document["starts"][:10]: document["overlap"] for document in found["largest"]}
    n_spans = 200 - SPAN_WORDS + 1
    expected = {
        "exact": 1,
        "edited": 1 - 2 * SPAN_WORDS / n_spans,
        "part": (80 - SPAN_WORDS + 1) / n_spans,
        "laid out": 1,
    }
    for name, text in copies.items():
        assert overlaps[" ".join(text.split())[:10]] == pytest.approx(expected[name], abs=1e-4), name
    assert f"near copies: {describe(found)}" in capsys.readouterr().err
    assert "val -> train 2, test -> train 2" in describe(found)


@pytest.mark.parametrize("near_copies", ["move", "drop", "keep"])
def test_a_document_is_in_one_split_only(planted, tmp_path, near_copies):
    shared, both = random_text(1000), random_text(1001)
    planted("train", shared)
    planted("val", shared + " ", both)
    folder = planted("test", shared + "\n", both + "\n")
    corpus = prepare(str(folder), tmp_path / "corpus", PrepareConfig(**CONFIG, near_copies=near_copies))
    texts = texts_of(corpus)
    splits = {
        text: [name for name in texts if text in texts[name]] for text in (shared + " ", shared + "\n", both + "\n")
    }
    expected = {
        "move": [["train"], ["train"], ["val"]],
        "drop": [[], [], []],
        "keep": [["val"], ["test"], ["test"]],
    }
    assert list(splits.values()) == expected[near_copies]
    every = sorted(text for name in texts for text in texts[name])
    written = sorted(path.read_text() for path in folder.iterdir())
    assert every == [text for text in written if near_copies != "drop" or text not in splits]
    to = {"move": ["train", "train", "val"], "drop": ["dropped"] * 3, "keep": ["kept"] * 3}[near_copies]
    assert sorted(document["to"] for document in corpus.manifest["near_copies"]["largest"]) == to


def test_what_copies_a_document_that_moves_moves_too():
    a, b, c = random_text(1), random_text(2), random_text(3)
    val = [random_text(9), f"{c} {b}", f"{b} {a}"]  # the last copies training text, the one before only the last
    copies = find({"train": split_of([a]), "val": split_of(val)}, BYTES, 0.2, False, 1)
    assert copies.goals.tolist() == [1, 0, 0]
    dropped = find({"train": split_of([a]), "val": split_of(val)}, BYTES, 0.2, True, 1)
    assert dropped.goals.tolist() == [1, 1, DROPPED]  # what is gone is copied by nobody


def test_no_more_spans_are_held_than_asked_and_every_document_is_still_judged():
    texts = [random_text(seed, 100 + seed) for seed in range(300)]
    train = [*texts[:100], *(random_text(seed, 1000) for seed in range(1000, 1020))]
    held, spans = HeldOut(max_spans=3000), WordSpans(BYTES)
    for start in range(0, 300, 50):
        hashes, documents = spans(split_of(texts[start : start + 50]).shards[0].tokens)
        held.add(hashes, documents + start)
    held.seal(300)
    held.meet(spans(split_of(train).shards[0].tokens)[0])
    copies = decide(held, np.ones(300, dtype=np.int64), 0.2, drop=False)
    assert 300 < len(held.met) <= 3000 < len(spans(split_of(texts).shards[0].tokens)[0])
    assert copies.goals.tolist() == [0] * 100 + [1] * 200


def test_memory_does_not_grow_with_the_training_text():
    val, text, peaks = split_of([random_text(0)]), random_text(1, 20_000), []
    for times in (10, 80):
        train = split_of([text] * times)
        tracemalloc.start()
        find({"train": train, "val": val}, BYTES, 0.2, False, 1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert train.n_tokens > 10_000_000 and peaks[1] < 1.1 * peaks[0]


def test_japanese_without_blanks_has_words():
    numbers = random.Random(0)
    text = "".join(chr(numbers.randrange(0x4E00, 0x9000)) for _ in range(300))
    copies = find({"train": split_of([text]), "val": split_of(["。" + text[20:200], text[::-1]])}, BYTES, 0.2, False, 1)
    assert copies.goals.tolist() == [0, 1] and copies.overlaps[0] > 0.9


def test_a_corpus_that_copies_itself_keeps_its_splits_and_says_so(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the same line again and again, as in a toy\n\n" * 500)
    corpus = prepare(str(text), tmp_path / "corpus", PrepareConfig(**CONFIG))
    assert set(corpus.splits) == {"train", "val", "test"}
    found = corpus.manifest["near_copies"]
    assert found["emptied"] == ["val", "test"] and all(" -> kept" in where for where in found["found"])
    assert "nothing else was left of val and test" in capsys.readouterr().err


def test_the_bytes_do_not_depend_on_the_threads_where_documents_move(planted, tmp_path):
    planted("train", *(random_text(seed) for seed in range(1000, 1010)))
    planted("val", *(random_text(seed) + "." for seed in range(1000, 1005)))
    folder = planted("test", *(random_text(seed) + "." for seed in range(1005, 1010)))
    for threads in (1, 3):
        config = PrepareConfig(**CONFIG, shard_tokens=20_000, n_threads=threads)
        prepare(str(folder), tmp_path / f"{threads}", config)
    files = [{path.name: path.read_bytes() for path in (tmp_path / f"{threads}").iterdir()} for threads in (1, 3)]
    assert files[0] == files[1] and "train-00003.bin" in files[0]
    assert json.loads(files[0]["manifest.json"])["near_copies"]["found"] == {"val -> train": 5, "test -> train": 5}


def test_the_tokenizer_never_sees_a_held_out_document(planted, tmp_path, monkeypatch):
    planted("val", "validation " * 50, random_text(1))
    folder = planted("test", "tested " * 50)
    seen = []
    train = Tokenizer.train.__func__
    spy = classmethod(lambda cls, texts, size: train(cls, [seen.append(t) or t for t in texts], size))
    monkeypatch.setattr(Tokenizer, "train", spy)
    corpus = prepare(str(folder), tmp_path / "c", PrepareConfig(**(CONFIG | {"tokenizer": None}), vocab_size=400))
    texts = texts_of(corpus)
    assert seen and not set(seen) & {*texts["val"], *texts["test"]}


def test_the_verb_says_what_was_found(planted, tmp_path, capsys):
    planted("train", random_text(1000))
    folder = planted("val", random_text(1000) + " too")
    options = ["--corpus", str(folder), "--output", str(tmp_path / "c"), "--tokenizer=bytes", "--near_copies=drop"]
    assert main([*options, "--val_fraction=0.2", "--test_fraction=0.2"]) == 0
    assert re.search(r"near copies +1 of \d+ held-out .*val -> dropped 1", capsys.readouterr().out)


@pytest.mark.parametrize(
    "setting", [{"test_fraction": 1.0}, {"test_fraction": -0.1}, {"near_copy_overlap": 0.0}, {"near_copy_overlap": 2.0}]
)
def test_shares_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        PrepareConfig(**setting)

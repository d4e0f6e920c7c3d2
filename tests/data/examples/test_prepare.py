"""Examples as a corpus: whole rows, splits that share no question, and files that are what was written."""

import json

import numpy as np
import pytest

from gpt_lightning.data.corpus import check_digests, open_corpus
from gpt_lightning.data.examples.baselines import baselines, naive_bayes
from gpt_lightning.data.examples.kinds import ExamplesConfig
from gpt_lightning.data.examples.prepare import Packing, prepare_examples
from gpt_lightning.data.tokenizer import Tokenizer

TOKENIZER = Tokenizer.bytes_only()
LABELS = ExamplesConfig(kind="classification")


def packing(config=LABELS, context_length=32, val=0.2, test=0.0):
    return Packing(config, TOKENIZER, context_length, val, test)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def labelled(n=80):
    return [{"text": f"text {i % 40}", "label": "ab"[i % 2], "file": f"f{i % 7}"} for i in range(n)]


def examples_of(corpus, split):
    """Text, and what is to be predicted, of every example, read back from the rows."""
    found = []
    for shard in corpus.split(split).shards:
        for begin, end in zip([0, *shard.ends[:-1]], shard.ends, strict=True):
            targets = shard.targets[begin:end]
            if (targets >= 0).any():
                found.append((TOKENIZER.decode(shard.tokens[begin:end].tolist()), targets[targets >= 0].tolist()))
    return sorted(found)


def test_every_example_is_there_once_and_a_question_in_one_split_alone(tmp_path):
    corpus = prepare_examples(write(tmp_path / "a.jsonl", labelled()), packing(test=0.2), tmp_path)
    by_split = {name: examples_of(corpus, name) for name in ("train", "val", "test")}
    assert sorted(sum(by_split.values(), [])) == sorted((row["text"], ["ab".index(row["label"])]) for row in labelled())
    texts = {name: {text for text, _ in found} for name, found in by_split.items()}
    assert not (texts["train"] & texts["val"] or texts["train"] & texts["test"] or texts["val"] & texts["test"])
    assert corpus.labels == ["a", "b"] and corpus.split("train").n_documents == len(by_split["train"])


def test_a_group_is_in_one_split_alone(tmp_path):
    rows = [{**row, "text": f"{row['file']} {i}"} for i, row in enumerate(labelled())]
    config = ExamplesConfig(kind="classification", group="file")
    corpus = prepare_examples(write(tmp_path / "a.jsonl", rows), packing(config), tmp_path)
    files = [{text.split()[0] for text, _ in examples_of(corpus, name)} for name in ("train", "val")]
    assert not files[0] & files[1] and len(files[0] | files[1]) == 7


def test_files_of_their_own_are_whole_splits_and_what_they_share_is_counted(tmp_path, capsys):
    train, val = write(tmp_path / "a.jsonl", labelled()), write(tmp_path / "b.jsonl", labelled(10))
    corpus = prepare_examples(train, packing(ExamplesConfig(kind="classification", val=val)), tmp_path)
    assert (len(examples_of(corpus, "train")), len(examples_of(corpus, "val"))) == (80, 10)
    assert "10 of the val examples ask what a training example asks" in capsys.readouterr().err


def test_what_is_too_long_is_counted_and_named(tmp_path, capsys):
    rows = [{"prompt": "p" * 9, "completion": "c"} for _ in range(20)]
    rows[3]["prompt"], rows[5]["completion"] = "q" * 40, "d" * 40
    rows = [{**row, "prompt": f"{i}{row['prompt']}"} for i, row in enumerate(rows)]
    path = write(tmp_path / "a.jsonl", rows)
    corpus = prepare_examples(path, packing(ExamplesConfig(kind="completion")), tmp_path)
    told = capsys.readouterr().err
    assert f"1 lose some of what they ask: {path} line 4" in told
    assert f"1 are left out, their answers are too long: {path} line 6" in told
    splits = corpus.examples["splits"]
    assert sum(split["examples"] for split in splits.values()) == 19
    assert not any("d" in text for name in splits for text, _ in examples_of(corpus, name))


def test_it_is_made_once_and_anew_for_another_context_file_or_tokenizer(tmp_path):
    path = write(tmp_path / "a.jsonl", labelled())
    first, again = (prepare_examples(path, packing(), tmp_path) for _ in range(2))
    assert first.path == again.path and first.identity == again.identity
    assert prepare_examples(path, packing(context_length=64), tmp_path).path != first.path
    write(tmp_path / "a.jsonl", labelled(78))
    assert prepare_examples(path, packing(), tmp_path).path != first.path
    with pytest.raises(ValueError, match="packed into rows of 32 tokens, and data.context_length is 16"):
        first.split("train").windows([0], 16)


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00000.targets", "val-00000.positions"])
def test_a_file_that_was_changed_since_is_named(tmp_path, name):
    corpus = prepare_examples(write(tmp_path / "a.jsonl", labelled()), packing(), tmp_path)
    check_digests(corpus)
    data = bytearray((corpus.path / name).read_bytes())
    (corpus.path / name).write_bytes(data[:-1])
    with pytest.raises(ValueError, match=f"{name}: expected {len(data)} bytes, found {len(data) - 1}"):
        open_corpus(corpus.path)
    data[7] ^= 1
    (corpus.path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}: sha256 should be"):
        check_digests(open_corpus(corpus.path))


def test_labels_that_training_does_not_have_are_named(tmp_path):
    train = write(tmp_path / "a.jsonl", labelled())
    val = write(tmp_path / "b.jsonl", [*labelled(3), {"text": "x", "label": "c"}])
    with pytest.raises(ValueError, match=r"b.jsonl line 4: the val example has the label 'c', which no training"):
        prepare_examples(train, packing(ExamplesConfig(kind="classification", val=val)), tmp_path)
    one = write(tmp_path / "c.jsonl", [{"text": str(i), "label": "a"} for i in range(9)])
    with pytest.raises(ValueError, match="all training examples have the label 'a'; expected at least two"):
        prepare_examples(one, packing(), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_naive_bayes_is_that_of_scikit_learn():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    bayes = pytest.importorskip("sklearn.naive_bayes")
    random = np.random.default_rng(0)
    words = [[f"w{random.integers(9) + 3 * (i % 3)}" for _ in range(6)] for i in range(90)]
    labels = np.arange(90) % 3
    counts = text.CountVectorizer().fit(" ".join(one) for one in words[:60])
    train, val = (counts.transform(" ".join(one) for one in part) for part in (words[:60], words[60:]))
    expected = bayes.MultinomialNB().fit(train, labels[:60]).predict(val)
    assert naive_bayes(words[:60], labels[:60], words[60:], 3).tolist() == expected.tolist()


def test_baselines_are_of_the_split_that_is_scored(tmp_path):
    rows = [{"text": f"{'good' if i % 4 else 'bad'} number {i}", "label": "yn"[not i % 4]} for i in range(200)]
    corpus = prepare_examples(write(tmp_path / "a.jsonl", rows), packing(), tmp_path)
    found = baselines(corpus, "val")
    labels = [label for _, (label,) in examples_of(corpus, "val")]
    assert found["naive_bayes_accuracy"] == 1.0
    assert found["majority_accuracy"] == pytest.approx(np.mean([label == 1 for label in labels]))

"""What needs no network: the most frequent label, and naive Bayes over words. A classifier that loses to it has a bug.

Multinomial naive Bayes with add-one smoothing (McCallum & Nigam 1998) counts words, runs of letters and digits, of the
text that the model sees, and knows nothing of their order.
"""

import re
from collections.abc import Sequence

import numpy as np

from gpt_lightning.data.corpus import Corpus
from gpt_lightning.data.examples.packed import PackedSplit

BASELINES = {"majority class": "majority_accuracy", "naive Bayes": "naive_bayes_accuracy"}
_WORD = re.compile(r"\w+")


def baselines(corpus: Corpus, split: str) -> dict[str, float]:
    """Accuracy of both on a split of a classification's corpus, trained on its training examples; keys: BASELINES."""
    (train_words, train), (words, labels) = (_read(corpus, name) for name in ("train", split))
    majority = np.bincount(train).argmax()
    guessed = naive_bayes(train_words, train, words, len(corpus.labels))
    found = ((labels == majority).mean(), (guessed == labels).mean())
    return {key: float(accuracy) for key, accuracy in zip(BASELINES.values(), found, strict=True)}


def naive_bayes(
    train: Sequence[list[str]], labels: np.ndarray, words: Sequence[list[str]], n_labels: int
) -> np.ndarray:
    """The likeliest label of each list of words; words that no training text has say nothing."""
    known = {word: i for i, word in enumerate(dict.fromkeys(word for text in train for word in text))}
    counts = np.ones((n_labels, len(known)))
    for label, text in zip(labels, train, strict=True):
        np.add.at(counts[label], [known[word] for word in text], 1)
    likelihood = np.log(counts / counts.sum(axis=1, keepdims=True))
    prior = np.log(np.bincount(labels, minlength=n_labels).clip(min=1) / len(labels))
    found = [[known[word] for word in text if word in known] for text in words]
    return np.array([int((prior + likelihood[:, text].sum(axis=1)).argmax()) for text in found], dtype=np.int64)


def _read(corpus: Corpus, name: str) -> tuple[list[list[str]], np.ndarray]:
    """Words and label of every example of a split."""
    split, tokenizer = corpus.split(name), corpus.tokenizer
    assert isinstance(split, PackedSplit) and tokenizer is not None
    words, labels = [], []
    for shard in split.shards:
        begins = [0, *shard.ends[:-1].tolist()]
        for begin, end in zip(begins, shard.ends.tolist(), strict=True):
            label = int(shard.targets[end - 1])
            if label >= 0:  # and no padding
                words.append(_WORD.findall(tokenizer.decode(shard.tokens[begin:end].tolist()).lower()))
                labels.append(label)
    return words, np.array(labels, dtype=np.int64)

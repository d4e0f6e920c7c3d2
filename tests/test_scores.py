"""Scores of labels: against another library, and TACRED's own, by hand."""

import pytest
import torch

from gpt_lightning.scores import Scores, from_confusion, micro_f1

GOLD = [0, 0, 0, 1, 1, 2, 2, 2, 3, 0]
SAID = [0, 1, 0, 1, 0, 2, 2, 1, 0, 2]  # label 0 is no relation


def counts(gold=GOLD, said=SAID, n=4):
    found = torch.zeros(n, n, dtype=torch.float64)
    for g, s in zip(gold, said, strict=True):
        found[g, s] += 1
    return found


def test_tacreds_score_is_the_one_of_a_table_by_hand():
    """Of ten rows 2, 4, 6, 7, 8 and 10 are guessed as relations, 4 to 9 are relations, and 4, 6 and 7 are right."""
    precision, recall = 3 / 6, 3 / 6
    assert micro_f1(counts(), 0).item() == pytest.approx(2 * precision * recall / (precision + recall))
    assert micro_f1(counts([1, 2], [0, 0]), 0) == 0 and micro_f1(counts([0], [0]), 0) == 0


def test_scores_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        gold, said = (torch.randint(5, (40,), generator=random).tolist() for _ in range(2))
        found = from_confusion(counts(gold, said, 5))
        assert found["accuracy"].item() == pytest.approx(metrics.accuracy_score(gold, said))
        assert found["macro_f1"].item() == pytest.approx(metrics.f1_score(gold, said, average="macro"))
        expected = metrics.f1_score(gold, said, labels=[1, 2, 3, 4], average="micro", zero_division=0)
        assert micro_f1(counts(gold, said, 5), 0).item() == pytest.approx(expected)


def test_batches_add_up_and_a_new_split_begins_anew():
    scores = Scores(4)
    scores.negative = 0
    for _ in range(2):
        for part in (slice(0, 3), slice(3, 10)):
            gold, said = torch.tensor(GOLD[part]), torch.tensor(SAID[part])
            scores.update(torch.ones(1, len(gold)), gold[None], torch.tensor(0.0))
            scores.update_labels(said, gold)
        found = scores.compute()
        assert found.keys() == {"loss", "accuracy", "macro_f1", "micro_f1"}
        assert found["loss"] == 1 and found["accuracy"].item() == pytest.approx(0.5)

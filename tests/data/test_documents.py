"""Where a token stands in its own document: positions made from the separators of a row, as a third part of a batch."""

import itertools

import numpy as np
import pytest
import torch

from gpt_lightning.data.batches import document_positions
from gpt_lightning.data.characters import CharacterTokenizer
from gpt_lightning.data.datamodule import CorpusDataModule

EOT = 7


def data_of(corpus, **settings):
    return CorpusDataModule(str(corpus.path), context_length=32, micro_batch_size=4, **settings)


def counted(row, eot_id):
    """The positions of a row by a loop: one more than the token before, 0 after a separator."""
    positions = [0]
    for token in row[:-1]:
        positions.append(0 if token == eot_id else positions[-1] + 1)
    return positions


def test_positions_restart_after_each_separator():
    row = [1, 2, EOT, 3, 4, 5, EOT, EOT, 6]
    assert document_positions(np.array([row]), EOT).tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 0]]


@pytest.mark.parametrize("n_ids", [1, 2, 8, 100])
def test_positions_of_random_rows_are_those_of_a_loop(n_ids):
    rows = np.random.default_rng(n_ids).integers(n_ids, size=(50, 33))
    found = document_positions(rows, EOT % n_ids)
    assert found.dtype == np.int64
    assert found.tolist() == [counted(row, EOT % n_ids) for row in rows.tolist()]


@pytest.mark.parametrize("loader", ["train", "val", "test", "predict"])
def test_every_batch_has_positions_with_the_mask_and_the_same_two_parts_without(short_corpus, loader):
    masked, plain = (
        list(itertools.islice(getattr(data_of(short_corpus, document_mask=on), f"{loader}_dataloader")(), 40))
        for on in (True, False)
    )
    assert {len(batch) for batch in plain} == {2}
    for (tokens, targets, positions), (same_tokens, same_targets) in zip(masked, plain, strict=True):
        assert torch.equal(tokens, same_tokens) and torch.equal(targets, same_targets)
        assert positions.dtype == torch.int64 and positions.is_contiguous()
        assert positions.tolist() == [counted(row, short_corpus.eot_id) for row in tokens.tolist()]
    assert all((positions[:, 1:] == 0).any() for _, _, positions in masked[:2]), "rows hold several documents"


def test_a_corpus_without_a_separator_is_refused_in_one_line(tmp_path):
    np.array([0, 1] * 500, dtype=np.uint16).tofile(tmp_path / "train.bin")
    CorpusDataModule(str(tmp_path), context_length=32).setup()
    for tokenizer in (None, CharacterTokenizer({"a": 0, "b": 1})):
        if tokenizer:
            tokenizer.save(tmp_path / "tokenizer.json")
        for stage in (None, "fit", "validate"):
            with pytest.raises(ValueError, match=r"document_mask needs .* leave it off") as caught:
                CorpusDataModule(str(tmp_path), context_length=32, document_mask=True).setup(stage)
            assert "\n" not in str(caught.value)


def test_a_run_is_not_resumed_with_another_mask(corpus):
    state = data_of(corpus, document_mask=True).state_dict()
    data_of(corpus, document_mask=True).load_state_dict(state)
    with pytest.raises(ValueError, match="document_mask True, this run has False"):
        data_of(corpus).load_state_dict(state)
    older = data_of(corpus).state_dict()
    del older["document_mask"]  # a checkpoint of a version that had none
    data_of(corpus).load_state_dict(older)
    with pytest.raises(ValueError, match="document_mask False, this run has True"):
        data_of(corpus, document_mask=True).load_state_dict(older)

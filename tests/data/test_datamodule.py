"""The DataModule under a real Trainer: batches, ranks, resume, and silence on the happy path."""

import itertools
import pickle
import shutil

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from gpt_lightning.data.compression import text_of
from gpt_lightning.data.corpus import open_corpus
from gpt_lightning.data.datamodule import CorpusDataModule
from gpt_lightning.data.prepare.prepare import PrepareConfig, prepare
from gpt_lightning.data.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning's own use of torch, with any loader


class Recorder(LightningModule):
    """The smallest module that trains; it keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.counted, self.validated = [], [], []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0].clone())
        self.counted.append(self.trainer.datamodule.samples_consumed)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch[1].clone())
        return batch[1]

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def module(corpus, **settings):
    settings = {"context_length": 32, "micro_batch_size": 4, "batch_tokens": 128, "seed": 1} | settings
    return CorpusDataModule(str(corpus.path), **settings)


def trainer(folder, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet["enable_checkpointing"] = False
    return Trainer(default_root_dir=folder, max_epochs=-1, **quiet, **settings)


def as_rank(data, rank, world_size, monkeypatch):
    monkeypatch.setattr(type(data), "replica", (rank, world_size))
    return data


def take(loader, count):
    return list(itertools.islice(loader, count))


def test_batches_are_windows_of_the_corpus_and_targets_the_next_tokens(corpus):
    data = module(corpus)
    split = corpus.split("train")
    ids, windows = data.order().samples(0, 20)
    rows = split.windows(windows, 32).rows
    for i, (tokens, targets) in enumerate(take(data.train_dataloader(), 5)):
        assert tokens.dtype == targets.dtype == torch.int64 and tokens.is_contiguous() and targets.is_contiguous()
        assert tokens.tolist() == rows[4 * i : 4 * i + 4, :-1].tolist()
        assert targets.tolist() == rows[4 * i : 4 * i + 4, 1:].tolist()


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_samples_that_one_rank_would_take(corpus, monkeypatch, world_size):
    alone = [row for tokens, _ in take(module(corpus).train_dataloader(), 8) for row in tokens.tolist()]
    ranks = []
    for rank in range(world_size):
        data = as_rank(module(corpus), rank, world_size, monkeypatch)
        ranks.append([tokens.tolist() for tokens, _ in take(data.train_dataloader(), 8 // world_size)])
    for step in range(8 // world_size):
        together = alone[4 * world_size * step : 4 * world_size * (step + 1)]
        for rank in range(world_size):
            assert ranks[rank][step] == together[rank::world_size]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_covers_each_target_once_over_all_ranks(corpus, monkeypatch, world_size):
    scored, n_batches = [], set()
    for rank in range(world_size):
        loader = as_rank(module(corpus), rank, world_size, monkeypatch).val_dataloader()
        batches = list(loader)
        assert len(batches) == len(loader) and {tokens.shape for tokens, _ in batches} == {(4, 32)}
        n_batches.add(len(batches))
        scored += [targets[targets != -100] for _, targets in batches]
    expected = np.concatenate([shard.tokens[1:] for shard in corpus.split("val").shards])
    assert len(n_batches) == 1
    assert np.array_equal(np.sort(torch.cat(scored).numpy()), np.sort(expected))


def test_the_validation_text_is_what_the_windows_score(corpus):
    data = module(corpus)
    scored = [target for _, targets in data.val_dataloader() for target in targets[targets != -100].tolist()]
    text = b"".join(text_of(data.fixed_split("val"), corpus.tokenizer, skip=1))
    assert text == corpus.tokenizer.decode_bytes(scored)
    assert len(text) == int(data.token_bytes[scored].sum())


@pytest.mark.filterwarnings("error", "ignore:.*LeafSpec")
def test_the_trainer_counts_what_it_trains_on_and_nothing_warns(corpus, tmp_path):
    data, recorder = module(corpus), Recorder()
    fit = trainer(tmp_path, max_steps=6, accumulate_grad_batches=2, val_check_interval=4, check_val_every_n_epoch=None)
    fit.fit(recorder, data)
    assert recorder.counted == [4 * (i + 1) for i in range(12)]
    assert data.samples_consumed == 48
    expected = [tokens for tokens, _ in take(module(corpus).train_dataloader(), 12)]
    assert torch.equal(torch.stack(recorder.seen), torch.stack(expected))
    n_validations, n_sanity = 3, 2
    assert len(recorder.validated) == n_validations * len(data.val_dataloader()) + n_sanity
    fit.validate(recorder, data)
    fit.test(recorder, data)
    fit.predict(recorder, data)
    assert data.samples_consumed == 48


def test_a_checkpoint_resumes_with_the_next_sample(corpus, tmp_path):
    whole, parts = Recorder(), []
    trainer(tmp_path, max_steps=10, num_sanity_val_steps=0).fit(whole, module(corpus))
    for steps, checkpoint in ((4, None), (10, tmp_path / "four.ckpt")):
        part, run = Recorder(), trainer(tmp_path, max_steps=steps, num_sanity_val_steps=0)
        run.fit(part, module(corpus), ckpt_path=checkpoint, weights_only=checkpoint and True)
        run.save_checkpoint(tmp_path / "four.ckpt")
        parts += part.seen
    assert torch.equal(torch.stack(parts), torch.stack(whole.seen))


def test_a_new_number_of_ranks_continues_the_same_samples(corpus, monkeypatch):
    alone = [row for tokens, _ in take(module(corpus).train_dataloader(), 10) for row in tokens.tolist()]
    state = module(corpus).state_dict() | {"samples_consumed": 24}
    rows = []
    for rank in range(2):
        data = as_rank(module(corpus), rank, 2, monkeypatch)
        data.load_state_dict(state)
        rows.append(next(iter(data.train_dataloader()))[0].tolist())
    assert [row for pair in zip(*rows, strict=True) for row in pair] == alone[24:32]


def test_a_state_of_other_data_is_refused_naming_both_values(corpus, text_folder, tmp_path):
    state = module(corpus).state_dict()
    module(corpus).load_state_dict(state)
    with pytest.raises(ValueError, match="seed 1, this run has 2"):
        module(corpus, seed=2).load_state_dict(state)
    with pytest.raises(ValueError, match="context_length 32, this run has 16"):
        module(corpus, context_length=16).load_state_dict(state)
    other = prepare(str(text_folder), tmp_path / "other", PrepareConfig(vocab_size=300))
    with pytest.raises(ValueError, match=f"corpus {corpus.identity}, this run has {other.identity}"):
        module(other).load_state_dict(state)


def test_raw_text_is_prepared_on_first_use_and_only_once(text_folder, tmp_path):
    config = PrepareConfig(vocab_size=300)
    data = CorpusDataModule(str(text_folder), prepare=config, corpora_dir=str(tmp_path / "corpora"))
    assert not (tmp_path / "corpora").exists()
    assert (data.vocab_size, data.eot_id) == (300, 299)
    (folder,) = (tmp_path / "corpora").iterdir()
    made = (folder / "manifest.json").stat().st_mtime_ns
    again = CorpusDataModule(str(text_folder), prepare=config, corpora_dir=str(tmp_path / "corpora"))
    again.prepare_data()
    assert again.identity == data.identity == open_corpus(folder).identity
    assert (folder / "manifest.json").stat().st_mtime_ns == made


@pytest.fixture
def second(text_folder, corpus, tmp_path):
    """Another corpus with the tokenizer of the first."""
    folder = tmp_path / "text"
    folder.mkdir()
    for name in ("ast", "bisect", "cmd"):
        shutil.copy(text_folder / f"{name}.txt", folder)
    return prepare(str(folder), tmp_path / "second", PrepareConfig(tokenizer=str(corpus.path / "tokenizer.json")))


def test_a_mixture_draws_from_each_corpus_by_weight_and_validates_on_all(corpus, second):
    data = CorpusDataModule({str(corpus.path): 3.0, str(second.path): 1.0}, context_length=32, micro_batch_size=64)
    ids, windows = data.order().samples(0, 64 * 32)
    assert (ids == 1).sum() == 512
    tokens = torch.cat([batch[0] for batch in take(data.train_dataloader(), 32)]).numpy()
    for i, opened in enumerate((corpus, second)):
        assert np.array_equal(tokens[ids == i], opened.split("train").windows(windows[ids == i], 32).tokens)
    n_targets = sum(int((targets != -100).sum()) for _, targets in data.val_dataloader())
    assert n_targets == sum(len(s.tokens) - 1 for opened in (corpus, second) for s in opened.split("val").shards)
    assert data.identity not in (corpus.identity, second.identity)


def test_what_is_scored_may_be_another_corpus_than_what_is_trained_on(corpus, second, text_folder, tmp_path):
    data = CorpusDataModule(corpus=str(corpus.path), val_corpus=str(second.path))
    assert data.fixed_split("val").n_bytes == second.split("val").n_bytes != corpus.split("val").n_bytes
    (batch,) = take(data.train_dataloader(), 1)
    windows = corpus.split("train").windows(data.order().samples(0, data.micro_batch_size)[1], data.context_length)
    assert np.array_equal(batch[0].numpy(), windows.tokens)
    other = prepare(str(text_folder / "abc.txt"), tmp_path / "other", PrepareConfig(vocab_size=300))
    data = CorpusDataModule(corpus=str(corpus.path), val_corpus=str(other.path))
    with pytest.raises(ValueError, match="have different tokenizers"):
        data.prepare_data()


def test_a_mixture_of_tokenizers_is_refused_naming_both(corpus, text_folder, tmp_path):
    other = prepare(str(text_folder), tmp_path / "bytes", PrepareConfig(tokenizer="bytes"))
    data = CorpusDataModule({str(corpus.path): 1.0, str(other.path): 1.0})
    with pytest.raises(ValueError, match=f"corpora {corpus.path} and {other.path} have different tokenizers"):
        data.prepare_data()


@pytest.mark.parametrize(
    ("batch_tokens", "nearest"), [(8000, "4096 or 8192"), (8193, "8192 or 12288"), (100, "such as 4096"), (0, "4096")]
)
def test_batch_tokens_that_do_not_divide_name_the_nearest_ones_that_do(batch_tokens, nearest):
    data = CorpusDataModule(context_length=256, micro_batch_size=8, batch_tokens=batch_tokens)
    with pytest.raises(ValueError, match=nearest):
        data.accumulation(world_size=2)
    assert CorpusDataModule(context_length=256, micro_batch_size=8, batch_tokens=12288).accumulation(2) == 3


def test_a_corpus_shorter_than_a_window_is_refused(corpus):
    n_tokens = corpus.split("train").n_tokens
    with pytest.raises(ValueError, match=f"has {n_tokens} training tokens; context_length 1000000"):
        module(corpus, context_length=1_000_000).setup("fit")


def test_ids_outside_the_vocabulary_are_refused_when_a_batch_is_made(tmp_path):
    np.array([70, 999] * 500, dtype=np.uint16).tofile(tmp_path / "train.bin")
    Tokenizer.bytes_only().save(tmp_path / "tokenizer.json")
    data = CorpusDataModule(str(tmp_path), context_length=32)
    with pytest.raises(ValueError, match="token ids 70 to 999 found, the vocabulary has 257"):
        next(iter(data.train_dataloader()))


def test_the_data_module_can_be_sent_to_a_spawned_process(corpus):
    data = module(corpus)
    data.setup("fit")
    sent = pickle.dumps(data)
    assert len(sent) < 10_000
    assert torch.equal(next(iter(pickle.loads(sent).train_dataloader()))[0], next(iter(data.train_dataloader()))[0])


@pytest.mark.parametrize("settings", [{"context_length": 0}, {"micro_batch_size": 0}, {"corpus": {}}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="expected"):
        CorpusDataModule(**settings)

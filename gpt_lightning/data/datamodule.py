"""Corpora -> batches for the Lightning Trainer. The only file of this room that needs torch.

The state of the data is one number, `samples_consumed`. It counts over all ranks and grows in the hook that sees
exactly the batches that are trained on; the iterator itself runs ahead, for Lightning prefetches. So neither a restart
nor another number of ranks changes which windows a step sees (data/order.py, data/batches.py).
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from gpt_lightning.data.batches import BatchShape, FixedBatches, TrainBatches, accumulation, document_positions
from gpt_lightning.data.characters import AnyTokenizer
from gpt_lightning.data.corpus import Corpus
from gpt_lightning.data.examples.kinds import ExamplesConfig
from gpt_lightning.data.examples.packed import AnySplit, joined
from gpt_lightning.data.fim import FillInTheMiddle
from gpt_lightning.data.mixture import (
    BATCH_TOKENS,
    CONTEXT_LENGTH,
    CORPORA_DIR,
    CORPUS,
    MICRO_BATCH_SIZE,
    Reading,
    as_mixture,
    check_documents,
    of_most_ids,
    open_mixture,
    open_val_corpora,
    training_order,
)
from gpt_lightning.data.order import Order
from gpt_lightning.data.prepare.prepare import PrepareConfig
from gpt_lightning.data.shards import Windows

TensorBatch = tuple[Tensor, ...]  # tokens, targets, maybe positions: int64 [micro_batch_size, context_length] each


class CorpusDataModule(LightningDataModule):
    """Windows of one corpus or of a weighted mixture. Raw text is prepared first; nothing is read before it is needed.

    Args:
        corpus: what to train on: stdlib, a text file, a folder, .jsonl, hf:NAME (prepared on first use), a prepared
            corpus, or token files of nanoGPT (with their meta.pkl), Megatron or datatrove; or a mapping of several of
            these to weights.
        context_length: tokens per sequence.
        micro_batch_size: sequences per device per forward.
        batch_tokens: tokens per optimizer step, over all devices; accumulation follows from it.
        seed: selects the sample order.
        val_corpus: whose validation and test splits are scored; those of what is trained on when not given.
        document_mask: a token sees its own document only, and positions restart at each; needs a separator id.
        fim_rate: share of the documents in a training row that are rearranged for filling in the middle (data/fim.py);
            needs prepare.fim. Validation text stays as it is.
        fim_spm_rate: share of those that are written suffix first (SPM).
        prepare: how raw text becomes a corpus.
        examples: what the rows of `corpus` are, where they are examples to fine-tune on.
        corpora_dir: folder for corpora prepared on first use.
        base: the run whose tokenizer examples are encoded with; comes from model.init_from.
    """

    def __init__(
        self,
        corpus: str | dict[str, float] = CORPUS,
        context_length: int = CONTEXT_LENGTH,
        micro_batch_size: int = MICRO_BATCH_SIZE,
        batch_tokens: int = BATCH_TOKENS,
        seed: int = 0,
        val_corpus: str | None = None,
        document_mask: bool = False,
        fim_rate: float = 0.0,
        fim_spm_rate: float = 0.5,
        prepare: PrepareConfig = PrepareConfig(),  # noqa: B008 (frozen)
        examples: ExamplesConfig = ExamplesConfig(),  # noqa: B008
        corpora_dir: str = CORPORA_DIR,
        base: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("context_length", context_length), ("micro_batch_size", micro_batch_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        for name, share in (("fim_rate", fim_rate), ("fim_spm_rate", fim_spm_rate)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; expected a share from 0 to 1")
        self.mixture = as_mixture(corpus)
        self.context_length, self.micro_batch_size, self.batch_tokens = context_length, micro_batch_size, batch_tokens
        self.seed, self.reading = seed, Reading(prepare, corpora_dir, examples, context_length, base)
        self.document_mask, self.fim_rate, self.fim_spm_rate = document_mask, fim_rate, fim_spm_rate
        self.val_corpus = val_corpus
        self.samples_consumed = 0
        self._corpora, self._val_corpora = list[Corpus](), list[Corpus]()

    @property
    def corpora(self) -> list[Corpus]:
        """The opened corpora, prepared first where they are still text. Raises ValueError as both do."""
        if not self._corpora:
            self._corpora = open_mixture(self.mixture, self.reading)
        return self._corpora

    @property
    def val_corpora(self) -> list[Corpus]:
        """Those whose validation and test splits are scored."""
        if not self._val_corpora:
            self._val_corpora = open_val_corpora(self.val_corpus, self.corpora, self.reading)
        return self._val_corpora

    @property
    def vocab_size(self) -> int:
        return of_most_ids(self.corpora).vocab_size

    @property
    def tokenizer(self) -> AnyTokenizer | None:
        """None where token files of another program come without one."""
        return of_most_ids(self.corpora).tokenizer

    @property
    def labels(self) -> list[str]:
        """Names of the classes, where targets are their numbers."""
        return self.corpora[0].labels

    negative = property(lambda self: self.corpora[0].negative, doc="The number of the label of no relation, if any.")

    @property
    def eot_id(self) -> int | None:
        return self.corpora[0].eot_id

    @property
    def token_bytes(self) -> Tensor | None:
        """int64 [vocab_size]: bytes of text per id; None without a tokenizer, and where targets are no text."""
        tokenizer = None if self.labels else self.tokenizer
        return None if tokenizer is None else torch.from_numpy(tokenizer.token_bytes.copy())

    @property
    def identity(self) -> str:
        """Hex digest of all token ids and the vocabulary; of several corpora, a digest of theirs in order."""
        digests = [corpus.identity for corpus in self.corpora]
        return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()

    @property
    def replica(self) -> tuple[int, int]:
        """This process's data-parallel rank, and how many there are; (0, 1) outside a Trainer."""
        placed = self.trainer.distributed_sampler_kwargs if self.trainer else None
        return (placed["rank"], placed["num_replicas"]) if placed else (0, 1)

    def accumulation(self, world_size: int) -> int:
        """Micro-steps per optimizer step. Raises ValueError naming the nearest batch_tokens that divide evenly."""
        return accumulation(self.batch_tokens, self.micro_batch_size, self.context_length, world_size)

    def order(self) -> Order:
        """The sample order. Raises ValueError if a corpus is shorter than one window."""
        return training_order(self.corpora, list(self.mixture.values()), self.seed, self.context_length)

    def fixed_split(self, name: str) -> AnySplit:
        """The named split of every corpus that is scored, as one; val stands in where one has no test split."""
        split = joined([c.split(name if name in c.splits else "val") for c in self.val_corpora])
        if not split.n_validation_windows(self.context_length):
            scored = self.val_corpus or ", ".join(self.mixture)
            raise ValueError(f"the {name} split of {scored} has no target; bring more text")
        return split

    def prepare_data(self) -> None:
        """Prepare what is still text, once per machine."""
        _ = self.val_corpora

    def setup(self, stage: str | None = None) -> None:
        """Open the corpora. Raises ValueError for one too short, or without the separator that a mask needs."""
        if self.document_mask:
            check_documents(self.corpora)
        if stage in (None, "fit"):
            self.order()
            self._rearrange()
        self.fixed_split("val")

    def train_dataloader(self) -> TrainBatches[TensorBatch]:
        splits, start = [corpus.split("train") for corpus in self.corpora], lambda: self.samples_consumed
        return TrainBatches(self.order(), splits, self._shape(), start, self._to_batch, self._rearrange())

    def val_dataloader(self) -> FixedBatches[TensorBatch]:
        return FixedBatches(self.fixed_split("val"), self._shape(), self._to_batch)

    predict_dataloader = val_dataloader

    def test_dataloader(self) -> FixedBatches[TensorBatch]:
        return FixedBatches(self.fixed_split("test"), self._shape(), self._to_batch)

    def _rearrange(self) -> FillInTheMiddle | None:
        if not self.fim_rate:
            return None
        if any(corpus.examples for corpus in self.corpora):
            raise ValueError("data.fim_rate rearranges text, and data.corpus are examples; leave it out")
        return FillInTheMiddle(self.tokenizer, self.seed, self.fim_rate, self.fim_spm_rate)

    def _shape(self) -> BatchShape:
        return BatchShape(self.micro_batch_size, self.context_length, *self.replica)

    def _to_batch(self, windows: Windows) -> TensorBatch:
        """Raises ValueError for an id that the vocabulary does not have."""
        tokens, targets, positions = windows
        if tokens.max() >= self.vocab_size or tokens.min() < 0 or targets.max() >= self.vocab_size:
            largest = max(tokens.max(), targets.max())
            raise ValueError(
                f"{', '.join(self.mixture)}: token ids {tokens.min()} to {largest} found, the vocabulary has "
                f"{self.vocab_size}; is this the right tokenizer?"
            )
        if positions is None and self.document_mask and self.eot_id is not None:
            positions = document_positions(tokens, self.eot_id)
        arrays = [tokens, targets, *([] if positions is None else [positions])]
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        batch = [torch.from_numpy(array).contiguous() for array in arrays]
        return tuple(tensor.pin_memory() if on_gpu else tensor for tensor in batch)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Count what is trained on; validation and the sanity check pass here too and are not."""
        if self.trainer is not None and self.trainer.training:
            self.samples_consumed += self.micro_batch_size * self.replica[1]
        return batch

    def _identity(self) -> dict[str, Any]:
        """What a resumed run may not change: which samples there are, and what a token of them sees."""
        return {
            "seed": self.seed,
            "context_length": self.context_length,
            "corpus": self.identity,
            "weights": list(self.mixture.values()),
            "document_mask": self.document_mask,
            "fim_rate": self.fim_rate,
            "fim_spm_rate": self.fim_spm_rate if self.fim_rate else 0.0,
        }

    def state_dict(self) -> dict[str, Any]:
        """`samples_consumed` over all ranks, and what has to be the same for it to mean the same samples."""
        return {"samples_consumed": self.samples_consumed} | self._identity()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken. Raises ValueError if the samples would not be the same ones."""
        for name, now in self._identity().items():
            before = state_dict.get(name, type(now)())  # what a checkpoint is too old to know was off in it
            if before != now:
                raise ValueError(
                    f"the checkpoint was trained with {name} {before}, this run has {now}; "
                    "resume with the same data settings or start a new run"
                )
        self.samples_consumed = state_dict["samples_consumed"]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_corpora": [], "_val_corpora": []}  # a spawned process maps the files itself

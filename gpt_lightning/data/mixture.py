"""What a run reads, before Lightning is needed: the defaults of its data settings, and the opened corpora of a mixture.

Shared by the data module, which trains on them, and by what only looks at them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt_lightning.data.characters import read_tokenizer, tokenizer_beside
from gpt_lightning.data.corpus import Corpus, check_digests, is_corpus, open_corpus
from gpt_lightning.data.examples.kinds import ExamplesConfig
from gpt_lightning.data.examples.prepare import Packing, prepare_examples
from gpt_lightning.data.order import Order
from gpt_lightning.data.prepare.prepare import PrepareConfig, default_output, prepare
from gpt_lightning.data.tokenizer import Tokenizer

CORPUS = "stdlib"
CORPORA_DIR = "corpora"
CONTEXT_LENGTH = 256  # tokens
MICRO_BATCH_SIZE = 16  # sequences
BATCH_TOKENS = 8192
MAX_TOKENS = 300_000_000


def as_mixture(corpus: str | Mapping[str, float]) -> dict[str, float]:
    """Sources and their weights. Raises ValueError when there is none."""
    if not corpus:
        raise ValueError("corpus is empty; expected a source, a corpus folder or a mapping of them to weights")
    return {corpus: 1.0} if isinstance(corpus, str) else dict(corpus)


@dataclass(frozen=True)
class Reading:
    """How a source becomes a corpus, where it is none yet.

    base: the run or checkpoint whose tokenizer examples are encoded with, unless prepare.tokenizer names one.
    """

    prepare: PrepareConfig = PrepareConfig()  # noqa: RUF009 (frozen)
    corpora_dir: Path | str = CORPORA_DIR
    examples: ExamplesConfig = ExamplesConfig()  # noqa: RUF009
    context_length: int = CONTEXT_LENGTH
    base: str | None = None

    def packing(self) -> Packing:
        """Raises ValueError where there is no tokenizer to encode examples with."""
        if self.prepare.tokenizer is not None:
            tokenizer = read_tokenizer(self.prepare.tokenizer)
        elif self.base is not None:
            tokenizer = read_tokenizer(tokenizer_beside(self.base))
        else:
            raise ValueError(
                "examples are encoded as the text that the model has read: name the model with --model.init_from RUN, "
                "or its tokenizer with --data.prepare.tokenizer FILE"
            )
        if not isinstance(tokenizer, Tokenizer):
            raise ValueError("examples need a byte-level tokenizer with <|endoftext|>; this one is of characters")
        if self.examples.kind == "chat":
            tokenizer = tokenizer.with_chat_markers()
        held_out = self.prepare.val_fraction, self.prepare.test_fraction
        return Packing(self.examples, tokenizer, self.context_length, *held_out)


def open_source_corpus(source: str, reading: Reading) -> Corpus:
    """One corpus, prepared first where it is still text or examples; its files are read once to see that they are as
    written.

    Raises ValueError as `prepare`, `prepare_examples`, `open_corpus` and `check_digests` do.
    """
    if is_corpus(source):
        corpus = open_corpus(source, reading.prepare.tokenizer, reading.prepare.val_fraction)
    elif reading.examples.kind is not None:
        corpus = prepare_examples(source, reading.packing(), reading.corpora_dir)
    else:
        output = default_output(source, reading.prepare, reading.corpora_dir)
        corpus = prepare(source, output, reading.prepare)
    check_digests(corpus)
    return corpus


def open_mixture(mixture: Mapping[str, float], reading: Reading) -> list[Corpus]:
    """The corpora of a mixture, in order. Raises ValueError where they do not share a tokenizer, and as above."""
    corpora = {source: open_source_corpus(source, reading) for source in mixture}
    _check_tokenizers(corpora)
    labelled = [name for name, corpus in corpora.items() if corpus.labels]
    if labelled and len(corpora) > 1:
        raise ValueError(
            f"{labelled[0]} has labels for targets, and other corpora have none or their own; train on one"
        )
    return list(corpora.values())


def open_val_corpora(val_corpus: str | None, corpora: list[Corpus], reading: Reading) -> list[Corpus]:
    """The corpora whose validation and test splits are scored: those that are trained on, or one that is named.

    Raises ValueError as `open_mixture` does.
    """
    if val_corpus is None:
        return corpora
    corpus = open_source_corpus(val_corpus, reading)
    _check_tokenizers({**{str(one.path): one for one in corpora}, val_corpus: corpus})
    return [corpus]


def training_order(corpora: Sequence[Corpus], weights: Sequence[float], seed: int, context_length: int) -> Order:
    """Which window of which corpus comes when. Raises ValueError if a corpus is shorter than one window."""
    sizes = []
    for corpus in corpora:
        split = corpus.split("train")
        sizes.append(split.n_windows(context_length))
        if not sizes[-1]:
            raise ValueError(
                f"corpus {corpus.path} has {split.n_tokens} training tokens; context_length {context_length} "
                f"needs {context_length + 1} in one shard: lower it or bring more text"
            )
    return Order(seed, weights, sizes)


def check_documents(corpora: Sequence[Corpus]) -> None:
    """Raise ValueError where data.document_mask cannot tell documents apart."""
    for corpus in corpora:
        if corpus.eot_id is None:
            raise ValueError(
                f"data.document_mask needs the id that ends a document, and the tokenizer of {corpus.path} is unknown "
                "or has none; leave it off, or prepare the text itself"
            )
    if any(corpus.examples for corpus in corpora) and not all(corpus.examples for corpus in corpora):
        raise ValueError("data.document_mask is for text alone; beside examples, which have one, leave it off")


def of_most_ids(corpora: Sequence[Corpus]) -> Corpus:
    """The one whose vocabulary holds those of the others."""
    return max(corpora, key=lambda corpus: corpus.vocab_size)


def _check_tokenizers(corpora: Mapping[str, Corpus]) -> None:
    """All the same, but for markers that one has and others lack."""
    widest = of_most_ids(list(corpora.values()))
    for name, corpus in corpora.items():
        theirs, own = corpus.tokenizer, widest.tokenizer
        if theirs is None or own is None:
            same = theirs is own and corpus.vocab_size == widest.vocab_size
        else:
            same = own.sha256 == theirs.sha256 or (isinstance(own, Tokenizer) and own.extends(theirs))
        if not same:
            raise ValueError(
                f"corpora {next(n for n, one in corpora.items() if one is widest)} and {name} have different "
                "tokenizers; prepare them with one (prepare.tokenizer)"
            )

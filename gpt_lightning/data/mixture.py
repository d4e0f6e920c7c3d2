"""What a run reads, before Lightning is needed: the defaults of its data settings, and the opened corpora of a mixture.

Shared by the data module, which trains on them, and by what only looks at them.
"""

from collections.abc import Mapping
from pathlib import Path

from gpt_lightning.data.corpus import Corpus, check_digests, is_corpus, open_corpus
from gpt_lightning.data.prepare.prepare import PrepareConfig, default_output, prepare

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


def open_source_corpus(source: str, config: PrepareConfig, corpora_dir: Path | str) -> Corpus:
    """One corpus, prepared first where it is still text; its files are read once to see that they are as written.

    Raises ValueError as `prepare`, `open_corpus` and `check_digests` do.
    """
    if is_corpus(source):
        corpus = open_corpus(source, config.tokenizer, config.val_fraction)
    else:
        corpus = prepare(source, default_output(source, config, corpora_dir), config)
    check_digests(corpus)
    return corpus


def open_mixture(mixture: Mapping[str, float], config: PrepareConfig, corpora_dir: Path | str) -> list[Corpus]:
    """The corpora of a mixture, in order. Raises ValueError where they do not share a tokenizer, and as above."""
    corpora = {source: open_source_corpus(source, config, corpora_dir) for source in mixture}
    _check_tokenizers(corpora)
    return list(corpora.values())


def open_val_corpora(
    val_corpus: str | None, corpora: list[Corpus], config: PrepareConfig, corpora_dir: Path | str
) -> list[Corpus]:
    """The corpora whose validation and test splits are scored: those that are trained on, or one that is named.

    Raises ValueError as `open_mixture` does.
    """
    if val_corpus is None:
        return corpora
    corpus = open_source_corpus(val_corpus, config, corpora_dir)
    _check_tokenizers({str(corpora[0].path): corpora[0], val_corpus: corpus})
    return [corpus]


def _check_tokenizers(corpora: Mapping[str, Corpus]) -> None:
    identities = [(c.vocab_size, c.tokenizer.sha256 if c.tokenizer else None) for c in corpora.values()]
    for name, identity in zip(corpora, identities, strict=True):
        if identity != identities[0]:
            raise ValueError(
                f"corpora {next(iter(corpora))} and {name} have different tokenizers; "
                "prepare them with one (prepare.tokenizer)"
            )

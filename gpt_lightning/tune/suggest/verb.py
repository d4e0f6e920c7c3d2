"""The verb `tune suggest`: what the published laws say for this model, corpus and budget. No training, a few seconds.

Each law is shown with its source and whether this case lies where it was fitted. The recommendation is the geometric
centre of those that hold here; where none does, of all of them, with a warning: then it is a place to start a search
from (`tune lr`), no more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from gpt_lightning.data.batches import micro_step_tokens
from gpt_lightning.data.corpus import Corpus
from gpt_lightning.data.duplication import duplication
from gpt_lightning.data.examples.packed import joined
from gpt_lightning.data.mixture import as_mixture, open_mixture
from gpt_lightning.data.shards import Split
from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.flops import flops_per_token
from gpt_lightning.optim.rescale import ramp_overlay
from gpt_lightning.run.stack import Stack, flatten
from gpt_lightning.tune.results import IfExists, TuneFolder
from gpt_lightning.tune.suggest.advice import Run, advise
from gpt_lightning.tune.suggest.result import SuggestResult
from gpt_lightning.tune.verb import Job, Verb


@dataclass(frozen=True)
class SuggestOptions:
    """What the published laws say for this model, corpus and budget, side by side; no training."""

    dir: str = "runs/suggest"
    """Folder of the results."""
    if_exists: IfExists = "overwrite"
    """What to do when dir holds results already: overwrite, or resume, which refuses those of another identity."""
    hours: float | None = None
    """Budget in hours of this machine, instead of max_tokens."""
    flops: float | None = None
    """Budget in FLOPs, instead of max_tokens."""
    tokens_per_second: float | None = None
    """Speed of the run over all devices, for hours; estimated on one block of the model when not given."""

    def __post_init__(self) -> None:
        for name in ("hours", "flops", "tokens_per_second"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"tune.{name} is {value}; expected a number above 0")
        if self.hours is not None and self.flops is not None:
            raise ValueError(f"two budgets: tune.hours {self.hours:g} and tune.flops {self.flops:g}; give one of them")


def suggest(job: Job) -> SuggestResult:
    """Ask the laws. Raises ValueError for what the user can mend."""
    stack, options, folder = job.stack, job.settings, job.folder
    corpora = _corpora(stack)
    gpt = replace(stack.settings("model.gpt"), vocab_size=corpora[0].vocab_size)
    optim = stack.settings("model.optim")
    spent, block = _budget(stack, options, gpt, folder), stack.own_block()
    run = Run(gpt, optim, stack["data.micro_batch_size"], stack.n_devices, spent["n_tokens"], spent["n_flops"], block)
    advice = advise(run, epochs(stack, corpora, run.n_tokens))
    corpus = folder.measured("corpus", lambda: corpus_facts(corpora))
    own = {"lr": optim.lr, "batch_tokens": stack["data.batch_tokens"]}
    values = {"budget": spent, "corpus": corpus, **advice, "stack": own}
    return SuggestResult(values, _tuned(stack, values["recommendation"], spent["source"]))


def identity(stack: Stack, options: SuggestOptions) -> dict[str, Any]:
    """What decides the answer. Raises ValueError for two budgets."""
    budget = options.hours or options.flops
    if budget is not None and "max_tokens" in stack.flags:
        raise ValueError(
            f"two budgets: --max_tokens {stack['max_tokens']} and tune.hours or tune.flops; give one of them"
        )
    if options.tokens_per_second is not None and options.hours is None:
        raise ValueError("tune.tokens_per_second is for a budget in tune.hours; give that too")
    asked = {f"tune.{key}": value for key, value in asdict(options).items() if key not in ("dir", "if_exists")}
    given = {key: value for key, value in flatten(stack.to_dict()).items() if key not in ("run_dir", "if_exists")}
    return {**given, **asked, "devices": stack.n_devices, "corpora": [c.identity for c in _corpora(stack)]}


def _corpora(stack: Stack) -> list[Corpus]:
    corpora = open_mixture(as_mixture(stack["data.corpus"]), stack.reading())
    if any(corpus.examples for corpus in corpora):
        raise ValueError("tune suggest knows laws of pre-training, and data.corpus are examples; take tune lr")
    return corpora


def corpus_facts(corpora: Sequence[Corpus]) -> dict[str, Any]:
    """Size and duplication of what is trained on."""
    split = joined([corpus.split("train") for corpus in corpora])
    assert isinstance(split, Split)
    twice = duplication(split)
    return {
        "paths": [str(corpus.path) for corpus in corpora],
        "n_tokens": split.n_tokens,
        "n_documents": split.n_documents,
        "bytes_per_token": split.n_bytes / split.n_tokens if split.n_bytes else None,
        "duplicate_documents": twice.documents,
        "repeated_spans": twice.spans,
        "sampled_tokens": list(twice.sampled_tokens),
    }


def epochs(stack: Stack, corpora: Sequence[Corpus], n_tokens: float) -> float:
    """Passes over the corpus, of a mixture over the one that is repeated most."""
    weights = as_mixture(stack["data.corpus"]).values()
    shares = [weight / sum(weights) for weight in weights]
    return max(n_tokens * share / c.split("train").n_tokens for share, c in zip(shares, corpora, strict=True))


def _budget(stack: Stack, options: SuggestOptions, gpt: GPTConfig, folder: TuneFolder) -> dict[str, Any]:
    """Tokens of the run, FLOPs and what they follow from."""
    block = stack.own_block()
    per_token = flops_per_token(gpt, block)
    rate, source, n_tokens = options.tokens_per_second, "max_tokens", float(stack["max_tokens"])
    if options.flops is not None:
        source, n_tokens = "flops", options.flops / per_token
    elif options.hours is not None:
        if rate is None:
            from gpt_lightning.tune.suggest.throughput import estimate_tokens_per_second

            precision = str(stack["trainer.precision"])
            one = folder.measured("tokens_per_second", lambda: estimate_tokens_per_second(gpt, precision, block))
            rate = one * stack.n_devices
        source, n_tokens = "hours", options.hours * 3600 * rate
    if n_tokens < 1:
        raise ValueError(f"the budget of tune.{source} is less than one token of this model; raise it")
    budget = {"source": source, "n_tokens": n_tokens, "n_flops": n_tokens * per_token}
    estimated = options.hours is not None and rate != options.tokens_per_second
    return {**budget, "tokens_per_second": rate, "estimated": estimated}


def _tuned(stack: Stack, recommended: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Only what was decided: a micro-batch only if it has to shrink, a horizon only where it was not given."""
    optim = {"lr": recommended["lr"]}
    if not isinstance(stack["model.optim.weight_decay"], str):  # timescale follows from the rest by itself
        optim["weight_decay"] = recommended["weight_decay"]
    data = {"batch_tokens": recommended["batch_tokens"]}
    if recommended["micro_batch_size"] != stack["data.micro_batch_size"]:
        data["micro_batch_size"] = recommended["micro_batch_size"]
    horizon = {} if source == "max_tokens" else {"max_tokens": recommended["max_tokens"]}
    unit = micro_step_tokens(recommended["micro_batch_size"], stack["data.context_length"], stack.n_devices)
    ramp = ramp_overlay(stack["batch_ramp"].as_dict(), unit, recommended["batch_tokens"])
    return {**horizon, "model": {"optim": optim}, "data": data, **ramp}


VERB = Verb("tune suggest", SuggestOptions, suggest, identity, light=True)

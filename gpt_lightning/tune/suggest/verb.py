"""The verb `tune suggest`: what the published laws say for this model, corpus and budget. No training, a few seconds.

Each law is shown with its source and whether this case lies where it was fitted. The recommendation is the geometric
centre of those that hold here; where none does, of all of them, with a warning: then it is a place to start a search
from (`tune lr`), no more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gpt_lightning.data.batches import micro_step_tokens
from gpt_lightning.data.corpus import Corpus
from gpt_lightning.data.duplication import duplication
from gpt_lightning.data.mixture import open_mixture
from gpt_lightning.data.shards import Split
from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.flops import flops_per_token
from gpt_lightning.terminal import short
from gpt_lightning.tune.results import IfExists, TuneFolder
from gpt_lightning.tune.stack import Stack, n_devices, read_stack
from gpt_lightning.tune.suggest.advice import Run, advise, passes, ramp_layer
from gpt_lightning.tune.suggest.figure import law_figure


@dataclass(frozen=True)
class SuggestOptions:
    """What the published laws say for this model, corpus and budget, side by side; no training."""

    dir: str = "runs/suggest"
    """Folder of the results."""
    if_exists: IfExists = "overwrite"
    """What to do when dir holds results already: overwrite, or resume, which refuses those of another question."""
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


@dataclass(frozen=True)
class SuggestResult:
    """What result.json holds, and as attributes what matters of it."""

    folder: Path
    recommendation: Mapping[str, Any]
    tuned: Mapping[str, Any]
    warnings: tuple[str, ...]
    values: Mapping[str, Any]

    def table(self) -> Table:
        """The laws, one a row, then their centre, lowest and highest."""
        table = Table(box=None, padding=(0, 1), collapse_padding=True, pad_edge=False)
        table.add_column("law", no_wrap=True)
        for name in ("lr", "batch", "decay", "size"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("fitted on", no_wrap=True)
        table.add_column("here", no_wrap=True)
        for law in self.values["laws"]:
            name = f"{law['name']}\n[dim]{law['source']}{', restated' if law['restated'] else ''}[/dim]"
            fitted = law["fitted"].replace(", ", "\n")
            table.add_row(name, *_cells(law), fitted, {True: "yes", False: "no", None: "?"}[law["inside"]])
        table.add_section()
        centres = self.values["centres"]
        for name, pick in (("centre", "value"), ("lowest", "low"), ("highest", "high")):
            row = {key: c[pick] if pick == "value" or len(c["laws"]) > 1 else None for key, c in centres.items()}
            table.add_row(f"[bold]{name}[/bold]", *_cells({**row, "size": None}))
        return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    lr, batch, decay, size = (row[key] for key in ("lr", "batch_tokens", "weight_decay", "size"))
    return [
        f"{lr:.1e}" if lr is not None else "",
        f"{batch:,.0f}" if batch is not None else "",
        f"{decay:.2g}" if decay is not None else "",
        short(size["n_params_non_embedding"]) if size is not None else "",
    ]


def suggest(args: Sequence[str]) -> SuggestResult:
    """What the verb does, without printing. Raises ValueError for what the user can mend; then nothing is written."""
    stack, options = read_stack(args, SuggestOptions, "tune suggest")
    budget = options.hours or options.flops
    if budget is not None and "max_tokens" in stack.flags:
        raise ValueError(f"two budgets: --max_tokens {stack.max_tokens} and tune.hours or tune.flops; give one of them")
    if options.tokens_per_second is not None and options.hours is None:
        raise ValueError("tune.tokens_per_second is for a budget in tune.hours; give that too")
    devices = n_devices(stack.trainer)
    corpora = open_mixture(stack.mixture, stack.prepare, stack.corpora_dir)
    gpt = replace(stack.gpt, vocab_size=corpora[0].vocab_size)
    asked = {f"tune.{key}": value for key, value in asdict(options).items() if key not in ("dir", "if_exists")}
    settings = {**stack.given, **asked, "devices": devices, "corpora": [corpus.fingerprint for corpus in corpora]}
    with TuneFolder(options.dir, settings, options.if_exists) as folder:
        spent = _budget(stack, options, gpt, folder, devices)
        run = Run(gpt, stack.optim, stack.micro_batch_size, devices, spent["n_tokens"], spent["n_flops"])
        advice = advise(run, _epochs(stack, corpora, run.n_tokens))
        values = {"budget": spent, "corpus": folder.measured("corpus", lambda: corpus_facts(corpora)), **advice}
        values = {**values, "stack": {"lr": stack.optim.lr, "batch_tokens": stack.batch_tokens}}
        tuned = _tuned(stack, values["recommendation"], spent["source"])
        figure = law_figure(values["laws"], values["centres"], values["stack"])
        folder.finish(values, figure, tuned, _header(values))
    return SuggestResult(folder.path, values["recommendation"], tuned, tuple(values["warnings"]), values)


def corpus_facts(corpora: Sequence[Corpus]) -> dict[str, Any]:
    """Size and duplication of what is trained on."""
    split = Split(tuple(shard for corpus in corpora for shard in corpus.split("train").shards))
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


def _epochs(stack: Stack, corpora: Sequence[Corpus], n_tokens: float) -> float:
    """Passes over the corpus, of a mixture over the one that is repeated most."""
    total = sum(stack.mixture.values())
    shares = [weight / total for weight in stack.mixture.values()]
    return max(n_tokens * share / c.split("train").n_tokens for share, c in zip(shares, corpora, strict=True))


def _budget(stack: Stack, options: SuggestOptions, gpt: GPTConfig, folder: TuneFolder, devices: int) -> dict[str, Any]:
    """Tokens of the run, FLOPs and what they follow from."""
    rate, source, n_tokens = options.tokens_per_second, "max_tokens", float(stack.max_tokens)
    if options.flops is not None:
        source, n_tokens = "flops", options.flops / flops_per_token(gpt)
    elif options.hours is not None:
        if rate is None:
            from gpt_lightning.tune.suggest.throughput import estimate_tokens_per_second

            precision = str(stack.trainer.get("precision", "bf16-mixed"))
            one = folder.measured("tokens_per_second", lambda: estimate_tokens_per_second(gpt, precision))
            rate = one * devices
        source, n_tokens = "hours", options.hours * 3600 * rate
    if n_tokens < 1:
        raise ValueError(f"the budget of tune.{source} is less than one token of this model; raise it")
    budget = {"source": source, "n_tokens": n_tokens, "n_flops": n_tokens * flops_per_token(gpt)}
    return {
        **budget,
        "tokens_per_second": rate,
        "estimated": options.hours is not None and rate != options.tokens_per_second,
    }


def _tuned(stack: Stack, recommended: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Only what was decided: a micro-batch only if it has to shrink, a horizon only where it was not given."""
    optim = {"lr": recommended["lr"]}
    if not isinstance(stack.optim.weight_decay, str):  # timescale follows from the rest by itself
        optim["weight_decay"] = recommended["weight_decay"]
    data = {"batch_tokens": recommended["batch_tokens"]}
    if recommended["micro_batch_size"] != stack.micro_batch_size:
        data["micro_batch_size"] = recommended["micro_batch_size"]
    horizon = {} if source == "max_tokens" else {"max_tokens": recommended["max_tokens"]}
    unit = micro_step_tokens(recommended["micro_batch_size"], stack.gpt.context_length, n_devices(stack.trainer))
    ramp = ramp_layer(stack.batch_ramp, unit, recommended["batch_tokens"])
    return {**horizon, "model": {"optim": optim}, "data": data, **ramp}


def _header(values: Mapping[str, Any]) -> str:
    case, lr, batch = values["case"], values["centres"]["lr"], values["centres"]["batch_tokens"]
    return (
        f"gpt-lightning tune suggest: {short(case['n_params_non_embedding'])} parameters without embeddings, "
        f"{short(case['n_tokens'])} tokens, {case['n_devices']} device{'s' if case['n_devices'] > 1 else ''}.\n"
        f"Geometric centre of published laws; they differ {lr['spread']:.1f}x in lr, {batch['spread']:.1f}x in batch."
    )


def _facts(values: Mapping[str, Any]) -> dict[str, str]:
    """Corpus, budget and size in a line each."""
    corpus, budget, case = values["corpus"], values["budget"], values["case"]
    parts = [f"{short(corpus['n_tokens'])} training tokens"]
    if corpus["n_documents"] is not None:
        parts.append(f"{corpus['n_documents']:,} documents")
    if corpus["bytes_per_token"] is not None:
        parts.append(f"{corpus['bytes_per_token']:.2f} bytes per token")
    copies = []
    if corpus["duplicate_documents"] is not None:
        copies.append(f"{corpus['duplicate_documents']:.1%} of documents are copies of another")
    if corpus["repeated_spans"] is not None:
        copies.append(f"{corpus['repeated_spans']:.1%} of 64-token spans occur before")
    sampled = min(read for read in corpus["sampled_tokens"] if read or corpus["n_documents"] is not None)
    if sampled < corpus["n_tokens"]:
        copies.append(f"from an even sample of {short(sampled)} tokens, so spans at least")
    spent = f"{short(case['n_tokens'])} tokens, {budget['n_flops']:.2g} FLOPs, {passes(case['epochs'])} epochs"
    if budget["source"] == "hours":
        estimate = ", estimated from one block; a run is somewhat slower" if budget["estimated"] else ""
        spent += f", at {budget['tokens_per_second']:,.3g} tokens/s{estimate}"
    best, row = values["compute_optimal"], values["gpt3_row"]
    size = f"{short(best['n_params_non_embedding'])} parameters on {short(best['n_tokens'])} tokens"
    own = f"{short(case['n_params_non_embedding'])} without embeddings, {short(case['n_params'])} in all"
    return {
        "corpus": ", ".join(parts),
        "duplicates": ", ".join(copies) or "unknown",
        "budget": spent,
        "size": f"{own}; compute-optimal for these FLOPs: {size} (Chinchilla, refitted)",
        "GPT-3": f"{row['name']}: lr {row['lr']:.1e}, batch {row['batch_tokens']:,.0f}, for 300B tokens"
        if row
        else "no row of this size (within 10%)",
    }


def main(argv: list[str]) -> int:
    """The verb `tune suggest`."""
    result = suggest(argv)
    console = Console(highlight=False, soft_wrap=True)
    console.print(result.table())
    console.print("here: whether this run lies where the law was fitted; restated: constants as given by others")
    values, best = result.values, result.recommendation
    notes = [f"{law['name']}: {law['note']}" for law in values["laws"] if law["note"]]
    spread = ", ".join(f"{name} {values['centres'][name]['spread']:.1f}x" for name in ("lr", "batch_tokens"))
    lines = [("notes", "; ".join(notes)), ("spread", f"{spread}, highest over lowest"), *_facts(values).items()]
    for name, text in [*lines, *(("warning", warning) for warning in result.warnings)]:
        console.print(f"{name:<12}{text}", markup=False)
    text = f"lr {best['lr']:.2g}, batch_tokens {best['batch_tokens']}, weight_decay {best['weight_decay']:.2g}"
    console.print(f"recommendation: {text}; add --config {result.folder}/tuned.yaml", markup=False)
    return 0

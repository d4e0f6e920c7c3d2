"""What `tune suggest` answers: the laws side by side, their centre, and the facts that go with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from gpt_lightning.terminal import short
from gpt_lightning.tune.suggest.advice import passes
from gpt_lightning.tune.suggest.figure import law_figure


@dataclass(frozen=True)
class SuggestResult:
    """What result.json holds, `recommended` settings and warnings among it, and the keys that the overlay sets."""

    values: Mapping[str, Any]
    tuned: Mapping[str, Any]

    @property
    def recommended(self) -> Mapping[str, Any]:
        return self.values["recommendation"]

    @property
    def warnings(self) -> Sequence[str]:
        return self.values["warnings"]

    @property
    def recommendation(self) -> str:
        best = self.recommended
        return f"lr {best['lr']:.2g}, batch_tokens {best['batch_tokens']}, weight_decay {best['weight_decay']:.2g}"

    @property
    def explanation(self) -> str:
        case, lr = self.values["case"], self.values["centres"]["lr"]
        batch = self.values["centres"]["batch_tokens"]
        return (
            f"for {short(case['n_params_non_embedding'])} parameters without embeddings, {short(case['n_tokens'])} "
            f"tokens, {case['n_devices']} device{'s' if case['n_devices'] > 1 else ''}: the geometric centre of "
            f"published laws, which differ {lr['spread']:.1f}x in lr, {batch['spread']:.1f}x in batch"
        )

    def notes(self) -> list[str]:
        """What the table's words mean, the facts, the warnings."""
        notes = [f"{law['name']}: {law['note']}" for law in self.values["laws"] if law["note"]]
        lines = [("notes", "; ".join(notes)), *facts(self.values).items()]
        lines += [("warning", warning) for warning in self.warnings]
        first = "here: whether this run lies where the law was fitted; restated: constants as given by others"
        return [first, *(f"{name:<12}{text}" for name, text in lines)]

    def to_dict(self) -> dict[str, Any]:
        """All numbers."""
        return dict(self.values)

    def overlay(self) -> dict[str, Any]:
        """Only what was decided."""
        return dict(self.tuned)

    def figure(self) -> Figure:
        """The laws' learning rates and batches."""
        return law_figure(self.values["laws"], self.values["centres"], self.values["stack"])

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


def facts(values: Mapping[str, Any]) -> dict[str, str]:
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

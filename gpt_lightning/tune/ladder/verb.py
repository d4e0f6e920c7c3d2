"""The verb `tune ladder`: small runs of several sizes and lengths, and from them what a big one will reach.

    target FLOPs -> plan (plan.py) -> runs, each whole -> L(N, D) (law.py) -> best size, tokens and loss of the target

A law says nothing of how far it holds. So the ladder asks itself first: the law of all levels but the highest, about
the highest. By as much as it is off there, the interval of the target is wider on that side.

All runs share the stack's learning rate, so it must be one that holds for other sizes: muP or CompleteP, as
`tune transfer` writes into its tuned.yaml. Each run is kept as it ends; started again, the verb goes on behind it.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpt_lightning.run.build import open_corpora
from gpt_lightning.run.stack import Stack
from gpt_lightning.terminal import say, short
from gpt_lightning.tune.ladder.law import Law, fit_law
from gpt_lightning.tune.ladder.plan import Rung, options, plan_ladder, sizes_of
from gpt_lightning.tune.ladder.result import LadderResult, LadderRun
from gpt_lightning.tune.results import IfExists
from gpt_lightning.tune.sizes import Size, gpt_of
from gpt_lightning.tune.suggest.verb import epochs
from gpt_lightning.tune.trials import identity, train
from gpt_lightning.tune.verb import Job, Verb

HIGHEST_E = 0.72  # bits per byte that GPT-3 reached on the Pile (Gao et al. 2020, arXiv 2101.00027), so not irreducible


@dataclass(frozen=True)
class LadderConfig:
    """Train a ladder of small runs, fit a scaling law, and say what a larger budget will reach, and with which size."""

    flops: float | None = None
    """Compute of the target run, forward and backward; that of the stack as it is when not given."""
    share: float = 0.3
    """Of the target's compute, that the ladder may cost; a single run of it takes at most a quarter."""
    val_tokens: int = 50_000
    """Tokens of the validation split that a run is scored on."""
    dir: str = "runs/ladder"
    """Folder for result.json, figure.png and tuned.yaml."""
    if_exists: IfExists = "resume"
    """resume goes on where the same ladder was interrupted; overwrite starts anew."""

    def __post_init__(self) -> None:
        for name in ("flops", "share", "val_tokens"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"tune.{name} {getattr(self, name)}: must be above 0")


def tune_ladder(job: Job) -> LadderResult:
    """Plan, train what the folder does not hold, and fit."""
    settings, stack = job.settings, job.stack
    gpt, block = gpt_of(stack), stack.own_block()
    if gpt.parametrization == "standard":
        raise ValueError(
            "with model.gpt.parametrization standard each size of a ladder wants another lr; run gpt-lightning tune "
            "transfer first, and add its tuned.yaml"
        )
    own = Size.of(gpt, block)
    flops = settings.flops or own.flops * stack["max_tokens"]
    sizes = sizes_of(gpt, block)
    rungs = plan_ladder(sizes, flops, settings.share, stack["data.batch_tokens"])
    spent = sum(rung.flops for rung in rungs)
    n_sizes = len({rung.size.n_params for rung in rungs})
    say(
        f"{len(rungs)} runs of {n_sizes} sizes, up to {short(rungs[-1].flops)} FLOPs each: {spent / flops:.0%} of the "
        f"target's {short(flops)}"
    )
    bar = job.progress.add_task("ladder", total=spent)
    runs = []
    for rung in rungs:
        job.progress.update(bar, description=rung.key)
        runs.append(LadderRun(rung, **job.measured(rung.key, partial(_trained, stack, rung, settings))))
        job.progress.advance(bar, rung.flops)
        if job.progress.disable:
            say(f"{rung.key}: loss {runs[-1].loss:.4f}")
    corpus_epochs = epochs(stack, open_corpora(stack)[0], 1.0)
    return LadderResult(stack, own, sizes, runs, _law(runs), _drift(runs), flops, corpus_epochs)


def _law(runs: Sequence[LadderRun]) -> Law:
    bits = runs[0].bits_per_byte
    highest_e = None if bits is None else HIGHEST_E * runs[0].loss / bits
    return fit_law([r.n_params for r in runs], [r.tokens for r in runs], [r.loss for r in runs], highest_e)


def _drift(runs: Sequence[LadderRun]) -> float | None:
    """By which share the law of the levels below says too much of the highest; None where they are too few for one."""
    below = [run for run in runs if run.rung.flops < runs[-1].rung.flops / 2]
    try:
        law = _law(below)
    except ValueError:
        return None
    return statistics.mean(law.loss(run.n_params, run.tokens) / run.loss - 1 for run in runs[len(below) :])


def _trained(stack: Stack, rung: Rung, settings: LadderConfig) -> dict[str, Any]:
    """A run's loss in nats per token, and in bits per byte where there is a tokenizer."""
    done = train(stack, options(rung), val_tokens=settings.val_tokens)
    if not done.val_loss < float("inf"):
        raise ValueError(f"the run of {rung.key} diverged; lower model.optim.lr, or let tune transfer find it")
    scores = done.run.trainer.callback_metrics
    bits = scores.get("val/bits_per_byte")
    return {"loss": done.val_loss, "bits_per_byte": None if bits is None else bits.item()}


VERB = Verb("tune ladder", LadderConfig, tune_ladder, identity)

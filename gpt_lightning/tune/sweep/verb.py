"""The verb `tune sweep`: many runs over a search space, and the best of them.

    space (space.py) -> queue (study.py) -> workers (worker.py), rung by rung (rungs.py) -> result.py

A worker is the same command started again, here or on another machine that sees the same study; --tune.workers N starts
N of them here. All of them end when nothing waits and nothing runs, with the same result.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal

import torch
import yaml
from optuna import delete_study
from optuna.storages import BaseStorage
from rich.table import Table
from torch.quasirandom import SobolEngine

from gpt_lightning import files
from gpt_lightning.callbacks.preemption import Preempted
from gpt_lightning.run.stack import Stack
from gpt_lightning.terminal import say, short
from gpt_lightning.tune.results import IfExists
from gpt_lightning.tune.sweep.launch import start_workers
from gpt_lightning.tune.sweep.next_sweep import next_sweep
from gpt_lightning.tune.sweep.ranks import n_ranks
from gpt_lightning.tune.sweep.read_space import read_space
from gpt_lightning.tune.sweep.result import SweepResult, read_trials
from gpt_lightning.tune.sweep.rungs import rung_tokens
from gpt_lightning.tune.sweep.space import Point, Space
from gpt_lightning.tune.sweep.storage import answering, open_storage
from gpt_lightning.tune.sweep.study import SweepStudy, sampler_of
from gpt_lightning.tune.sweep.wandb_sweep import agents_stack, wandb_sweep
from gpt_lightning.tune.sweep.worker import Plan, Worker
from gpt_lightning.tune.trials import run_identity, stopped
from gpt_lightning.tune.verb import Job, Verb

LEAST_STEPS = 20  # of a rung
SECONDS_SHOWN = 2.0  # until the live table is read anew


@dataclass(frozen=True, eq=False)
class SweepConfig:
    """Train many runs over a search space, drop the worst early, and find the best."""

    space: dict[str, Any] = field(default_factory=dict)
    """Settings and what they may be: {low, high, log} or a list of values; or overlays by name, each with a `space` of
    its own if it has one. In YAML: configs/sweep/."""
    trials: int = 27
    """Configurations that are tried; a grid has as many as it has points."""
    sampler: Literal["tpe", "gp", "sobol", "random", "grid"] = "tpe"
    """What picks them: tpe or gp (Optuna's, by what was found so far, after a third spread evenly), or evenly, by
    chance, every combination."""
    rungs: int = 3
    """Lengths at which a trial is judged, each a run with a whole schedule; 1 trains all to the end."""
    factor: int = 3
    """One trial of so many goes on to the next rung, which has so many times the tokens."""
    tokens: int | None = None
    """Tokens of the last rung; max_tokens when not given."""
    val_tokens: int = 50_000
    """Tokens of the validation split that a rung is scored on."""
    seed: int = 0
    """Of the sampler. Initial weights and data order are those of the stack, the same for all trials."""
    workers: int = 1
    """Processes that train at once, here; the processor's cores, or its GPUs, are shared out."""
    storage: str | None = None
    """Where the study is kept: a journal file in dir when not given; grpc://HOST:PORT or an RDB's URL for machines that
    do not share a file system."""
    dir: str = "runs/sweep"
    """Folder for result.json, figure.png, tuned.yaml, next.yaml and the trials' runs; its name is the study's."""
    if_exists: IfExists = "resume"
    """resume goes on, or joins those that are at work; overwrite starts anew."""

    def __post_init__(self) -> None:
        for name in ("trials", "rungs", "tokens", "val_tokens", "workers"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"tune.{name} {getattr(self, name)}: must be at least 1")
        if self.factor < 2:
            raise ValueError(f"tune.factor {self.factor}: must be at least 2")
        if self.if_exists == "overwrite" and n_ranks() > 1:
            raise ValueError(f"tune.if_exists overwrite: not under torchrun; remove {self.dir} first")
        if self.workers > 1 and n_ranks() > 1:
            raise ValueError(f"tune.workers {self.workers}: under torchrun all processes are one worker; start another")
        if self.sampler == "gp" and self.rungs > 1:
            raise ValueError("tune.sampler gp reads whole runs alone; add --tune.rungs 1, or take tpe")


def tune_sweep(job: Job) -> SweepResult:
    """Train what waits, alone or beside other workers, and read what all have found."""
    settings, stack, folder = job.settings, job.stack, job.folder.path
    space = _space(stack, settings)
    plan = Plan(stack, space, _tokens(stack, settings), settings.val_tokens, folder, folder.name)
    n_trials = len(list(space.grid())) if settings.sampler == "grid" else settings.trials
    is_first = int(os.environ.get("RANK", 0)) == 0
    with ExitStack() as others:
        others.enter_context(answering(settings.storage))
        study = None
        if is_first:
            storage = _storage(job)
            others.enter_context(start_workers(settings.workers, folder))  # they take seconds to come
            study = _open(job, plan, storage, n_trials)
            _watch(job, plan, study)
        try:
            Worker(plan, study, _told(job), _advance(job)).work()
        except Preempted as stop:
            raise stopped(stop) from None
        except KeyboardInterrupt as stop:
            raise stopped(SystemExit()) from stop
        finally:
            job.progress.above = None
        if study is None:
            raise SystemExit(0)
        trials = read_trials(study, plan)
    result = SweepResult(trials, plan, settings)
    with job.folder.turn():
        files.write_text(folder / "next.yaml", next_sweep(result))
    return result


@lru_cache(maxsize=1)
def _space(stack: Stack, settings: SweepConfig) -> Space:
    """Tried value by value, it takes seconds; the identity of a sweep needs it, and the sweep."""
    return read_space(stack, settings.space)


def _tokens(stack: Stack, settings: SweepConfig) -> list[int]:
    least = LEAST_STEPS * stack["data.batch_tokens"]
    return rung_tokens(settings.tokens or stack["max_tokens"], settings.rungs, settings.factor, least)


def _storage(job: Job) -> BaseStorage:
    """Where the study is kept, without an old one where it is to start anew, and what starts another worker."""
    settings, folder = job.settings, job.folder.path
    with job.folder.turn():
        storage = open_storage(folder, settings.storage)
        if settings.if_exists == "overwrite" and settings.storage is not None:
            with suppress(KeyError):
                delete_study(study_name=folder.name, storage=storage)
        own = {"tune": {**asdict(settings), "workers": 1, "if_exists": "resume"}}
        again = yaml.safe_dump({**job.stack.to_dict(), **own}, sort_keys=False)
        files.write_text(folder / "config.yaml", f"# gpt-lightning tune sweep --config {folder}/config.yaml\n{again}")
    return storage


def _open(job: Job, plan: Plan, storage: BaseStorage, n_trials: int) -> SweepStudy:
    """The study with its queue; whoever comes later finds both."""
    settings, folder = job.settings, job.folder.path
    with job.folder.turn():
        sampler = partial(sampler_of, settings.sampler, settings.seed)
        text = json.dumps(identity(job.stack, settings), sort_keys=True)
        study = SweepStudy(storage, folder.name, sampler, text, settings.factor, settings.rungs)
        n_there = len(study.configurations)
        if n_there < n_trials:
            files.write_text(folder / "wandb_stack.yaml", agents_stack(job.stack, plan.tokens[-1]).to_yaml())
            files.write_text(folder / "wandb_sweep.yaml", wandb_sweep(plan, settings.factor))
            study.enqueue(list(_points(plan, settings))[n_there:])
    say(_plan_in_words(plan, study))
    return study


def _plan_in_words(plan: Plan, study: SweepStudy) -> str:
    there = study.configurations.values()
    n_trials, n_scored = len(there), sum("scores" in trial.user_attrs for trial in there)
    lengths = ", ".join(short(tokens) for tokens in plan.tokens)
    shares = [max(n_trials // study.factor**i, 1) for i in range(len(plan.tokens))]
    about = sum(n * tokens for n, tokens in zip(shares, plan.tokens, strict=True))
    known = f" ({n_scored} with a score, {study.n_running} at work)" if n_scored or study.n_running else ""
    rungs = f"rungs of {lengths}" if len(plan.tokens) > 1 else lengths
    cost = f"about {short(about)} in all, {about / (n_trials * plan.tokens[-1]):.0%} of training all to the end"
    return f"{n_trials} trials{known} over {plan.space.n_dimensions} settings, {rungs} tokens: {cost}"


def _points(plan: Plan, settings: SweepConfig) -> Iterator[Point]:
    """Of every configuration: its values, or nothing where the sampler is to find them. The stack's own come first."""
    space, own = plan.space, plan.own
    if settings.sampler == "grid":
        yield from space.grid()
        return
    n_others = settings.trials - (own is not None)
    if own is not None:
        yield own
    n_even = {"sobol": n_others, "random": 0}.get(settings.sampler, -(-settings.trials // 3))
    engine = SobolEngine(space.n_dimensions, scramble=True, seed=settings.seed)
    for shares in engine.draw(max(n_even, 1), dtype=torch.float64)[: min(n_even, n_others)].tolist():
        yield space.at(shares)
    for _ in range(n_others - n_even):
        yield {}


def _watch(job: Job, plan: Plan, study: SweepStudy) -> None:
    """Show the trials above the bar, on a terminal; the storage is asked for them every few seconds."""
    shown: list[Any] = [0.0, Table()]

    def table() -> Table:
        if time.monotonic() - shown[0] > SECONDS_SHOWN:
            shown[0] = time.monotonic()
            with suppress(Exception):  # of a storage that no longer answers: the worker finds that too, and says it
                shown[1] = SweepResult(read_trials(study, plan), plan, job.settings).live_table()
        live: Table = shown[1]
        return live

    job.progress.above = table


def _told(job: Job) -> Any:
    def told(config: int, words: str) -> None:
        if job.progress.disable:
            say(f"trial {config}: {words}")

    return told


def _advance(job: Job) -> Any:
    bar = job.progress.add_task("", total=1.0)

    def advance(config: int, rung: int, share: float) -> None:
        job.progress.update(bar, description=f"trial {config}, rung {rung + 1}", completed=share)

    return advance


def identity(stack: Stack, settings: SweepConfig) -> dict[str, Any]:
    """What decides a trial's score: the stack, what is searched, how it is scored. Wrong spaces are refused here."""
    space = _space(stack, settings)
    overlays = {entry.name: repr(entry) for entry in space.all()}  # with what is in the files that it names
    kept = ("rungs", "factor", "tokens", "val_tokens", "sampler", "seed")
    found = {key: value for key, value in run_identity(stack).items() if key != "machine"}
    return {**{key: asdict(settings)[key] for key in kept}, "space": overlays, **found}


VERB = Verb("tune sweep", SweepConfig, tune_sweep, identity, shared=True)

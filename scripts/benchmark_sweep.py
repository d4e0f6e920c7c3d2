"""How well many runs are spent, measured on the source code of Python's standard library; anyone can run it.

    python scripts/benchmark_sweep.py [--only search,workers,kill,transfer,ladder] [--folder FOLDER]

search      tokens after which `tune sweep` has a whole run as good as the best of plain random search, beside those of
            Optuna's Hyperband, which stops runs in the middle of their schedule; 27 configurations each, three seeds
workers     time of two workers on one study, over that of one; one thread each, in turns, three times
kill        a sweep whose worker is killed with -9 in the middle, beside one that is left alone
transfer    loss of a model at the learning rate of `tune transfer` over that at the one of `tune lr` on the model
            itself, and their compute; three seeds
ladder      loss of the run that `tune ladder` recommends, beside what it predicts: many times the compute of any rung;
            two seeds

Interrupted, search, transfer and ladder go on where they stopped. On two cores search and transfer take an hour each,
ladder two, workers half of one, kill five minutes.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import yaml
from lightning.pytorch import Callback
from rich.console import Console

from gpt_lightning.run.stack import read_stack
from gpt_lightning.tune.results import TuneFolder
from gpt_lightning.tune.sweep.read_space import read_space
from gpt_lightning.tune.sweep.verb import SweepConfig
from gpt_lightning.tune.trials import train

SEEDS = (0, 1, 2)
TRIALS, FACTOR, RUNGS = 27, 3, 3
TOKENS = 300_000
VAL_TOKENS = 50_000
STACK: dict[str, Any] = {
    "max_tokens": TOKENS,
    "model": {
        "gpt": {"n_layers": 3, "n_heads": 2, "d_model": 64},
        "optim": {"lr": 1.0e-3},
        "schedule": {"name": "linear", "warmup_tokens": 15_000, "min_lr_ratio": 0.0},
    },
    "data": {
        **{"corpus": "stdlib", "context_length": 128, "micro_batch_size": 4, "batch_tokens": 1024},
        "prepare": {"vocab_size": 1024, "val_fraction": 0.03},
    },
    "trainer": {"precision": "32-true", "accelerator": "cpu"},
}
SPACE: dict[str, Any] = {
    "model.optim.lr": {"low": 3.0e-4, "high": 1.0e-1, "log": True},
    "model.optim.weight_decay": {"low": 0.01, "high": 1.0, "log": True},
    "model.schedule.warmup_tokens": {"low": 1_000, "high": 75_000, "log": True},
    "data.batch_tokens": [512, 1024, 2048, 4096],
    "shape": {
        "as_it_is": {},
        "deeper": {"model": {"gpt": {"n_layers": 5, "n_heads": 2, "d_model": 50}}},
        "wider": {"model": {"gpt": {"n_layers": 1, "n_heads": 2, "d_model": 110}}},
    },
}
MODERN: dict[str, Any] = {  # the quickstart's structure and optimizer
    "max_tokens": 400_000,
    "model": {
        "gpt": {
            **{"n_layers": 4, "n_heads": 8, "d_model": 256, "positions": "rotary", "norm": "rms", "qk_norm": True},
            **{"mlp": "swiglu", "bias": False, "zero_init": True, "tie_embedding": False},
        },
        "optim": {
            **{"name": "muon", "lr": 5.4e-3, "betas": [0.9, 0.99], "momentum": 0.9},
            "lr_ratios": {"embedding": 10, "vector": 6},
        },
        "schedule": {"name": "linear", "warmup_tokens": 40_000, "min_lr_ratio": 0.0},
    },
    "data": {**STACK["data"], "micro_batch_size": 8},
    "trainer": STACK["trainer"],
}
LADDER: dict[str, Any] = {  # in narrower heads, so that there are more sizes
    **MODERN,
    **{"max_tokens": 1_000_000},
    "model": {**MODERN["model"], "gpt": {**MODERN["model"]["gpt"], "n_heads": 20, "d_model": 160}},
}
LADDER_SEEDS = (2, 3)  # nothing was chosen on them
console = Console(highlight=False, soft_wrap=True)


def sweep(folder: Path, **options: Any) -> subprocess.Popen[bytes]:
    """`tune sweep` started, with one thread a worker; its words are in FOLDER.log."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    config = folder.with_suffix(".yaml")
    tune = {"space": SPACE, "trials": TRIALS, "val_tokens": VAL_TOKENS, "dir": str(folder), **options}
    config.write_text(yaml.safe_dump({**STACK, "tune": tune}, sort_keys=False))
    words = [sys.executable, "-m", "gpt_lightning", "tune", "sweep", f"--config={config}"]
    with folder.with_suffix(".log").open("ab") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.get("workers", 1))}
        return subprocess.Popen(words, env=environment, stdout=log, stderr=log)


def swept(folder: Path, **options: Any) -> dict[str, Any]:
    """Its result."""
    if sweep(folder, **options).wait():
        raise SystemExit(f"{folder}: tune sweep failed: see {folder.with_suffix('.log')}")
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def reached(folder: Path, found: dict[str, Any], target: float) -> float:
    """Tokens trained, in the order in which the runs ended, until one of full length was as good as `target`."""
    runs = sorted(folder.glob("trials/*/rung-*/summary.json"), key=lambda path: path.stat().st_mtime)
    scores = {trial["number"]: trial["scores"] for trial in found["trials"]}
    spent = 0
    for path in runs:
        summary = json.loads(path.read_text())
        spent += summary["tokens"]
        rung, number = int(path.parent.name[-1]), int(path.parts[-3])
        if rung == len(found["rungs"]) and scores[number][-1] <= target:
            return spent
    return float("inf")


class Report(Callback):
    """Tells Optuna the loss at every validation and stops the run where it says so, in the middle of its schedule."""

    def __init__(self, trial: optuna.Trial):
        self.trial, self.pruned, self.tokens = trial, False, 0

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self.tokens == pl_module.tokens_seen:  # Lightning validates a second time at the end
            return
        self.tokens = pl_module.tokens_seen
        self.trial.report(float(trainer.callback_metrics["val/loss"]), min(round(9 * self.tokens / TOKENS), 9))
        if self.tokens < TOKENS and self.trial.should_prune():
            self.pruned = trainer.should_stop = True


def hyperband(folder: Path, seed: int) -> dict[str, Any]:
    """Optuna's TPE with its Hyperband: {"scores": of runs that ended, "spent": tokens when they did, "tokens": all}."""
    stack, _ = read_stack([f"--config={folder.parent}/random-{seed}.yaml"], "tune sweep", settings=SweepConfig)
    space = read_space(stack, SPACE)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed)  # its defaults, as its pruner's
    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9, reduction_factor=FACTOR)
    study = optuna.create_study(sampler=sampler, pruner=pruner)
    losses: list[float] = []
    spent: list[int] = []
    tokens = 0
    while len(study.trials) < TRIALS:
        trial = study.ask()
        report = Report(trial)
        point = space.suggest(trial)
        made = space.stack(stack, point)
        done = train(made, {"val_interval_tokens": TOKENS // 9}, 0, VAL_TOKENS, [report])
        tokens += done.tokens
        if report.pruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, done.val_loss)
            losses.append(done.val_loss)
            spent.append(tokens)
    return {"losses": losses, "spent": spent, "tokens": tokens}


def search(folder: Path) -> None:
    """The sweep beside random search and Hyperband."""
    ratios, others = [], []
    for seed in SEEDS:
        plain = swept(folder / f"random-{seed}", sampler="random", rungs=1, seed=seed)
        found = swept(folder / f"sweep-{seed}", rungs=RUNGS, factor=FACTOR, seed=seed)
        with TuneFolder(folder / f"hyperband-{seed}", {"seed": seed}) as kept:
            band = kept.measured("hyperband", lambda seed=seed: hyperband(folder / f"hyperband-{seed}", seed))
        best = min(trial["scores"][-1] for trial in plain["trials"] if trial["scores"])
        ours = min(t["scores"][-1] for t in found["trials"] if len(t["scores"]) == RUNGS)
        ratios.append(reached(folder / f"sweep-{seed}", found, best) / plain["tokens"])
        loss = _val_loss(folder / f"random-{seed}", plain)
        theirs = [s for x, s in zip(band["losses"], band["spent"], strict=True) if x <= loss]
        others.append(min(theirs, default=float("inf")) / plain["tokens"])
        console.print(
            f"seed {seed}: random search {best:.4f} bits per byte in {plain['tokens']:,} tokens; the sweep {ours:.4f} "
            f"in {found['tokens'] / plain['tokens']:.0%} of them, as good as random after {ratios[-1]:.0%}; Hyperband "
            f"{min(band['losses'], default=float('inf')) - loss:+.4f} nats in {band['tokens'] / plain['tokens']:.0%}, "
            f"as good after {others[-1]:.0%}"
        )
    console.print(f"median: the sweep {statistics.median(ratios):.0%} (at most 40%), ", end="")
    console.print(f"Hyperband {statistics.median(others):.0%}")


def _val_loss(folder: Path, found: dict[str, Any]) -> float:
    """Of the best run, in nats per token."""
    path = folder / "trials" / f"{found['best']:04d}" / f"rung-{len(found['rungs'])}" / "summary.json"
    return float(json.loads(path.read_text())["val/loss"])


def workers(folder: Path) -> None:
    """Two workers beside one, always from the start."""
    ratios = []
    for turn in range(3):
        seconds = []
        for n in (1, 2):
            shutil.rmtree(folder / f"workers-{n}-{turn}", ignore_errors=True)
            started = time.perf_counter()
            swept(folder / f"workers-{n}-{turn}", workers=n, sampler="sobol", tokens=200_000)
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[1] / seconds[0])
        console.print(f"one worker {seconds[0]:.0f} s, two {seconds[1]:.0f} s: {ratios[-1]:.2f}")
    console.print(f"median {statistics.median(ratios):.2f} (at most 0.60)")


def kill(folder: Path) -> None:
    """A sweep with a worker that dies beside one without, both from the start."""
    options: dict[str, Any] = {"sampler": "sobol", "trials": 9, "tokens": 200_000}
    for name in ("left-alone", "killed"):
        shutil.rmtree(folder / name, ignore_errors=True)
    whole = swept(folder / "left-alone", **options)
    process = sweep(folder / "killed", **options)
    while len(list((folder / "killed").glob("trials/*/rung-*/checkpoints/last.ckpt"))) < 1 or not list(
        (folder / "killed").glob("trials/0003/rung-1/metrics.csv")
    ):
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = swept(folder / "killed", **options)
    for name, found in (("left alone", whole), ("killed", killed)):
        ended = [trial["scores"] for trial in found["trials"]]
        counts = [sum(len(scores) > rung for scores in ended) for rung in range(RUNGS)]
        console.print(f"{name}: {counts} runs ended by rung, best trial {found['best']}, {min(s[-1] for s in ended)}")
    same = [t["scores"] for t in whole["trials"]] == [t["scores"] for t in killed["trials"]]
    console.print(f"all scores the same: {same}")


def tuned(folder: Path, verb: str, stack: dict[str, Any], overlays: list[Path], **options: Any) -> dict[str, Any]:
    """The result of another tuning verb on a stack."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    config = folder.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(stack, sort_keys=False))
    words = [sys.executable, "-m", "gpt_lightning", "tune", verb, *(f"--config={path}" for path in (config, *overlays))]
    words += [f"--tune.{name}={value}" for name, value in {**options, "dir": folder}.items()]
    with folder.with_suffix(".log").open("ab") as log:
        if subprocess.run(words, stdout=log, stderr=log, check=False).returncode > 1:
            raise SystemExit(f"{folder}: tune {verb} failed: see {folder.with_suffix('.log')}")
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def losses(folder: Path, overlays: list[Path], config: Path, seeds: int) -> list[float]:
    """Final validation loss of whole runs, nats per token, by seed."""
    words = [f"--config={path}" for path in (config, *overlays)]
    stack, _ = read_stack(words, "benchmark")
    with TuneFolder(folder, {"stack": stack.to_dict()}) as kept:
        return [
            kept.measured(f"seed {seed}", lambda seed=seed: train(stack, {}, seed, VAL_TOKENS).val_loss)
            for seed in range(seeds)
        ]


def transfer(folder: Path) -> None:
    """What three narrow models say of a wide one, beside what it says itself."""
    length: dict[str, Any] = {"tokens": MODERN["max_tokens"], "seeds": 1, "val_tokens": VAL_TOKENS}
    found = tuned(folder / "transfer", "transfer", MODERN, [], **length)
    carried = folder / "transfer" / "tuned.yaml"
    direct = tuned(folder / "direct", "lr", MODERN, [carried], lengthen=False, **length)
    paths = [[carried], [carried, folder / "direct" / "tuned.yaml"]]
    config = folder / "transfer.yaml"
    ours, theirs = (losses(folder / f"runs-{i}", path, config, len(SEEDS)) for i, path in enumerate(paths))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    loss = found["predicted_loss"]
    console.print(
        f"lr {found['lr']:.1e} by transfer, {direct['lr']:.1e} directly; loss {statistics.mean(ours):.4f} and "
        f"{statistics.mean(theirs):.4f}, ratio {ratio:.4f} (at most 1.01), at {found['flops_share']:.0%} of the "
        f"compute (under 25%); best lr of three widths within a factor of {found['drift']:.2f}; predicted "
        f"{loss['value']:.3f} ({loss['low']:.3f} to {loss['high']:.3f})"
    )


def ladder(folder: Path) -> None:
    """A law of small runs, asked about a large one."""
    for seed in LADDER_SEEDS:
        stack = {**LADDER, "seed_everything": seed, "data": {**LADDER["data"], "seed": seed}}
        lr, own = folder / f"ladder-lr-{seed}", folder / f"ladder-{seed}"
        tuned(lr, "transfer", stack, [], widths=[16, 32, 48], tokens=200_000, val_tokens=VAL_TOKENS)
        overlays = [lr / "tuned.yaml"]
        found = tuned(own, "ladder", stack, overlays, flops=1.6e13, share=1.3, val_tokens=VAL_TOKENS)
        overlays = [*overlays, own / "tuned.yaml"]
        (loss,) = losses(folder / f"ladder-target-{seed}", overlays, own.with_suffix(".yaml"), 1)
        said = found["predicted_loss"]
        largest = max(run["flops"] for run in found["runs"])
        console.print(
            f"seed {seed}: {len(found['runs'])} runs; one of {found['flops'] / largest:.1f} x the compute of the "
            f"largest (at least 4): predicted {said['value']:.4f} ({said['low']:.4f} to {said['high']:.4f}), reached "
            f"{loss:.4f}: {said['value'] / loss - 1:+.2%} (within 2%)"
        )


PARTS = {"search": search, "workers": workers, "kill": kill, "transfer": transfer, "ladder": ladder}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark_sweep"))
    arguments = parser.parse_args()
    for part in arguments.only.split(","):
        PARTS[part](arguments.folder)

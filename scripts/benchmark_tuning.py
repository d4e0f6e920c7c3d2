"""How well the tuning verbs do, measured on the source code of Python's standard library; anyone can run it.

    python scripts/benchmark_tuning.py [--only lr,horizon,coverage,width,noise,quickstart] [--folder FOLDER]

lr          `tune lr` and Lightning's finder beside an exhaustive sweep (9 learning rates, 3 seeds): AdamW and Muon,
            4 layers x 256 and x 64
horizon     its answer for whole runs of a million tokens, three models, beside other learning rates
coverage    how often its 90% interval holds the minimum, on simulated curves of several shapes
width       the best learning rate of widths 64, 128 and 256, with the standard parametrization and with muP
noise       gradient noise scale against exact per-example gradients, and what measuring it costs a step
quickstart  tokens after which the quickstart reaches the bits per byte of what it was untuned, with GPT-3's structure

Every trial is kept in the folder, so that an interrupted run goes on where it stopped. On two cores lr takes about an
hour, horizon and width half of one, noise two minutes, quickstart twenty.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

import gpt_lightning as gl
from gpt_lightning.run.build import build
from gpt_lightning.run.stack import read_stack
from gpt_lightning.terminal import quiet
from gpt_lightning.tune.lr.verb import LearningRateConfig, tune_learning_rate
from gpt_lightning.tune.results import IfExists, TuneFolder
from gpt_lightning.tune.trials import identity, train, trial_stack
from gpt_lightning.tune.verb import Job

TOKENS = 65_536
GRID = [2.5e-4 * 2**i for i in range(9)]
STACK = {
    "max_tokens": TOKENS,
    "model.gpt.n_layers": 4,
    "model.schedule.name": "linear",
    "model.schedule.warmup_tokens": TOKENS // 16,
    "model.schedule.min_lr_ratio": 0.0,
    "data.corpus": "stdlib",
    "data.context_length": 128,
    "data.micro_batch_size": 4,
    "data.batch_tokens": 512,
    "data.prepare.vocab_size": 1024,
    "data.prepare.val_fraction": 0.03,
    "trainer.enable_progress_bar": False,
}
UNTUNED = {  # the quickstart as it was before it was tuned, whole
    "max_tokens": 1_800_000,
    "model.gpt": {"n_layers": 4, "n_heads": 3, "d_model": 192, "positions": "learned", "norm": "layer", "mlp": "gelu"}
    | {"qk_norm": False, "bias": True, "zero_init": False, "tie_embedding": True},
    "model.optim": {"name": "adamw", "lr": 4.0e-3, "betas": [0.9, 0.95], "weight_decay": 0.1, "lr_ratios": {}},
    "model.schedule": {"name": "linear", "warmup_tokens": 100_000, "min_lr_ratio": 0.0},
    "data.batch_tokens": 2_048,
    "data.micro_batch_size": 8,
}
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class SweepConfig:
    """Trials of one stack."""

    dir: str = "runs/benchmark_tuning"
    if_exists: IfExists = "resume"


def stack(width: int, optimizer: str = "adamw", **options: Any) -> list[str]:
    """Flags of a 4-layer model of this width, in heads of 32."""
    size = {"model.gpt.d_model": width, "model.gpt.n_heads": width // 32, "model.optim.name": optimizer}
    return [f"--{key}={value}" for key, value in {**STACK, **size, **options}.items()]


def sweep(folder: Path, name: str, flags: list[str], seeds: int) -> dict[float, float]:
    """Mean final validation loss of each learning rate of GRID."""
    stack, settings = read_stack(flags, "benchmark", settings=SweepConfig)
    means = {}
    with TuneFolder(folder / name, identity(stack, settings)) as kept:
        for lr in GRID:
            losses = []
            for seed in range(seeds):

                def trial(lr: float = lr, seed: int = seed) -> float | None:
                    loss = train(stack, {"model.optim.lr": lr}, seed, val_tokens=32_768).val_loss
                    return loss if math.isfinite(loss) else None

                loss = kept.measured(f"lr {lr} seed {seed}", trial)
                losses.append(math.inf if loss is None else loss)
            means[lr] = sum(losses) / seeds
            print(f"  {name} lr {lr:.1e}: {means[lr]:.4f}", flush=True)
    return means


def lightning_suggestions(folder: Path, flags: list[str]) -> list[float]:
    """What Lightning's Tuner.lr_find and its callback suggest for the same stack, with their default settings."""
    from lightning.pytorch.callbacks import LambdaCallback, LearningRateFinder
    from lightning.pytorch.tuner import Tuner

    found = []
    for callbacks in ([], [LearningRateFinder(attr_name="lr")]):
        stack, _ = read_stack(flags, "benchmark")
        with quiet():
            options = {"model.schedule.name": "constant", "model.schedule.warmup_tokens": 0}
            run = build(trial_stack(stack, options), callbacks)
            if callbacks:
                stop = LambdaCallback(on_train_start=lambda trainer, _: setattr(trainer, "should_stop", True))
                run.trainer.callbacks.append(stop)  # once it has found: the callback alone is of interest
                run.trainer.fit(run.module, run.data)
            else:
                Tuner(run.trainer).lr_find(run.module, datamodule=run.data, attr_name="lr")
        found.append(run.module.lr)
    return found


def lr_row(folder: Path, width: int, optimizer: str) -> str:
    """The sweep's best learning rate, and what tune lr and Lightning say, for one model and optimizer."""
    name, flags = f"{optimizer}-{width}", stack(width, optimizer)
    means = sweep(folder, name, flags, seeds=3)
    best = min(means, key=lambda lr: means[lr])
    options = [f"--tune.dir={folder / ('tune-' + name)}", f"--tune.tokens={round(0.4 * TOKENS)}"]
    ours, settings = read_stack([*flags, *options, "--tune.val_tokens=32768"], "tune lr", settings=LearningRateConfig)
    with TuneFolder(settings.dir, identity(ours, settings)) as kept, Progress(disable=True) as progress:
        found = tune_learning_rate(Job(ours, settings, kept, progress))
    with TuneFolder(folder / ("lightning-" + name), {}) as kept:
        theirs = kept.measured("suggestions", lambda: lightning_suggestions(folder / "lightning", flags))
    cells = [f"{found.lr:.1e} ({found.lr / best:.2f} x, {found.tokens / (27 * TOKENS):.0%})"]
    cells += [f"{lr:.1e} ({lr / best:.4f} x)" for lr in theirs]
    return f"{name:14s}{best:8.1e}" + "".join(f"{cell:>24s}" for cell in cells)


def benchmark_lr(folder: Path) -> None:
    rows = [lr_row(folder, width, optimizer) for width in (64, 256) for optimizer in ("adamw", "muon")]
    console.print("\nbest learning rate; in brackets over that of the sweep, and tokens over those of the sweep")
    console.print("                 sweep                 tune lr           Tuner.lr_find      LearningRateFinder")
    for row in rows:
        console.print(row)


def benchmark_width(folder: Path) -> None:
    table: dict[str, dict[int, dict[float, float]]] = {"standard": {}, "mup": {}}
    for width in (64, 128, 256):
        for name in table:
            if name == "mup" and width == 64:  # the base: the same model
                table[name][width] = table["standard"][width]
                continue
            options = {"model.gpt.parametrization": name, "model.gpt.base_d_model": 64} if name == "mup" else {}
            key = f"adamw-{width}" if not options and width != 128 else f"{name}-{width}"
            table[name][width] = sweep(folder, key, stack(width, **options), seeds=3 if key.startswith("adamw") else 2)
    for name, columns in table.items():
        console.print(f"\n{name}: mean final validation loss (nats per token), the best of each width marked")
        console.print("      lr" + "".join(f"{f'd_model {width}':>16s}" for width in columns))
        for lr in GRID:
            best = {w: min(means, key=lambda lr, means=means: means[lr]) for w, means in columns.items()}
            cells = (f"{means[lr]:.4f}{' *' if best[w] == lr else '  '}" for w, means in columns.items())
            console.print(f"{lr:8.1e}" + "".join(f"{cell:>16s}" for cell in cells))


def benchmark_horizon(folder: Path) -> None:
    import benchmark_tuning_lr

    benchmark_tuning_lr.benchmark_horizon(folder, stack)


def benchmark_coverage(folder: Path) -> None:
    import benchmark_tuning_lr

    benchmark_tuning_lr.benchmark_coverage(folder)


def benchmark_noise(folder: Path) -> None:
    import benchmark_tuning_noise

    options = [*stack(256, **{"data.micro_batch_size": 8, "data.batch_tokens": 1024}), f"--tune.dir={folder / 'noise'}"]
    benchmark_tuning_noise.benchmark_noise(folder, options)


def benchmark_quickstart(folder: Path) -> None:
    """The first validation at which the quickstart is at or below the last of UNTUNED."""
    from gpt_lightning.report.metrics_csv import read_metrics

    curves = {}
    for name, options in {"untuned": UNTUNED, "tuned": {}}.items():
        run_dir = folder / f"quickstart-{name}"
        if not (run_dir / "summary.json").exists():
            every = {"run_dir": str(run_dir), "val_interval_tokens": 60_000, "if_exists": "overwrite"}
            gl.run(["configs/quickstart.yaml"], {**options, **every, "samples.max_new_tokens": 0})
        curves[name] = read_metrics(run_dir)[["tokens", "val/bits_per_byte"]].dropna()
    untuned, tuned = curves["untuned"], curves["tuned"]
    target, of = untuned["val/bits_per_byte"].iloc[-1], untuned["tokens"].iloc[-1]
    reached = tuned[tuned["val/bits_per_byte"] <= target]["tokens"].min()
    last = tuned["val/bits_per_byte"].iloc[-1]
    console.print(f"\nquickstart untuned: {target:.4f} bits per byte after {of:,.0f} tokens")
    console.print(f"  tuned: the same after {reached:,.0f} tokens, {reached / of:.0%}; in the end {last:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default="lr,horizon,coverage,width,noise,quickstart", help="which of the six, comma-separated"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark_tuning"), help="where trials are kept")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.only.split(","):
        SECTIONS[name](args.folder)


SECTIONS = {
    "lr": benchmark_lr,
    "horizon": benchmark_horizon,
    "coverage": benchmark_coverage,
    "width": benchmark_width,
    "noise": benchmark_noise,
    "quickstart": benchmark_quickstart,
}

if __name__ == "__main__":
    main()

"""The noise part of benchmark_tuning.py: what `--gradient_noise.interval_steps 1` reports in whole runs, beside exact
per-example gradients of the same sequences at the same weights, and what it costs a step."""

import csv
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from torch.nn import functional as F

from gpt_lightning.callbacks.gradient_noise import GradientNoiseScale
from gpt_lightning.data.batches import micro_step_tokens
from gpt_lightning.run.build import build
from gpt_lightning.run.stack import read_stack
from gpt_lightning.terminal import quiet
from gpt_lightning.tune.batch.micro_batch import StepTimes
from gpt_lightning.tune.trials import train

SEQUENCES, T = 1024, 64
FROZEN = {
    "data.corpus": "stdlib",
    "data.prepare.vocab_size": 1024,
    "data.prepare.val_fraction": 0.03,
    "data.context_length": T,
    "max_tokens": SEQUENCES * T,
    "val_interval_tokens": SEQUENCES * T,
    "model.gpt.n_layers": 2,
    "model.gpt.n_heads": 2,
    "model.gpt.d_model": 64,
    "model.optim.lr": 1e-30,
    "model.optim.weight_decay": 0,
    "gradient_noise.interval_steps": 1,
    "gradient_noise.decay": 0.9999,
    "trainer.precision": "32-true",
    "trainer.accelerator": "cpu",
    "trainer.limit_val_batches": 1,
    "trainer.enable_progress_bar": False,
    "samples.max_new_tokens": 0,
    "if_exists": "overwrite",
}


def flags(options: dict[str, Any]) -> list[str]:
    return [f"--{key}={value}" for key, value in {**FROZEN, **options}.items()]


def exact_noise_scale(folder: Path) -> float:
    """S / |G|^2 in sequences from the gradient of every single sequence."""
    seed_everything(0, verbose=False)
    with quiet():
        run = build(read_stack(flags({"data.micro_batch_size": 1, "data.batch_tokens": 2 * T}), "fit")[0])
    run.module.configure_model()
    gpt, batches = run.module.gpt, iter(run.data.train_dataloader())
    assert gpt is not None
    parameters = list(gpt.parameters())
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    squares = 0.0
    for _ in range(SEQUENCES):
        tokens, targets = next(batches)
        loss = F.cross_entropy(gpt(tokens).flatten(0, 1), targets.flatten())
        for gradient, sum_ in zip(torch.autograd.grad(loss, parameters), total, strict=True):
            sum_ += gradient
            squares += gradient.double().square().sum().item()
    mean_square = sum((s / SEQUENCES).square().sum().item() for s in total)
    noise = (squares / SEQUENCES - mean_square) * SEQUENCES / (SEQUENCES - 1)
    return noise / (mean_square - noise / SEQUENCES)


def reported_noise_scale(folder: Path, b: int, k: int, ranks: int) -> float:
    """What a run with k micro-batches of b sequences on so many processes writes into metrics.csv at its end."""
    run_dir = folder / f"noise-{b}-{k}-{ranks}"
    shape = {"data.micro_batch_size": b, "data.batch_tokens": b * k * ranks * T, "run_dir": run_dir}
    shape["trainer.log_every_n_steps"] = SEQUENCES // (b * k * ranks)
    if ranks > 1:
        shape |= {"trainer.strategy": "ddp", "trainer.devices": ranks}
    command = [sys.executable, "-m", "gpt_lightning", "fit", *flags(shape)]
    subprocess.run(command, check=True, capture_output=True)
    with (run_dir / "metrics.csv").open() as file:
        values = [row.get("gradient_noise_scale", "") for row in csv.DictReader(file)]
    return float([value for value in values if value][-1])


def overhead(flags: list[str], rounds: int = 5) -> float:
    """Median seconds of a step with the noise measured at every step over those without, in turns."""
    stack, _ = read_stack(flags, "benchmark")
    batch_tokens = 4 * micro_step_tokens(stack["data.micro_batch_size"], stack["data.context_length"])
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for round_ in range(rounds + 1):
        for measured in seconds:
            times = StepTimes()
            callbacks = [GradientNoiseScale(interval_steps=1), times] if measured else [times]
            train(stack, {"data.batch_tokens": batch_tokens, "max_tokens": 8 * batch_tokens}, callbacks=callbacks)
            if round_:
                seconds[measured].append(statistics.median(times.plain) * 3 + statistics.median(times.updating))
    return statistics.median(a / b for a, b in zip(seconds[True], seconds[False], strict=True)) - 1


def benchmark_noise(folder: Path, stack: list[str]) -> None:
    exact = exact_noise_scale(folder)
    print(f"\nnoise scale of {SEQUENCES} sequences, 2 layers x 64: exact {exact:.3f}")
    for b, k, ranks in ((1, 16, 1), (4, 8, 1), (16, 4, 1), (4, 4, 2)):
        found = reported_noise_scale(folder, b, k, ranks)
        where = f"{ranks} processes" if ranks > 1 else "1 process"
        print(f"  {k} micro-batches of {b:2d}, {where}: {found:.3f}, {found / exact - 1:+.1%}", flush=True)
    print(f"  cost of measuring every step, 4 layers x 256, 4 micro-batches: {overhead(stack):+.1%}")

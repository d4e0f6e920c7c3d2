"""The two loops that benchmark_training.py compares: the same model, batches, clipping and optimizer.

The bare loop has no schedule, no metrics and no checkpoints, so the ratio is what all of those cost together."""

import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from gpt_lightning.model.loss import linear_cross_entropy
from gpt_lightning.model.parametrization import parametrization
from gpt_lightning.optim.optimizer import build_optimizer
from gpt_lightning.run import build as building
from gpt_lightning.run.build import Run
from gpt_lightning.run.folder import RunDir
from gpt_lightning.run.stack import read_stack
from gpt_lightning.terminal import quiet

BATCH_TOKENS = 4096


class StepTimes(Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.ends.append(time.perf_counter())


def write_corpus(path: Path) -> None:
    """Half a megabyte of words."""
    numbers = random.Random(0)
    words = ["".join(numbers.choices("abcdefghij", k=numbers.randint(1, 7))) for _ in range(3000)]
    paragraphs = (" ".join(numbers.choices(words, k=100)) for _ in range(1000))
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")


def build(steps: int, run_dir: str) -> Run:
    """A run of `steps` steps with everything that `fit` gives it, validation left out."""
    options = {
        "max_tokens": steps * BATCH_TOKENS,
        "val_interval_tokens": 100 * steps * BATCH_TOKENS,
        "run_dir": run_dir,
        "model.gpt.n_layers": 4,
        "model.gpt.n_heads": 4,
        "model.gpt.d_model": 256,
        "data.corpus": "text.txt",
        "data.prepare.vocab_size": 4096,
        "data.context_length": 256,
        "data.batch_tokens": BATCH_TOKENS,
        "data.micro_batch_size": 16,
        "trainer.accelerator": "cpu",
        "trainer.limit_val_batches": 0,
    }
    stack, _ = read_stack([f"--{key}={value}" for key, value in options.items()], "fit")
    return building.build(stack, folder=RunDir(Path(run_dir)))


def median_step(ends: list[float]) -> float:
    """Median seconds between ends, the first two steps left out."""
    return statistics.median(b - a for a, b in zip(ends[1:], ends[2:], strict=False))


def trainer_loop(steps: int, run_dir: str) -> float:
    """Median seconds per step under the Trainer."""
    with quiet():
        run = build(steps, run_dir)
        run.folder.claim("overwrite")
        times = StepTimes()
        run.trainer.callbacks.append(times)
        run.trainer.fit(run.module, run.data)
        run.folder.release()
    return median_step(times.ends)


def bare_loop(steps: int) -> float:
    """Median seconds per step of the plainest loop around the same model."""
    with quiet():
        run = build(steps, "unused")
    run.module.configure_model()
    gpt, ends = run.module.gpt, []
    assert gpt is not None
    numbers = parametrization(gpt.config).roles
    optimizer = build_optimizer(dict(gpt.named_parameters()), gpt.facts(), run.module.optim_config, numbers)
    batches = iter(run.data.train_dataloader())
    for _ in range(steps):
        tokens, targets = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = gpt.hidden_states(tokens)
            loss = linear_cross_entropy(hidden, gpt.readout, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ends.append(time.perf_counter())
    return median_step(ends)

"""The run of a rung: trained, or gone on with, into a run folder of its own; what it reached stays in score.json."""

import gc
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from gpt_lightning import files
from gpt_lightning.callbacks.steps import ends_step
from gpt_lightning.checkpoint import read_checkpoint
from gpt_lightning.run.fit import fit, score
from gpt_lightning.run.stack import Stack
from gpt_lightning.tune.trials import LossCurve

SAVES = 10  # checkpoints of a rung, from which it goes on


@dataclass(frozen=True)
class Score:
    """What a rung gives; the score is in bits per byte where there is a tokenizer, and infinite where it diverged."""

    score: float
    val_loss: float
    tokens: int


class Saves(Callback):
    """Keep a checkpoint to go on from, so many times in a run, and tell `advance` the tokens seen."""

    def __init__(self, path: Path, tokens: int, advance: Callable[[int], None]) -> None:
        self.path, self.interval, self.advance = path, max(tokens // SAVES, 1), advance
        self._saved = 0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._saved = pl_module.tokens_seen // self.interval

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not ends_step(trainer, batch_idx):
            return
        self.advance(pl_module.tokens_seen)
        reached = pl_module.tokens_seen // self.interval
        if reached > self._saved and pl_module.tokens_seen < pl_module.max_tokens:
            self._saved = reached
            trainer.save_checkpoint(self.path)


def train_rung(stack: Stack, advance: Callable[[int], None] = lambda tokens: None) -> Score:
    """The run of a rung, from its beginning or from where it stopped; kept in its folder, should its worker die."""
    path = Path(stack["run_dir"]) / "score.json"
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        score, val_loss = (math.inf if known[key] is None else known[key] for key in ("score", "val_loss"))
        return Score(score, val_loss, known["tokens"])
    try:
        found = _trained(stack, advance)
    finally:
        gc.collect()  # Lightning's objects refer to each other in circles: without this, old models pile up
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if int(os.environ.get("RANK", 0)) == 0:
        known = {key: value if math.isfinite(value) else None for key, value in asdict(found).items()}  # as JSON has it
        files.write_text(path, json.dumps(known) + "\n")
    return found


def _trained(stack: Stack, advance: Callable[[int], None]) -> Score:
    last = Path(stack["run_dir"]) / "checkpoints" / "last.ckpt"
    curve = LossCurve()
    summary: dict[str, Any] = {}
    if last.is_file() and read_checkpoint(last, optimizer=False)["tokens_seen"] >= stack["max_tokens"]:
        summary, _ = score(stack.with_({"ckpt_path": str(last)}), "val")  # it was stopped after its last step
        summary["tokens"] = stack["max_tokens"]
    else:
        try:
            summary = fit(stack, [curve, Saves(last, stack["max_tokens"], advance)])
        except ValueError:
            if not curve.diverged:
                raise
    seen = summary.get("tokens", len(curve.losses) * stack["data.batch_tokens"])
    val_loss = math.inf if curve.diverged else summary.get("val/loss", math.inf)
    if not math.isfinite(val_loss):
        return Score(math.inf, math.inf, seen)
    return Score(summary.get("val/bits_per_byte", val_loss), val_loss, seen)

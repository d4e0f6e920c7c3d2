"""The runs of a comparison: an arm with a seed, trained and scored, as numbers that outlive it."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from gpt_lightning.callbacks.steps import ends_step
from gpt_lightning.run.stack import Stack
from gpt_lightning.tune.trials import now, score, train

POINTS = 10  # of the validation curve
CURVE_SHARE = 10  # a point of the curve is scored on this part of the tokens of the final score


@dataclass(frozen=True)
class ArmRun:
    """One run. Scores in nats per token and, with a tokenizer, bits per byte; infinite where it diverged.

    curve: (tokens, nats per token, bits per byte) of about ten points, on a tenth of the text of the final score.
    seconds: of training steps, as if the first, in which much is set up, had been as fast as the others.
    """

    val_loss: float
    bits_per_byte: float | None
    curve: list[tuple[float, float, float | None]]
    tokens: int
    seconds: float

    @property
    def diverged(self) -> bool:
        return math.isinf(self.val_loss)


class Watch(Callback):
    """Scores and time of a run, as it goes; `advance` is told the tokens seen."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance = advance
        self.curve: list[tuple[float, float, float | None]] = []
        self.seconds = 0.0
        self._steps = 0
        self._from = self._paused = self._pause = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._from = now(pl_module.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not ends_step(trainer, batch_idx):
            return
        self._steps += 1
        self.advance(pl_module.tokens_seen)
        if self._steps == 1:
            self.seconds = now(pl_module.device) - self._from
            self._from += self.seconds

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._pause = now(pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            return
        self._paused += now(pl_module.device) - self._pause
        scores = {key: value.item() for key, value in trainer.callback_metrics.items()}
        self.curve.append((pl_module.tokens_seen, scores["val/loss"], scores.get("val/bits_per_byte")))

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self._steps > 1:
            others = now(pl_module.device) - self._from - self._paused
            self.seconds = others * self._steps / (self._steps - 1)


def train_arm(
    stack: Stack,
    options: dict[str, Any],
    seed: int,
    val_tokens: int | None,
    advance: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Any]:
    """The ArmRun of a run of `stack` with `options` over it, as JSON values.

    val_tokens: how much of the validation split it is scored on, in whole contexts; None for the whole.
    """
    watch = Watch(advance)
    max_tokens = options.get("max_tokens", stack["max_tokens"])
    options = {**options, "val_interval_tokens": max(max_tokens // POINTS, 1)}
    done = train(stack, options, seed, (val_tokens or 10**12) // CURVE_SHARE, [watch])
    scores: dict[str, float] = {}
    if math.isfinite(done.val_loss):
        tokens, micro_batch_size = _whole_batches(stack, val_tokens)
        scores = score(done.run, tokens, micro_batch_size)
    val_loss = scores.get("val/loss", math.inf)
    ended = math.isfinite(val_loss)
    run = ArmRun(
        val_loss if ended else math.inf,
        scores.get("val/bits_per_byte"),
        [point for point in watch.curve if math.isfinite(point[1])],
        done.tokens,
        watch.seconds,
    )
    del done
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return asdict(run)


def from_json(value: dict[str, Any]) -> ArmRun:
    """What `train_arm` gave and the folder kept."""
    return ArmRun(**{**value, "curve": [tuple(point) for point in value["curve"]]})


def _whole_batches(stack: Stack, val_tokens: int | None) -> tuple[int, int]:
    """(tokens to score on, sequences per forward): arms of other micro-batches read the same text."""
    micro_batch_size = stack["data.micro_batch_size"]
    if val_tokens is None:
        return 10**12, micro_batch_size
    sequences = val_tokens // stack["data.context_length"]
    return val_tokens, next(n for n in range(min(micro_batch_size, sequences), 0, -1) if sequences % n == 0)

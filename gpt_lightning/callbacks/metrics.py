"""Every number of a run: training loss, gradient norm, learning rate, throughput and validation scores.

They go to metrics.csv, to the loggers and to the progress bar, with the tokens seen as the x-axis. Sums stay on the
device; there is one synchronisation every `log_every_n_steps` steps and none in between. (Lightning's `self.log`
costs a quarter of a millisecond per key and step even when nothing is written, and its ThroughputMonitor
synchronises at every batch.)
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from gpt_lightning.model.flops import flops_per_token, peak_flops
from gpt_lightning.report.metrics_csv import append_metrics, truncate_metrics

MAX_SKIPPED_STEPS = 20  # updates in a row with a gradient that is not finite: the run is lost


class RunMetrics(Callback):
    """Gather the numbers of a run and hand them on.

    Args:
        path: The metrics.csv to write; None writes none.
        max_skipped_steps: Stop the run after so many updates in a row with a gradient that is not finite.
        sources: Functions that return further numbers, called whenever a row of training numbers is due.
    """

    def __init__(
        self,
        path: Path | None = None,
        max_skipped_steps: int = MAX_SKIPPED_STEPS,
        sources: Sequence[Callable[[], dict[str, float]]] = (),
    ):
        self.path = path
        self.max_skipped_steps = max_skipped_steps
        self.sources = sources
        self.latest: dict[str, float] = {}
        self._nats_and_bytes: Tensor | None = None
        self._step = self._tokens = 0
        self._started = self._lr = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if self.path and trainer.is_global_zero:
            truncate_metrics(self.path, pl_module.tokens_seen)  # rows past the checkpoint that is resumed
        self._reset(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self._lr = optimizer.param_groups[0]["lr"]  # by the time the step is logged, the scheduler has moved on

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        targets = batch[1]
        # Lightning divides each micro-step's loss by the accumulation
        nats = outputs["loss"].detach() * trainer.accumulate_grad_batches * targets.numel()
        if pl_module.token_bytes is None:
            text_bytes = torch.zeros((), device=targets.device)
        else:
            pl_module.token_bytes = pl_module.token_bytes.to(targets.device)
            text_bytes = pl_module.token_bytes[targets].sum()
        sums = torch.stack([nats.double(), text_bytes.double()])
        self._nats_and_bytes = sums if self._nats_and_bytes is None else self._nats_and_bytes + sums
        step, interval = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step != self._step and (step % interval == 0 or pl_module.tokens_seen >= pl_module.max_tokens):
            self.write(trainer, self._training_metrics(trainer, pl_module))
            self._reset(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._pause_started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._started += time.perf_counter() - self._pause_started
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            scores = {key: value.item() for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
            self.write(trainer, {"tokens": pl_module.tokens_seen, "step": trainer.global_step, **scores})

    def write(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Send one row to metrics.csv, the loggers and whoever reads `latest`."""
        self.latest.update(metrics)
        if self.path and trainer.is_global_zero:
            append_metrics(self.path, metrics)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=int(metrics["tokens"]))

    def _training_metrics(self, trainer: Trainer, module: Any) -> dict[str, float]:
        assert self._nats_and_bytes is not None
        tokens = module.tokens_seen - self._tokens
        sums: Any = trainer.strategy.reduce(self._nats_and_bytes, reduce_op="sum")
        nats, text_bytes = sums.tolist()  # the one synchronisation
        rate = tokens / (time.perf_counter() - self._started)
        metrics: dict[str, float] = {"tokens": module.tokens_seen, "step": trainer.global_step}
        metrics["train/loss"] = nats / tokens
        if text_bytes:
            metrics["train/bits_per_byte"] = nats / math.log(2) / text_bytes
        metrics["train/grad_norm"] = module.grad_norm.item()
        metrics["train/lr"] = self._lr
        metrics["throughput/tokens_per_second"] = rate
        peak = peak_flops(module.device)
        if peak:
            flops = flops_per_token(module.gpt_config, module.own_block)
            metrics["throughput/mfu"] = rate * flops / (peak * trainer.world_size)
        for source in self.sources:
            metrics |= source()
        self._check_skipped(module.skipped_steps.item())
        return metrics

    def _check_skipped(self, skipped: float) -> None:
        if skipped >= self.max_skipped_steps:
            raise ValueError(
                f"the gradient was not finite for {skipped:.0f} steps in a row; the last checkpoint is good: "
                "lower model.optim.lr, or look at the data after it"
            )

    def _reset(self, trainer: Trainer, module: Any) -> None:
        self._nats_and_bytes = None
        self._tokens, self._step = module.tokens_seen, trainer.global_step
        self._started = time.perf_counter()

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

from gpt_lightning.callbacks.steps import ends_step
from gpt_lightning.model.flops import flops_per_token, peak_flops
from gpt_lightning.model.step_mean import sum_dtype
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
        self._sums: Tensor | None = None  # since the last row, over all ranks: loss, targets that count, bytes of text
        self._tokens = 0
        self._started = self._lr = 0.0

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self._sums = None

    def state_dict(self) -> dict[str, Any]:
        return {} if self._sums is None else {"sums": self._sums.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sums = torch.tensor(state_dict["sums"], dtype=torch.float64)  # so that the next row is a whole one

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if self.path and trainer.is_global_zero:
            truncate_metrics(self.path, pl_module.tokens_seen)  # rows past the checkpoint that is resumed
        if self._sums is not None:
            self._sums = self._sums.to(pl_module.device, sum_dtype(pl_module.device))
        self._start_clock(pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self._lr = optimizer.param_groups[0]["lr"]  # by the time the step is logged, the scheduler has moved on

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not ends_step(trainer, batch_idx):
            return
        self._sums = pl_module.step.totals if self._sums is None else self._sums + pl_module.step.totals
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step % interval == 0 or pl_module.tokens_seen >= pl_module.max_tokens:
            self.write(trainer, self._training_metrics(trainer, pl_module))
            self._sums = None
            self._start_clock(pl_module)

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
        assert self._sums is not None
        loss, n_targets, text_bytes = self._sums.tolist()  # the one synchronisation
        rate = (module.tokens_seen - self._tokens) / (time.perf_counter() - self._started)
        metrics: dict[str, float] = {"tokens": module.tokens_seen, "step": trainer.global_step}
        metrics["train/loss"] = loss / n_targets if n_targets else math.nan
        if text_bytes and module.loss.in_nats:
            metrics["train/bits_per_byte"] = loss / math.log(2) / text_bytes
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

    def _start_clock(self, module: Any) -> None:
        self._tokens = module.tokens_seen
        self._started = time.perf_counter()

"""The progress bar: tokens done, loss, bits per byte, tokens per second, time left; a line at every validation.

On a terminal it is a Rich bar; in a log file or a notebook only the lines appear. Lightning's own bar counts
micro-steps and draws one bar per validation.
"""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gpt_lightning.callbacks.metrics import RunMetrics


class TokenProgressBar(ProgressBar):
    """Show the `latest` numbers of `metrics` while training goes on."""

    def __init__(self, metrics: RunMetrics):
        super().__init__()
        self.metrics = metrics
        self.enabled = True
        self.console = Console(stderr=True, highlight=False)
        self._progress: Progress | None = None

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if not self.enabled:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._progress.add_task("training", total=pl_module.max_tokens, completed=pl_module.tokens_seen, numbers="")
        self._progress.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._progress is not None:
            task = self._progress.tasks[0]
            numbers = training_numbers(self.metrics.latest)
            self._progress.update(task.id, completed=pl_module.tokens_seen, numbers=numbers)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        if self._progress is not None:
            self._progress.update(self._progress.tasks[0].id, description="validating")

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self._progress is None or trainer.sanity_checking:
            return
        self._progress.update(self._progress.tasks[0].id, description="training")
        self.console.print(validation_line(self.metrics.latest))

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def training_numbers(latest: dict[str, float]) -> str:
    """The numbers beside the bar, as far as they are known."""
    parts = []
    if "train/loss" in latest:
        parts.append(f"loss {latest['train/loss']:.3f}")
    if "train/bits_per_byte" in latest:
        parts.append(f"{latest['train/bits_per_byte']:.3f} bits/byte")
    if "throughput/tokens_per_second" in latest:
        parts.append(f"{latest['throughput/tokens_per_second']:,.0f} tokens/s")
    if "throughput/mfu" in latest:
        parts.append(f"MFU {latest['throughput/mfu']:.0%}")
    return "  ".join(parts)


def validation_line(latest: dict[str, float]) -> str:
    """One line that stays on the screen after a validation."""
    line = f"{latest['tokens']:>14,.0f} tokens  val loss {latest['val/loss']:.4f}"
    if "val/accuracy" in latest:
        line += f"  accuracy {latest['val/accuracy']:.2%}"
    if "val/bits_per_byte" in latest:
        line += f"  {latest['val/bits_per_byte']:.4f} bits/byte"
    if "throughput/tokens_per_second" in latest:
        line += f"  {latest['throughput/tokens_per_second']:,.0f} tokens/s"
    return line

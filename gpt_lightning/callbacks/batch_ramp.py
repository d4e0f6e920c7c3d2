"""A batch that grows over the first tokens of a run, as GPT-3's did (Brown et al. 2020, appendix B).

Early gradients point much the same way whatever the batch, so that small steps learn as much from fewer tokens; the
critical batch grows as the loss falls (McCandlish et al. 2018; Merrill et al. 2025, arXiv 2505.23971: 43% fewer steps
with a batch warm-up than with a small batch throughout). The micro-batch stays and the accumulation grows:

    tokens per step           ________  full, data.batch_tokens
                         ____|
                     ___|               always at or below the straight line from start to full
       start   _____|
                     ramp_tokens      -> tokens seen

Only divisors of the full accumulation are used, each from a micro-step on that is a multiple of it: so every full batch
still ends a step, and validations and checkpoints, which fall there, never cut one. Costs nothing. The batch of a
step follows from the tokens and micro-steps before it alone, so a resumed run needs no state.
"""

from typing import Any

from lightning.pytorch import Callback, Trainer

from gpt_lightning.optim.optimizer import TokenSchedule
from gpt_lightning.optim.rescale import LRRule, StepSettings


def ramp_accumulation(tokens: int, ramp_tokens: int, start: float, full: int, batch_idx: int = 0) -> int:
    """Micro-steps of the step that begins at micro-step `batch_idx`, after `tokens`; `start`, `full` are in them too.

    The largest divisor of `full` that is not above the ramp and that `batch_idx` is a multiple of.
    """
    wanted = full if tokens >= ramp_tokens else start + (full - start) * tokens / ramp_tokens
    return max(n for n in range(1, full + 1) if n == 1 or (full % n == 0 and n <= wanted and batch_idx % n == 0))


def check_ramp(start_batch_tokens: int, micro_step_tokens: int, batch_tokens: int) -> None:
    """Raises ValueError for a start that is not between a micro-step, over all devices, and the full batch."""
    if not micro_step_tokens <= start_batch_tokens <= batch_tokens:
        raise ValueError(
            f"batch_ramp.start_batch_tokens is {start_batch_tokens}; expected at least micro_batch_size x "
            f"context_length x devices = {micro_step_tokens} and at most batch_tokens = {batch_tokens}; for a smaller "
            "start, lower data.micro_batch_size"
        )


class BatchRamp(Callback):
    """Grow the batch linearly in tokens from `start_batch_tokens` to the full batch.

    Args:
        start_batch_tokens: Tokens of the first steps, rounded down to a batch whose accumulation divides the full one.
        ramp_tokens: Tokens after which the batch is full (GPT-3: 4 to 12 billion); 0 turns the ramp off.
        lr_rule: Multiply the learning rate by (batch / full batch) to the power 0, 1/2 or 1; with 1/2 and 1 weight
            decay follows, so that the weights' averaging time in tokens stays (optim/rescale.py).
        scale_beta2: Raise Adam's second beta to (batch / full batch), so that its memory in tokens stays.
    """

    def __init__(
        self,
        start_batch_tokens: int = 32_768,
        ramp_tokens: int = 0,
        lr_rule: LRRule = "none",
        scale_beta2: bool = False,
    ):
        for name, value, least in (("start_batch_tokens", start_batch_tokens, 1), ("ramp_tokens", ramp_tokens, 0)):
            if value < least:
                raise ValueError(f"batch_ramp.{name} is {value}; expected at least {least}")
        self.start_batch_tokens, self.ramp_tokens = start_batch_tokens, ramp_tokens
        self.lr_rule, self.scale_beta2, self._settings = lr_rule, scale_beta2, StepSettings()
        self._full, self._start = 1, 1.0  # micro-steps of a full and of the first step
        self._next: int | None = None  # micro-step at which the next step begins; None: now

    def describe(self) -> str:
        """The start of a line that goes on with the full batch."""
        return f"of {self.start_batch_tokens:,} growing over {self.ramp_tokens:,} tokens to "

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        full, batch_tokens = trainer.accumulate_grad_batches, trainer.datamodule.batch_tokens
        check_ramp(self.start_batch_tokens, batch_tokens // full, batch_tokens)
        self._full, self._start = full, self.start_batch_tokens * full / batch_tokens

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        # Lightning looks at the accumulation before the first batch, to see how many steps a resumed run has made
        self._begin(trainer, pl_module, trainer.fit_loop.epoch_loop.batch_progress.current.ready)
        self._next = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        # Here, not at the end of the last batch: what reads the accumulation there means the batch that has ended.
        if self._next is None or batch_idx >= self._next:
            self._next = batch_idx + self._begin(trainer, pl_module, batch_idx)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        ratio = trainer.accumulate_grad_batches / self._full
        self._settings.rescale(optimizer.param_groups, ratio, self.lr_rule, self.scale_beta2)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._settings.restore(trainer.optimizers[0].param_groups)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            trainer.accumulate_grad_batches = self._full

    def _begin(self, trainer: Any, module: Any, batch_idx: int) -> int:
        """Set the accumulation of the step that begins at micro-step `batch_idx`."""
        n = ramp_accumulation(module.tokens_seen, self.ramp_tokens, self._start, self._full, batch_idx)
        if n != trainer.accumulate_grad_batches or self._next is None:
            trainer.accumulate_grad_batches = n
            for config in trainer.lr_scheduler_configs:
                if isinstance(config.scheduler, TokenSchedule):  # it took the middle of a step as large as the last
                    config.scheduler.refresh()
        return n

"""Where a step begins and ends among its micro-steps, also after a resume with another number of them.

Lightning counts micro-steps and ends a step at every multiple of `accumulate_grad_batches`. A checkpoint holds the
count in micro-steps of its own time; with fewer devices or another micro-batch the multiples lie elsewhere, and it
would cut the first step short. (A batch ramp changes the accumulation within a run, at its multiples alone.)
"""

from typing import Any

from lightning.pytorch import Callback, Trainer

from gpt_lightning.data.batches import micro_step_tokens


def begins_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether micro-step `batch_idx` is the first of a step."""
    return batch_idx % trainer.accumulate_grad_batches == 0


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether micro-step `batch_idx` is the last of a step, in which the optimizer updates."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def micro_steps_done(tokens: int, unit: int, batch_tokens: int, ramp: bool) -> int:
    """What Lightning has to have counted after `tokens` so that the next step is whole.

    A batch ramp goes on from any micro-step, of `unit` tokens; otherwise only from a multiple of a whole batch.
    """
    if ramp:
        return tokens // unit
    return round(tokens / batch_tokens) * (batch_tokens // unit)


class WholeSteps(Callback):
    """On resume, turn Lightning's count of micro-steps into micro-steps of this run's size.

    Args:
        ramp: Whether the batch grows over the run.
    """

    def __init__(self, ramp: bool = False):
        self.ramp = ramp

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        data = trainer.datamodule  # before the loops take their state from the checkpoint
        unit = micro_step_tokens(data.micro_batch_size, data.context_length, trainer.world_size)
        done = micro_steps_done(checkpoint["tokens_seen"], unit, data.batch_tokens, self.ramp)
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        shift = done - progress["total"]["ready"]
        for part in ("total", "current"):
            for name in progress[part]:
                progress[part][name] += shift

"""The mean over the targets of a whole step, in whichever micro-step and on whichever rank they are."""

import torch
from jaxtyping import Float
from torch import Tensor


class StepMean:
    """A mean in the making: each micro-step is added to the sums of its step.

    Lightning takes the mean over micro-steps and DDP that over ranks, and a mean of means weighs a target by its
    neighbours. So each micro-step gives its sum over a constant, and the step's gradient is corrected once, without a
    synchronisation. Where every target counts, the factor is exactly 1.
    """

    def __init__(self) -> None:
        self.totals: Tensor | None = None  # of the last step, over all ranks: loss, targets that count, bytes of text
        self._sums: Tensor | None = None  # of the step under way, on this rank
        self._n_targets = 0

    @property
    def begins(self) -> bool:
        """Whether no micro-step of the step has been added."""
        return self._sums is None

    @property
    def loss(self) -> Tensor:
        """Mean loss of the last step, over all ranks."""
        assert self.totals is not None, "no step has ended"
        return self.totals[0] / self.totals[1]

    def add(self, loss: Tensor, count: Tensor, text_bytes: Tensor, n_targets: int) -> Float[Tensor, ""]:
        """What a micro-step calls backward on: its sum over its targets, of which only `count` may count."""
        sums = torch.stack([x.detach().to(sum_dtype(x.device)) for x in (loss, count, text_bytes)])
        self._sums = sums if self._sums is None else self._sums + sums
        self._n_targets = self._n_targets or n_targets  # constant, and the same on every rank
        return loss / self._n_targets

    def finish(self, n_micro_steps: int, n_ranks: int) -> Float[Tensor, ""]:
        """End the step: what its gradient, a mean over micro-steps and ranks, is to be multiplied by.

        0 when no target counts, for then the gradient is 0.
        """
        assert self._sums is not None, "the step has no micro-step"
        self.totals, self._sums = self._sums, None
        if n_ranks > 1:
            torch.distributed.all_reduce(self.totals)  # the strategy's own reduce waits at a barrier before it
        count = self.totals[1]
        return torch.where(count == 0, 0.0, self._n_targets * n_micro_steps * n_ranks / count)


def sum_dtype(device: torch.device) -> torch.dtype:
    """For sums over many steps; MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64

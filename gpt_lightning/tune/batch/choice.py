"""Which batch takes the least time to the same loss, by the times of its parts and the critical batch."""

from dataclasses import asdict, dataclass

from gpt_lightning.data.batches import micro_step_tokens
from gpt_lightning.tune.batch.micro_batch import MicroBatch

FARTHEST = 4  # times or a fraction of the present batch: the root rule for lr is an approximation


@dataclass(frozen=True)
class Choice:
    """A batch: its micro-batch and accumulation, and the time to the same loss over that of the best choice."""

    batch_tokens: int
    micro_batch_size: int
    accumulation: int
    seconds_per_token: float
    relative_time: float

    @property
    def micro_step_tokens(self) -> int:
        """Over all devices."""
        return self.batch_tokens // self.accumulation


def choose_batch(
    sizes: list[MicroBatch], critical: float, context_length: int, devices: int, batch_tokens: int
) -> tuple[Choice, Choice]:
    """(the choice that keeps `batch_tokens`, the choice with the least time to the same loss).

    Seconds of a step are those of its micro-steps and one update; devices work at once.
    Raises ValueError when no micro-batch that was measured makes a batch near the present one.
    """
    critical = max(critical, context_length)  # less than a sequence is noise of the estimate
    choices = []
    for one in sizes:
        unit = micro_step_tokens(one.micro_batch_size, context_length, devices)
        accumulations = {2**i for i in range(11)} | ({batch_tokens // unit} if batch_tokens % unit == 0 else set())
        for accumulation in accumulations:
            seconds = accumulation * one.micro_step_seconds + one.update_seconds
            tokens = unit * accumulation
            if not 1 / FARTHEST <= tokens / batch_tokens <= FARTHEST:
                continue
            per_token = seconds / tokens
            time = per_token * (1 + tokens / critical)
            choices.append(Choice(tokens, one.micro_batch_size, accumulation, per_token, time))
    if not choices:
        raise ValueError(f"batch_tokens {batch_tokens}: no multiple of {context_length} x {devices} devices is near it")
    best = min(choices, key=lambda c: (c.relative_time, c.batch_tokens))
    same = [choice for choice in choices if choice.batch_tokens == batch_tokens]
    now = min(same, key=lambda c: c.relative_time) if same else best
    return _relative(now, best), _relative(best, best)


def _relative(choice: Choice, best: Choice) -> Choice:
    return Choice(**{**asdict(choice), "relative_time": choice.relative_time / best.relative_time})

"""Stop at the horizon, counted in tokens, and validate there.

Lightning stops at `max_steps` without a last validation unless the interval happens to divide it.
"""

from typing import Any

from lightning.pytorch import Callback, Trainer


class TokenHorizon(Callback):
    """Stop once the module has seen its max_tokens."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.tokens_seen >= pl_module.max_tokens:
            trainer.should_stop = True

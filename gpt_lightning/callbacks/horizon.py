"""Stop at the horizon, counted in tokens, and validate there.

Lightning's own `max_steps` would be wrong for a batch that grows, and stops without a last validation unless the
interval happens to divide it.
"""

from typing import Any

from lightning.pytorch import Callback, Trainer

from gpt_lightning.callbacks.steps import ends_step


class TokenHorizon(Callback):
    """Stop at the end of the step in which the module has seen its max_tokens, or at once when it already has."""

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        trainer.should_stop = pl_module.tokens_seen >= pl_module.max_tokens

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.on_fit_start(trainer, pl_module)  # sharded strategies load their checkpoint in between

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.should_stop |= ends_step(trainer, batch_idx) and pl_module.tokens_seen >= pl_module.max_tokens

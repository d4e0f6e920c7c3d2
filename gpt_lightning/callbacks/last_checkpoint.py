"""The last checkpoint, at every validation: what a run goes on from.

Where that validation was also the best so far, both are the same state, and the last checkpoint is a second name of
the best one: not gathered from the ranks, hashed and written again.
"""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from gpt_lightning.checkpoint import link_checkpoint


class LastCheckpoint(Checkpoint):
    """Save to `path` at every validation; Lightning calls it after `best`, for they stand in this order."""

    def __init__(self, path: Path, best: ModelCheckpoint):
        self.path = path
        self.best = best

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if self.best._last_global_step_saved != trainer.global_step:
            trainer.save_checkpoint(self.path)
            return
        if trainer.is_global_zero:
            link_checkpoint(self.best.best_model_path, self.path)
        trainer.strategy.barrier("LastCheckpoint")

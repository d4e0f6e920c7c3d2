"""The checkpoints of a run: the best one by validation loss, and the last one, which the run goes on from.

Where that validation was also the best so far, both are the same state, and the last checkpoint is a second name of
the best one: not gathered from the ranks, hashed and written again.
"""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from gpt_lightning.checkpoint import link_checkpoint


class BestCheckpoint(ModelCheckpoint):
    """The state with the lowest validation loss so far, `folder`/best.ckpt."""

    def __init__(self, folder: Path):
        super().__init__(
            folder, "best", monitor="val/loss", save_on_train_epoch_end=False, enable_version_counter=False
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the best one wherever the run folder lies now: Lightning forgets it when the folder has moved."""
        path = Path(self.dirpath or "") / Path(state_dict["best_model_path"]).name
        if state_dict["best_model_path"] and path.exists():
            here = {"best_model_path": str(path), "kth_best_model_path": str(path)}
            best = {str(path): state_dict["best_model_score"]}
            super().load_state_dict({**state_dict, **here, "dirpath": self.dirpath, "best_k_models": best})


class LastCheckpoint(Checkpoint):
    """Save to `path` at every validation; Lightning calls it after `best`, for they stand in this order."""

    def __init__(self, path: Path, best: BestCheckpoint):
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

"""FSDP2 as Lightning's ModelParallelStrategy does it, with our checkpoints: whole in one file, or in shards.

Lightning's own writes a sharded checkpoint over the old one file by file, so that a kill in between leaves none, and
reads it by unpickling. Its gathered one is read without us.
"""

from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from gpt_lightning import sharded
from gpt_lightning.checkpoint import verify_checkpoint


class FSDP2Strategy(ModelParallelStrategy):
    """Weights, gradients and optimizer state sharded over the devices; see configs/trainer/fsdp2.yaml.

    With save_distributed_checkpoint every rank saves its shards, for models whose state does not fit on one rank.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        path = Path(self.broadcast(filepath))
        if self._save_distributed_checkpoint:
            sharded.write(checkpoint, path)
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, path)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        verify_checkpoint(path)
        if not sharded.is_sharded(path):
            return super().load_checkpoint(path, weights_only=True)
        rest = sharded.read_rest(path)
        assert self.model is not None and self.lightning_module is not None
        self.lightning_module.on_load_checkpoint(rest)  # refuses another model by name, before its shards are read
        weights: Any = get_model_state_dict(self.model)
        sharded.read_tensors(sharded.model_tensors(weights), path, together=True)
        self.model.load_state_dict(weights)
        for number, optimizer in enumerate(self.optimizers):
            state: Any = get_optimizer_state_dict(self.model, optimizer)
            sharded.read_tensors(sharded.optimizer_tensors(number, state["state"]), path, together=True)
            state["param_groups"] = rest["optimizer_states"][number]["param_groups"]
            set_optimizer_state_dict(self.model, optimizer, state)
        return rest


def check_strategy(setting: Any) -> None:
    """Raise ValueError for Lightning's own sharded checkpoints, which are pickles and not whole after a kill.

    setting: trainer.strategy as the stack has it.
    """
    if str(getattr(setting, "class_path", "")).split(".")[-1] == "ModelParallelStrategy":
        raise ValueError(
            "trainer.strategy is Lightning's ModelParallelStrategy; expected gpt_lightning.run.fsdp2.FSDP2Strategy "
            "with the same init_args (configs/trainer/fsdp2.yaml), whose checkpoints survive a kill and run no code"
        )

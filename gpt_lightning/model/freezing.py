"""What TrainableConfig says, done to a model: parameters that keep their values need no gradient."""

from torch import Tensor

from gpt_lightning.model.gpt import GPT
from gpt_lightning.model.lora import add_lora
from gpt_lightning.model.sharding import is_sharded
from gpt_lightning.model.trainable import TrainableConfig


def set_trainable(gpt: GPT, config: TrainableConfig, n_known_ids: int | None = None) -> None:
    """Freeze what `config` says; a head and rows of new ids are always trained, what a head replaces is not.

    Raises ValueError where the model has no such part.
    """
    if config != TrainableConfig() and is_sharded(gpt):
        raise ValueError(
            "model.trainable is for a whole model on each device; take --trainer.strategy ddp, or train all"
        )
    n_blocks = len(gpt.blocks)
    if config.frozen_blocks > n_blocks:
        raise ValueError(f"trainable.frozen_blocks {config.frozen_blocks}: the model has {n_blocks} blocks")
    if config.parts == "head" and gpt.label_head is None:
        raise ValueError("trainable.parts head: only a classification has one (data.examples.kind); take lora, or all")
    if config.parts != "all":
        gpt.requires_grad_(False)
        if gpt.label_head is not None:
            gpt.label_head.requires_grad_(True)
    if config.parts == "lora":
        add_lora(gpt, config.matrices, config.rank, config.alpha)
    for block in gpt.blocks[: config.frozen_blocks]:
        block.requires_grad_(False)
    if config.frozen_blocks:
        is_tied = gpt.lm_head is None and gpt.label_head is None
        for table in (gpt.wpe, None if is_tied else gpt.wte):
            if table is not None:
                table.requires_grad_(False)
    if gpt.label_head is not None and gpt.lm_head is not None:
        gpt.lm_head.requires_grad_(False)
    if n_known_ids is not None:
        train_new_rows(gpt, n_known_ids)


def train_new_rows(gpt: GPT, n_known_ids: int) -> None:
    """Train, of tables that are frozen, the rows of ids from `n_known_ids` on: a marker that nobody knew is learned."""
    if gpt.wte.weight.requires_grad or n_known_ids >= gpt.config.vocab_size:
        return
    gpt.n_known_ids = n_known_ids
    for table in (gpt.wte, gpt.lm_head):
        if table is not None:
            table.weight.requires_grad_(True)
            table.weight.register_hook(lambda gradient: _of_new_rows(gradient, n_known_ids))


def _of_new_rows(gradient: Tensor, n_known_ids: int) -> Tensor:
    kept = gradient.clone()
    kept[:n_known_ids] = 0
    return kept

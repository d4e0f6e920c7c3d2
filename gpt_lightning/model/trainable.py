"""Which parameters of a trained model a run trains: all, LoRA's beside them, a task's head, the upper blocks."""

from dataclasses import dataclass
from typing import Literal

MATRICES = ("attn.qkv", "attn.proj", "mlp.fc", "mlp.proj")


@dataclass(frozen=True)
class TrainableConfig:
    """What of the model is trained; the rest keeps the weights that it starts from."""

    parts: Literal["all", "lora", "head"] = "all"
    """all; lora: thin matrices beside those of the blocks; head: that of a classification alone."""
    frozen_blocks: int = 0
    """The first so many blocks keep their weights, and with them the embeddings, unless the readout is tied to them."""
    rank: int = 8
    """lora: inner width of the thin matrices."""
    alpha: float = 16.0
    """lora: alpha / rank multiplies their product."""
    matrices: tuple[str, ...] = MATRICES
    """lora: which linear layers of a block have some; attention's alone do worse (Schulman et al. 2025)."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"trainable: rank {self.rank} and alpha {self.alpha}; expected at least 1, and above 0")
        if self.frozen_blocks < 0:
            raise ValueError(f"trainable.frozen_blocks {self.frozen_blocks}: must be 0 or more")
        if self.parts == "lora" and not self.matrices:
            raise ValueError("trainable.matrices is empty; name one of a block's linear layers, such as attn.qkv")

    def describe(self) -> str:
        """What is trained, in words; nothing where that is all."""
        what = {"all": "", "head": "the head for labels alone"}.get(self.parts)
        if what is None:
            what = f"LoRA of rank {self.rank}, alpha {self.alpha:g}, beside {', '.join(self.matrices)}"
        if not self.frozen_blocks:
            return what
        return f"{what or 'all'} but the first {self.frozen_blocks} block{'s' if self.frozen_blocks > 1 else ''}"

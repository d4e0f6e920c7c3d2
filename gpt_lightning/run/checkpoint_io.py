"""Lightning's checkpoints, written and read by checkpoint.py.

Lightning's own write goes through the system's temporary folder without a flush: across devices, a kill leaves half a
file at the final path.
"""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO

from gpt_lightning.checkpoint import read_checkpoint, remove_checkpoint, write_checkpoint


class AtomicCheckpointIO(CheckpointIO):
    """Atomic, checksummed checkpoints that never run code when loaded."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        remove_checkpoint(path)

"""The run folder: whose it is, what it holds, and where a run goes on.

    runs/NAME/  config.yaml  metrics.csv  samples.txt  summary.json  tokenizer.json  checkpoints/{last,best}.ckpt

One process owns a folder at a time, by a lock that the kernel drops when the process dies, so that a dead owner's
folder is free. A folder that holds a run is never written over unless that is asked for.
"""

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gpt_lightning import files
from gpt_lightning.checkpoint import verify_checkpoint
from gpt_lightning.run.schema import IfExists

CONTENTS = ("config.yaml", "metrics.csv", "samples.txt", "summary.json", "tokenizer.json", "checkpoints")


@dataclass
class RunDir:
    """Paths inside a run folder, and the right to write to it."""

    path: Path
    _lock: IO[str] | None = field(default=None, repr=False)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def check(self, if_exists: IfExists) -> list[str]:
        """What the folder already holds of a run. Raises ValueError when there is something and it must stay."""
        held = [name for name in CONTENTS if (self.path / name).exists()]
        if held and if_exists == "refuse":
            raise ValueError(
                f"{self.path} already holds a run; add --if_exists resume to go on with it, "
                "--if_exists overwrite to replace it, or choose another --run_dir"
            )
        return held

    def claim(self, if_exists: IfExists) -> None:
        """Make the folder ours, or raise ValueError: another process has it, or `check` refuses."""
        self._lock = files.claim(self.path, "--run_dir")
        held = self.check(if_exists)
        if if_exists == "overwrite":
            for name in held:
                files.remove(self.path / name)

    def release(self) -> None:
        """Let others have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def resume_checkpoint(self) -> Path | None:
        """The newest undamaged checkpoint, None when there is none at all; a damaged one is passed over, loudly.

        Raises ValueError when there are checkpoints and all of them are damaged.
        """
        present = [
            path for path in self.checkpoints.glob("*.ckpt") if path.exists()
        ]  # not a link to shards that are gone
        found = sorted(present, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
        problems = []
        for path in found:
            try:
                verify_checkpoint(path)
                return path
            except ValueError as error:
                problems.append(str(error))
                warnings.warn(f"{error}; trying an earlier one", stacklevel=2)
        if problems:
            raise ValueError(f"no undamaged checkpoint in {self.checkpoints}: {'; '.join(problems)}")
        return None

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder, whole or not at all."""
        files.write_text(self.path / name, text)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        self.write_text("summary.json", json.dumps(summary, indent=2) + "\n")

"""The folder of a tuning verb: what was asked, what has been measured so far, and what came out.

    runs/lr/  identity.json  measured.jsonl  result.json  figure.png  tuned.yaml  trials/

Each measurement is one line of measured.jsonl, written as soon as it is made, so that the same command started again
after an interruption measures only what is missing. A folder has one identity: another stack or other options
are refused by name.
"""

import io
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

import yaml
from PIL import Image

from gpt_lightning import files
from gpt_lightning.run.stack import flatten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IfExists = Literal["resume", "overwrite"]
CONTENTS = (
    *("identity.json", "measured.jsonl", "result.json", "figure.png", "tuned.yaml", "trials"),
    *("config.yaml", "journal.log", "next.yaml", "wandb_stack.yaml", "wandb_sweep.yaml", "workers"),  # of a sweep
    "proxy.yaml",
)
COLORS = 128  # of a figure, which make it a quarter as large


class TuneFolder:
    """Results of one verb on one stack.

    Args:
        path: The folder; made when it is missing.
        identity: Everything that decides the result, as JSON values; a folder made with another is refused.
        if_exists: resume keeps what has been measured, overwrite starts anew.
        shared: Several processes work here; each writes the same results.

    Raises ValueError when another process works here, when the folder holds something else, or cannot be written.
    """

    def __init__(
        self, path: str | Path, identity: Mapping[str, Any], if_exists: IfExists = "resume", shared: bool = False
    ):
        self.path = Path(path)
        self._identity = json.loads(json.dumps(identity))
        self._check(if_exists)
        if if_exists == "overwrite":
            with files.claim(self.path, "--tune.dir"):
                self._clear()
        self._lock = files.claim(self.path, "--tune.dir", shared)
        with self.turn():
            files.write_text(self.path / "identity.json", json.dumps(self._identity, indent=2) + "\n")
            self._measured = self._read()

    def turn(self) -> IO[str]:
        """Until it is closed, other processes that share the folder wait."""
        return files.lock(self.path / ".turn", wait=True)

    def measured(self, key: str, measure: Callable[[], Any]) -> Any:
        """The JSON value that was measured under `key`; measured now, and kept, when there is none."""
        if key not in self._measured:
            value = json.loads(json.dumps(measure()))
            with (self.path / "measured.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "value": value}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._measured[key] = value
        return self._measured[key]

    def __contains__(self, key: str) -> bool:
        return key in self._measured

    def finish(self, result: Mapping[str, Any], figure: "Figure", tuned: Mapping[str, Any], header: str) -> None:
        """Write result.json, figure.png and tuned.yaml, each whole or not at all; tuned.yaml, the answer, last.

        result.json also holds the answer, by dotted names, as `tuned`; infinite numbers are null there.
        tuned: nested keys of the stack, only those that the verb decided. header: comment lines, without the #.
        """
        values = _json({**result, "tuned": flatten(tuned)})
        comment = "".join(f"# {line}\n" for line in header.splitlines())
        overlay = yaml.safe_dump(dict(tuned), sort_keys=False, default_flow_style=False) if tuned else "{}\n"
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=120)
        with self.turn():
            files.write_text(self.path / "result.json", json.dumps(values, indent=2, allow_nan=False) + "\n")
            with files.replacing(self.path / "figure.png") as file:
                Image.open(drawn).convert("RGB").quantize(COLORS).save(cast(IO[bytes], file), "PNG", optimize=True)
            files.write_text(self.path / "tuned.yaml", comment + overlay)

    def close(self) -> None:
        """Let others have the folder."""
        self._lock.close()

    def __enter__(self) -> "TuneFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, if_exists: IfExists) -> None:
        file = self.path / "identity.json"
        if not file.is_file() and self.path.is_dir() and any(path.name[0] != "." for path in self.path.iterdir()):
            raise ValueError(f"{self.path} exists and holds no tuning results; choose another --tune.dir")
        if not file.is_file() or if_exists == "overwrite":
            return
        before, now = flatten(json.loads(file.read_text(encoding="utf-8"))), flatten(self._identity)
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        holds = [path.name for path in self.path.iterdir() if path.name[0] != "." and path != file]
        if changed and holds:  # without, what was asked had been refused
            what = ", ".join(f"{key} {before.get(key)!r} (now {now.get(key)!r})" for key in changed[:3])
            raise ValueError(
                f"{self.path} holds results for {what}; add --tune.if_exists overwrite to replace them, "
                "or choose another --tune.dir"
            )

    def _clear(self) -> None:
        for name in reversed(CONTENTS):  # identity.json, which says whose the rest is, last
            files.remove(self.path / name)

    def _read(self) -> dict[str, Any]:
        file = self.path / "measured.jsonl"
        if not file.is_file():
            return {}
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) < len(lines):  # cut short by a kill
            files.write_text(file, "".join(whole))
        rows = [json.loads(line) for line in whole]
        return {row["key"]: row["value"] for row in rows}


def _json(value: Any) -> Any:
    """The same, with null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

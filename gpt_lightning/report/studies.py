"""Folders of tuning verbs, as their files have them: what was found, its picture, its overlay, its rows."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_lightning.report.runs import read_file

if TYPE_CHECKING:
    from pandas import DataFrame

ROWS = ("trials", "runs", "proxies", "arms", "checks", "rounds")  # lists in result.json that are tables


@dataclass(frozen=True)
class Study:
    """The folder of `tune NAME`."""

    name: str
    path: Path
    verb: str
    recommendation: str
    result: dict[str, Any] = field(repr=False)

    @property
    def figure(self) -> bytes | None:
        """The PNG."""
        path = self.path / "figure.png"
        return path.read_bytes() if path.is_file() else None

    @property
    def overlay(self) -> str:
        path = self.path / "tuned.yaml"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def table(self) -> "DataFrame":
        """Its trials, runs, proxies or arms; empty where it lists none.

        Nested values have dotted names; lists of them are left out.
        """
        import pandas

        for name in ROWS:
            rows = self.result.get(name)
            if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
                table = pandas.json_normalize(rows)
                return table[[name for name in table if not table[name].map(_is_nested).any()]]
        return pandas.DataFrame()


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, dict | list) for one in value))


def find_studies(paths: Iterable[str | Path]) -> list[Study]:
    """The finished folders of tuning verbs at `paths` or below, by name."""
    found: dict[Path, Study] = {}
    for path in (path for given in paths for path in sorted(Path(given).rglob("result.json"))):
        result = read_file(path, json.loads)
        if isinstance(result, dict) and "verb" in result:
            study = Study(str(path.parent), path.parent, result["verb"], result.get("recommendation", ""), result)
            found.setdefault(path.parent.resolve(), study)
    return sorted(found.values(), key=lambda study: study.name)

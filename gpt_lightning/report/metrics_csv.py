"""metrics.csv of a run: one row per measurement, keyed by tokens; written row by row, read as a DataFrame."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gpt_lightning import files

if TYPE_CHECKING:
    import pandas

# name -> key of summary.json: what compressors need for the same text
COMPRESSORS = {
    "gzip -9": "gzip_bits_per_byte",
    "xz -9e": "xz_bits_per_byte",
    "xz -9e after training text": "xz_after_training_bits_per_byte",
}


def append_metrics(path: Path, metrics: dict[str, float]) -> None:
    """Add one row; a key that no row has had so far becomes a new column, empty above."""
    columns = _columns(path)
    new = [key for key in metrics if key not in columns]
    if new:
        _rewrite(path, columns + new, _rows(path))
    with path.open("a", encoding="utf-8", newline="") as file:
        csv.DictWriter(file, columns + new).writerow(metrics)


def truncate_metrics(path: Path, tokens: int) -> None:
    """Drop the rows after `tokens`, which a resumed run will write again, and a row cut short by a kill."""
    if path.exists():
        kept = [row for row in _rows(path) if row["tokens"].isdigit() and int(row["tokens"]) <= tokens]
        _rewrite(path, _columns(path), [row for row in kept if None not in row.values()])


def read_metrics(path: str | Path) -> "pandas.DataFrame":
    """The rows of a run's metrics.csv (or of the run folder holding it); NaN where a row has no such value."""
    import pandas

    path = Path(path)
    return pandas.read_csv(path / "metrics.csv" if path.is_dir() else path)


def _columns(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file), [])


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _rewrite(path: Path, columns: list[str], rows: Iterable[dict[str, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, text.getvalue())

"""Run folders as tables: one row per run, its curves, and the settings in which runs differ.

runs = find_runs(["runs"])      every run folder below, trials of sweeps included
runs_table(runs)                size, length, scores
curves(runs)                    metrics over tokens, seconds and FLOPs
config_differences(runs)        settings that are not the same in all of them
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gpt_lightning.report.metrics_csv import read_metrics

if TYPE_CHECKING:
    from pandas import DataFrame

METRICS = ("val/bits_per_byte", "val/loss")  # that may decide which run is best
SCORES = ("val/loss", "val/bits_per_byte", "train/loss")
SIZES = ("n_params", "n_params_non_embedding", "tokens", "n_flops", "elapsed_seconds")
NOT_SETTINGS = ("run_dir", "if_exists")


@dataclass(frozen=True)
class RunFolder:
    """A run as its folder has it. settings: of config.yaml by dotted name. summary: empty where it has not ended."""

    name: str
    path: Path
    settings: dict[str, Any] = field(repr=False)
    summary: dict[str, Any] = field(repr=False)

    @property
    def lr(self) -> float | None:
        value = self.settings.get("model.optim.lr")
        return float(value) if isinstance(value, int | float) else None

    def score(self, metric: str) -> float | None:
        """Of its summary; None without one."""
        value = self.summary.get(metric)
        return float(value) if isinstance(value, int | float) else None


def find_runs(paths: Iterable[str | Path]) -> list[RunFolder]:
    """The run folders at `paths` or below, by name. Raises ValueError for a path that is not there."""
    found: dict[Path, RunFolder] = {}
    for given in map(Path, paths):
        if not given.exists():
            raise ValueError(f"{given} does not exist; expected a run folder, or a folder that holds some")
        for metrics in sorted(given.rglob("metrics.csv")):
            folder = metrics.parent
            if (folder / "config.yaml").is_file() and folder.resolve() not in found:
                found[folder.resolve()] = _read(folder)
    return sorted(found.values(), key=lambda run: run.name)


def runs_table(runs: Sequence[RunFolder]) -> "DataFrame":
    """One row per run: its size, how long it trained, what it reached."""
    import pandas

    rows = [{"run": run.name, **{key: run.summary.get(key) for key in (*SCORES, *SIZES)}} for run in runs]
    return pandas.DataFrame(rows, columns=["run", *SCORES, *SIZES])


def curves(runs: Sequence[RunFolder]) -> "DataFrame":
    """The rows of every run's metrics.csv, with its name, seconds of training (validation left out) and FLOPs."""
    import pandas

    tables = []
    for run in runs:
        table = read_metrics(run.path)
        table.insert(0, "run", run.name)
        table["seconds"] = _seconds(table)
        tokens, flops = run.summary.get("tokens"), run.summary.get("n_flops")
        table["flops"] = table["tokens"] * (flops / tokens) if tokens and flops else float("nan")
        tables.append(table)
    return pandas.concat(tables, ignore_index=True) if tables else pandas.DataFrame(columns=["run", "tokens"])


def config_differences(runs: Sequence[RunFolder]) -> "DataFrame":
    """One row per setting that is not the same in all runs, one column per run; empty where a run has none."""
    import pandas

    names = sorted({name for run in runs for name in run.settings} - set(NOT_SETTINGS))
    rows = {}
    for name in names:
        values = [run.settings.get(name, "") for run in runs]
        if any(value != values[0] for value in values):
            rows[name] = values
    return pandas.DataFrame.from_dict(rows, orient="index", columns=[run.name for run in runs])


def last_sample(run: RunFolder) -> str:
    """The text that it wrote last; empty where it wrote none."""
    path = run.path / "samples.txt"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return re.split(r"^=== after [\d,]+ tokens ===\n", text, flags=re.MULTILINE)[-1]


def _read(folder: Path) -> RunFolder:
    config = read_file(folder / "config.yaml", yaml.safe_load)
    summary = folder / "summary.json"
    known = read_file(summary, json.loads) if summary.is_file() else {}
    return RunFolder(str(folder), folder, _flat(config if isinstance(config, Mapping) else {}), known)


def read_file(path: Path, parse: Callable[[str], Any]) -> Any:
    """What is in a JSON or YAML file. Raises ValueError naming the file when it is damaged."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:  # of JSON and of UTF-8 the first
        raise ValueError(f"{path} is damaged ({error}); remove it, or name other folders") from error


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _seconds(table: "DataFrame") -> Any:
    """Seconds of training at every row; between rows that have none, in proportion to the tokens."""
    import numpy as np

    if "throughput/tokens_per_second" not in table:
        return float("nan")
    known = table[table["throughput/tokens_per_second"].notna()]
    if known.empty:
        return float("nan")
    steps = known["tokens"].diff().fillna(known["tokens"].iloc[0])
    ends = (steps / known["throughput/tokens_per_second"]).cumsum()
    return np.interp(table["tokens"], [0, *known["tokens"]], [0.0, *ends])

"""The verb `report`: runs and studies on one HTML page, which opens without network.

    gpt-lightning report runs --output report.html

Tables are sortable, curves go over tokens, seconds or FLOPs; the page (page.html) holds its figures, styles and script.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_lightning import files
from gpt_lightning.report.runs import (
    METRICS,
    RunFolder,
    config_differences,
    curves,
    find_runs,
    last_sample,
    runs_table,
)
from gpt_lightning.report.studies import Study, find_studies
from gpt_lightning.terminal import Parser

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

AXES = {"tokens": "tokens", "seconds": "seconds of training", "flops": "FLOPs"}
N_SAMPLES = 3
N_COLUMNS = 12  # runs beside each other in the table of settings


def main(argv: list[str], about: str = "") -> int:
    """The verb `report`."""
    parser = Parser(prog="gpt-lightning report", description=about or None, allow_abbrev=False)
    parser.add_argument("paths", nargs="*", default=["runs"], help="folders with runs and studies at any depth; runs")
    parser.add_argument("--output", default="report.html", metavar="FILE", help="the page; report.html")
    parser.add_argument("--metric", default=None, choices=METRICS, help="what is best; bits per byte where all have it")
    options = parser.parse_args(argv)
    runs, studies = find_runs(options.paths), find_studies(options.paths)
    if not runs and not studies:
        raise ValueError(f"no run and no study below {', '.join(options.paths)}; fit and the tuning verbs make them")
    files.write_text(Path(options.output), page(runs, studies, options.metric))
    print(f"{options.output}: {len(runs)} runs, {len(studies)} studies")
    return 0


def page(runs: Sequence[RunFolder], studies: Sequence[Study] = (), metric: str | None = None) -> str:
    """The HTML. metric: what is best; bits per byte where every run that has ended has it."""
    import jinja2

    ended = [run for run in runs if math.isfinite(run.score("val/loss") or math.inf)]
    metric = metric or ("val/bits_per_byte" if all(run.score(METRICS[0]) is not None for run in ended) else "val/loss")
    ranked = sorted((run for run in ended if run.score(metric) is not None), key=lambda run: run.score(metric) or 0.0)
    best = ranked[0].name if ranked else None
    listed = [*ranked, *(run for run in runs if run not in ranked)]
    table = runs_table(listed)
    table.insert(1, "lr", [run.lr for run in listed])
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    shown = sorted({run.name: run for run in listed[:N_COLUMNS]}.values(), key=lambda run: run.name)
    return environment.get_template("page.html").render(
        title="gpt-lightning report",
        metric=metric,
        best=best,
        runs=_cells(table, best),
        curves=_curve_figures(runs, metric, [run.name for run in ranked]),
        slice=_slice_figure(ranked, metric),
        differences=_cells(config_differences(shown).rename_axis("setting").reset_index()),
        samples={run.name: text for run in ranked[:N_SAMPLES] if (text := last_sample(run).strip())},
        studies=[_study(study) for study in studies],
    )


def _study(study: Study) -> dict[str, Any]:
    import pandas

    importance = study.result.get("importance") or {}
    shares = pandas.DataFrame({"setting": list(importance), "importance": list(importance.values())})
    return {
        "name": study.name,
        "verb": study.verb,
        "recommendation": study.recommendation,
        "png": base64.b64encode(study.figure).decode() if study.figure else "",
        "overlay": study.overlay,
        "importance": _cells(shares) if importance else None,
        "table": _cells(study.table()),
    }


def _cells(table: "DataFrame", best: str | None = None) -> dict[str, Any]:
    """What the template shows of a table: columns, rows of text with the number to sort by, the row of the best."""
    rows = [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    first = list(table.iloc[:, 0]) if len(table.columns) else []
    return {"columns": list(table.columns), "rows": rows, "best": first.index(best) if best in first else None}


def _cell(value: Any) -> dict[str, Any]:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return {"text": "", "key": None}
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return {"text": str(value), "key": None}
    number = float(value)
    whole = number.is_integer() and abs(number) < 1e15
    text = f"{number:,.0f}" if whole else f"{number:.4f}" if 0.01 <= abs(number) < 1e4 else f"{number:.3g}"
    return {"text": text, "key": repr(number) if math.isfinite(number) else None}


def _curve_figures(runs: Sequence[RunFolder], metric: str, ranked: Sequence[str]) -> Mapping[str, str]:
    """An SVG per x-axis that the runs have."""
    from gpt_lightning.report.curves import many_curves

    table = curves(runs)
    if metric not in table:
        return {}
    rows = table[table[metric].notna()]
    return {
        axis: _svg(many_curves(rows, axis, metric, ranked, label), f"curve-{axis}")
        for axis, label in AXES.items()
        if axis in rows and rows[axis].notna().any()
    }


def _slice_figure(ranked: Sequence[RunFolder], metric: str) -> str:
    """The score over the learning rate, where runs differ in it."""
    from gpt_lightning.report.curves import learning_rate_slice

    points = [(run.lr, run.score(metric), run.summary.get("tokens")) for run in ranked if run.lr]
    if len({lr for lr, _, _ in points}) < 3:
        return ""
    return _svg(learning_rate_slice(points, metric), "slice")


def _svg(figure: "Figure", name: str) -> str:
    """The figure as inline SVG, with ids of its own."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]

"""Run folders and folders of tuning verbs as tables."""

import json
import shutil

import pytest
import yaml

import gpt_lightning as gl
from gpt_lightning.cli import main
from gpt_lightning.report.runs import config_differences, curves, find_runs, last_sample, runs_table
from gpt_lightning.report.studies import find_studies
from tests.fixtures import TINY


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs that differ in lr and length."""
    from tests.fixtures import run_in

    folder = tmp_path_factory.mktemp("runs")
    for name, lr, tokens in (("a", 1e-2, 512), ("b", 2e-2, 1024)):
        options = {"data.corpus": "text.txt", "run_dir": f"runs/{name}", "model.optim.lr": lr, "max_tokens": tokens}
        run_in(folder, {**TINY, **options})
    return folder / "runs"


def test_a_row_per_run_holds_what_its_summary_holds(folder):
    runs = find_runs([folder])
    table = runs_table(runs).set_index("run")
    assert list(table.index) == [str(folder / "a"), str(folder / "b")]
    for run in runs:
        summary = json.loads((run.path / "summary.json").read_text())
        for name in ("val/loss", "val/bits_per_byte", "tokens", "n_params", "n_flops"):
            assert table.loc[run.name, name] == summary[name]
    assert len(find_runs([folder / "b", folder])) == 2, "none twice"


def test_curves_have_tokens_seconds_and_flops_that_grow_together(folder):
    table = curves(find_runs([folder]))
    rows = table[(table["run"] == str(folder / "b")) & table["train/loss"].notna()]
    assert list(rows["tokens"]) == [64 * i for i in range(1, 17)]
    seconds = (64 / rows["throughput/tokens_per_second"]).cumsum()
    assert list(rows["seconds"]) == pytest.approx(list(seconds))
    per_token = rows["flops"] / rows["tokens"]
    assert per_token.std() == pytest.approx(0, abs=1e-6 * per_token.mean())
    scored = table[table["val/loss"].notna()]
    assert (scored["seconds"] > 0).all()


def test_only_settings_that_differ_are_listed(folder):
    table = config_differences(find_runs([folder]))
    assert sorted(table.index) == ["max_tokens", "model.optim.lr"]
    assert list(table.loc["model.optim.lr"]) == [0.01, 0.02]


def test_the_last_sample_is_that_of_the_last_validation(folder):
    (run,) = find_runs([folder / "b"])
    text = (run.path / "samples.txt").read_text()
    assert text.count("=== after ") > 1 and text.endswith("=== after 1,024 tokens ===\n" + last_sample(run))


@pytest.mark.slow
def test_a_study_knows_its_verb_and_lists_its_rows(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(folder.parent)
    options = {**TINY, "data.corpus": "text.txt", "tune.dir": str(tmp_path / "lr"), "tune.seeds": 1}
    gl.run([], {**options, "max_tokens": 5120, "tune.tokens": 1280, "tune.val_tokens": 64}, verb="tune lr")
    (study,) = find_studies([tmp_path])
    assert study.verb == "tune lr" and study.recommendation.startswith("lr ")
    assert len(study.table()) >= 3 and study.figure.startswith(b"\x89PNG")
    assert yaml.safe_load(study.overlay)["model"]["optim"]["lr"] == study.result["lr"]
    assert find_studies([folder]) == []


def test_paths_without_runs_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "nowhere"]) == 2
    assert main(["report", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: nowhere does not exist; expected a run folder")
    assert lines[1].startswith("error: no run and no study below ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "text"), [("config.yaml", "a: ["), ("summary.json", "{"), ("result.json", "{")])
def test_a_damaged_file_is_named_in_one_line(folder, tmp_path, capsys, name, text):
    shutil.copytree(folder / "a", tmp_path / "a")
    (tmp_path / "a" / name).write_text(text)
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "report.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'a' / name} is damaged (") and line.endswith(
        "; remove it, or name other folders"
    )
    assert not (tmp_path / "report.html").exists()

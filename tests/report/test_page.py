"""The HTML page, opened in headless Chromium: what is there, what a click does, and that nothing leaves the machine."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from matplotlib.figure import Figure

from gpt_lightning.cli import main

N_RUNS = 5


def write_run(path: Path, number: int) -> None:
    """A run folder as `fit` leaves it, of made-up numbers."""
    path.mkdir(parents=True)
    settings = {"max_tokens": 3000, "model": {"optim": {"lr": 1e-3 * 2**number, "name": "<b>adamw</b>"}}}
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    score = 2.0 + abs(number - 3) / 10
    rows = ["tokens,step,train/loss,throughput/tokens_per_second,val/loss,val/bits_per_byte"]
    for i in (1, 2, 3):
        rows += [f"{1000 * i},{i},{6 - i},500.0,,", f"{1000 * i},{i},,,{score + 3 - i},{score + 3 - i}"]
    (path / "metrics.csv").write_text("\n".join(rows) + "\n")
    summary = {"tokens": 3000, "val/loss": score, "val/bits_per_byte": score, "n_flops": 3e9, "n_params": 10**number}
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "samples.txt").write_text(f"=== after 3,000 tokens ===\n<script>alert({number})</script>\n\n")


def write_study(path: Path) -> None:
    """A folder as `tune sweep` leaves it."""
    path.mkdir()
    trials = [{"number": i, "scores": [3.0 - i], "point": {"lr": 0.1 * i}} for i in range(3)]
    found = {"verb": "tune sweep", "recommendation": "lr 0.2", "importance": {"lr": 0.75, "batch": 0.25}}
    (path / "result.json").write_text(json.dumps({**found, "trials": trials}))
    (path / "tuned.yaml").write_text("model: {optim: {lr: 0.2}}\n")
    Figure().savefig(path / "figure.png")


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The page of five runs and a study, open."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Debian's chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    monkeypatch.chdir(tmp_path)
    for number in range(N_RUNS):
        write_run(tmp_path / "runs" / f"run-{number}", number)
    write_study(tmp_path / "runs" / "sweep")
    assert main(["report", "runs", "--output", "report.html"]) == 0
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        yield page
        browser.close()


def column(page, table: str, number: int) -> list[str]:
    return page.locator(f"#{table} tbody tr td:nth-child({number})").all_inner_texts()


@pytest.mark.slow
def test_tables_and_plots_are_there_and_nothing_leaves_the_machine(page, tmp_path):
    assert column(page, "runs-table", 1)[0] == "runs/run-3", "the best comes first"
    assert page.locator("#runs-table tr.best td").first.inner_text() == "runs/run-3"
    assert column(page, "differences-table", 1) == ["model.optim.lr"]
    assert page.locator("figure svg").count() == 4 and page.locator("figure svg:visible").count() == 2
    assert page.locator("figure img").evaluate("image => image.naturalWidth") > 100
    assert page.locator(".side section").count() == 3
    assert "<script>alert(3)</script>" in page.locator(".side pre").first.inner_text()
    assert column(page, "study-table-1", 1) == ["0", "1", "2"] and column(page, "importance-1", 1) == ["lr", "batch"]
    assert "tune sweep: runs/sweep" in page.locator("#study-1").inner_text()
    assert page.said == []
    asked = [url for url in page.asked if not url.startswith("data:")]
    assert asked == [(tmp_path / "report.html").as_uri()]


@pytest.mark.slow
def test_a_click_on_a_header_sorts_by_number_and_a_second_one_the_other_way(page):
    header = page.locator("#runs-table th", has_text=re.compile("^n_params$"))
    header.click()
    assert column(page, "runs-table", 1) == [f"runs/run-{i}" for i in range(N_RUNS)]
    assert column(page, "runs-table", 6) == ["1", "10", "100", "1,000", "10,000"]
    header.click()
    assert column(page, "runs-table", 1) == [f"runs/run-{i}" for i in reversed(range(N_RUNS))]
    assert header.get_attribute("aria-sort") == "descending"
    page.locator("#runs-table th").first.click()
    assert column(page, "runs-table", 1) == [f"runs/run-{i}" for i in range(N_RUNS)] and page.said == []


@pytest.mark.slow
def test_curves_go_over_tokens_seconds_and_flops(page):
    for name, label in (("seconds", "seconds of training"), ("flops", "FLOPs"), ("tokens", "tokens")):
        page.get_by_role("button", name=name).click()
        shown = page.locator("figure[data-tab=curve]:visible")
        assert shown.count() == 1 and shown.get_attribute("data-name") == name
        assert label in shown.locator("svg").text_content()

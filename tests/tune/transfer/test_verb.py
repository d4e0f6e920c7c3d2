"""The verb `tune transfer` on a tiny stack: what it proves, tunes, writes and refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import gpt_lightning as gl
from gpt_lightning.cli import main
from gpt_lightning.tune.lr.verb import find_learning_rate
from gpt_lightning.tune.transfer import verb
from tests.fixtures import TINY, arguments, error_lines

WIDE = {
    **{"data.corpus": "text.txt", "max_tokens": 2560, "model.gpt.d_model": 32, "model.gpt.n_heads": 4},
    **{"model.gpt.dropout": 0.0, "tune.tokens": 1280, "tune.val_tokens": 256},
}


def transfer(**options) -> int:
    return main(["tune", "transfer", *arguments({**WIDE, **options})])


@pytest.mark.slow
def test_the_overlay_makes_the_target_and_the_proxy_what_was_tuned(folder, capsys):
    assert transfer() in (0, 1)  # so short runs need not agree on the best
    printed = capsys.readouterr()
    assert "arning:" not in printed.err, printed.err
    found = json.loads(Path("runs/transfer/result.json").read_text())
    assert [proxy["d_model"] for proxy in found["proxies"]] == [8, 16, 24]
    assert found["predicted_loss"]["low"] < found["predicted_loss"]["value"] < found["predicted_loss"]["high"]
    assert found["flops"] == pytest.approx(sum(proxy["flops"] for proxy in found["proxies"]))
    assert 0.1 < found["flops_share"] < 1
    assert f"{found['flops_share']:.0%} of the same search on the target itself" in printed.out
    assert Path("runs/transfer/figure.png").stat().st_size > 20_000
    tuned = yaml.safe_load(Path("runs/transfer/tuned.yaml").read_text())["model"]
    assert tuned == {
        "gpt": {"parametrization": "completep", "base_d_model": 24, "base_n_layers": 1},
        "optim": {"lr": found["lr"]},
    }
    flags = {key: value for key, value in {**TINY, **WIDE}.items() if not key.startswith("tune.")}
    del flags["model.optim.lr"]
    summary = gl.run(
        ["runs/transfer/tuned.yaml"], {**flags, "max_tokens": 64, "val_interval_tokens": 64, "run_dir": "run"}
    )
    assert summary["run_dir"] and Path("run/config.yaml").exists()
    proxy = yaml.safe_load(Path("runs/transfer/proxy.yaml").read_text())["model"]["gpt"]
    assert proxy == {**tuned["gpt"], "n_layers": 1, "n_heads": 3, "d_model": 24}

    measured = Path("runs/transfer/measured.jsonl").read_text()
    assert transfer() in (0, 1)
    assert Path("runs/transfer/measured.jsonl").read_text() == measured, "the same command again trains nothing"


def test_a_model_whose_parametrization_is_wrong_is_not_tuned(folder, capfd):
    assert transfer(**{"model.block": "tests.blocks.WrongDepthBlock"}) == 2
    (line,) = error_lines(capfd.readouterr().err)
    assert line.startswith("error: tune verify fails on ") and "would not hold for this one" in line
    assert not list(Path("runs/transfer").glob("*.yaml"))


def test_a_best_that_moves_with_the_width_is_a_failure(folder, monkeypatch, capsys):
    found = {}

    def moving(job, tokens):
        """One search for all widths, moved by the width."""
        if not found:
            found["first"] = find_learning_rate(job, tokens)
        first = found["first"]
        run = first.found.answer.run
        moved = replace(run, value=run.value * 24 / job.stack["model.gpt.d_model"])
        return replace(first, found=replace(first.found, answer=replace(first.found.answer, run=moved)))

    monkeypatch.setattr(verb, "find_learning_rate", moving)
    assert transfer() == 1
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("recommendation: FAIL: the best lr moves with the width by a factor of 3.0")
    assert json.loads(Path("runs/transfer/result.json").read_text())["stable"] is False

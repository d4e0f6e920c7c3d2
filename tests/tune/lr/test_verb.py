"""The verb `tune lr` on a tiny stack: files, resumption, overlay, and Lightning's own tuner on our module."""

import json
import math

import pytest
import yaml
from lightning.pytorch.tuner import Tuner

import gpt_lightning as gl
from gpt_lightning.cli import main
from gpt_lightning.run.build import Run
from gpt_lightning.terminal import quiet
from tests import fixtures
from tests.fixtures import TINY, arguments

OPTIONS = {"data.corpus": "text.txt", "max_tokens": 20 * 1280, "model.gpt.dropout": 0.0, "val_interval_tokens": 99999}
TUNE = ["--tune.tokens=1280", "--tune.val_tokens=256", "--tune.dir=runs/lr"]


def tune(*options: str) -> int:
    return main(["tune", "lr", *arguments(OPTIONS), *TUNE, *options])


@pytest.mark.slow
def test_the_verb_writes_its_folder_resumes_from_it_and_its_overlay_is_accepted_by_fit(folder, capsys):
    assert tune() == 0
    printed = capsys.readouterr()
    assert "arning" not in printed.err, printed.err
    last = printed.out.strip().splitlines()[-1]
    assert last.startswith("recommendation: lr ") and "runs/lr/tuned.yaml" in last
    result = json.loads((folder / "runs" / "lr" / "result.json").read_text())
    overlay = yaml.safe_load((folder / "runs" / "lr" / "tuned.yaml").read_text())
    assert overlay == {"model": {"optim": {"lr": result["lr"]}}}
    for name in ("lr", "lr_of_trials", "exponent"):
        low, high = result[f"{name}_90"]
        assert low < result[name] < high
    middle = result["lr_of_trials"] * result["horizon_factor"]
    assert abs(result["asymmetry"] - 1) > 0.1 and (result["lr"] < middle) == (result["asymmetry"] > 1)
    assert 0 <= result["exponent_data_weight"] <= 1 and "published exponents" in printed.out
    assert "published exponents" in (folder / "runs" / "lr" / "tuned.yaml").read_text()
    assert result["lengthened"] and result["trial_tokens"] == 4 * 1280, "20 times the tokens: surely vague"
    assert result["tokens"] <= 30 * 1280 + 2 * 40 * 64
    assert (folder / "runs" / "lr" / "figure.png").stat().st_size > 10_000
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["lr"], "it touched other folders"

    journal = folder / "runs" / "lr" / "measured.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]))  # interrupted in the last trial
    assert tune() == 0
    assert journal.read_text() == "".join(lines), "the same trial gave another loss"
    assert json.loads((folder / "runs" / "lr" / "result.json").read_text()) == result

    flags = {**TINY, **OPTIONS, "max_tokens": 64, "run_dir": "run"}
    del flags["model.optim.lr"]
    gl.run(["runs/lr/tuned.yaml"], flags)
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert config["model"]["optim"]["lr"] == result["lr"]


def test_bad_options_are_one_line_and_write_nothing(folder, capsys):
    for options, words in (
        (["--tune.tokens=640"], ["640", "20 steps", "1280"]),
        (["--tune.seeds=0"], ["seeds", "0"]),
        (["--tune.token=5"], ["tune.token", "did you mean tune.tokens"]),
        (["--data.corpus=nowhere.txt"], ["nowhere.txt"]),
    ):
        assert tune(*options) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert all(word in error for word in words), error
    assert not (folder / "runs" / "lr" / "tuned.yaml").exists()


def ratios(module) -> list[float]:
    groups = module.trainer.optimizers[0].param_groups
    return [group["lr"] * group["lr_ratio"] / (groups[0]["lr"] * groups[0]["lr_ratio"]) for group in groups]


def build(**options) -> Run:
    flags = {"data.corpus": "text.txt", "run_dir": "run", "model.optim.lr_ratios": '{"hidden": 8.0}', **options}
    with quiet():
        return fixtures.build({**OPTIONS, **flags, "trainer.enable_checkpointing": False})


@pytest.mark.slow
def test_lightnings_finder_runs_on_our_module_and_keeps_an_8_to_1_ratio(folder):
    run = build()
    seen = []
    step = run.module.configure_gradient_clipping
    run.module.configure_gradient_clipping = lambda *a, **k: (seen.append(ratios(run.module)), step(*a, **k))
    with quiet():
        finder = Tuner(run.trainer).lr_find(run.module, datamodule=run.data, num_training=30, attr_name="lr")
    names = [group["name"] for group in run.trainer.optimizers[0].param_groups]
    expected = [8.0 if name.startswith("hidden") else 1.0 for name in names]
    assert len(seen) > 10 and all(found == pytest.approx(expected) for found in seen)
    assert run.module.lr == finder.suggestion() and ratios(run.module) == pytest.approx(expected)
    assert run.module.tokens_seen == 0, "the finder's tokens were counted"
    with quiet():
        run.trainer.fit(run.module, run.data)
    assert run.module.tokens_seen == OPTIONS["max_tokens"] and ratios(run.module) == pytest.approx(expected)


@pytest.mark.slow
def test_lightnings_callback_changes_the_learning_rate_that_is_trained_with(folder):
    from lightning.pytorch.callbacks import LearningRateFinder

    run = build(**{"model.schedule.name": "constant", "max_tokens": 640})
    used = []
    step = run.module.configure_gradient_clipping
    run.trainer.callbacks.append(LearningRateFinder(num_training_steps=20, attr_name="lr"))
    run.module.configure_gradient_clipping = lambda o, *a, **k: (used.append(o.param_groups[0]["lr"]), step(o, *a, **k))
    with quiet():
        run.trainer.fit(run.module, run.data)
    assert used[-1] == pytest.approx(run.module.lr) and run.module.lr != 0.01
    assert not math.isnan(run.module.lr)


@pytest.mark.slow
def test_lightnings_batch_scaler_finds_a_micro_batch(folder):
    run = build(**{"data.batch_tokens": 32})
    with quiet():
        found = Tuner(run.trainer).scale_batch_size(
            run.module, datamodule=run.data, batch_arg_name="micro_batch_size", max_trials=2, steps_per_trial=2
        )
    assert found == run.data.micro_batch_size == 4

"""The verb `tune sweep` on a tiny stack: what it trains, keeps, refuses, and finds again after a kill."""

import json
import math
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

import gpt_lightning as gl
from gpt_lightning import files
from gpt_lightning.cli import main
from gpt_lightning.run.stack import read_stack
from gpt_lightning.tune.sweep import training, worker
from gpt_lightning.tune.sweep.study import SweepStudy
from gpt_lightning.tune.sweep.worker import Score
from tests.fixtures import TINY, arguments

OPTIONS = {"data.corpus": "text.txt", "max_tokens": 11_520, "model.gpt.dropout": 0.0}
SPACE = {
    "model.optim.lr": {"low": 1e-4, "high": 1.0, "log": True},
    "data.batch_tokens": [32, 64],
    "optimizer": {
        "adamw": {"model.optim.name": "adamw", "space": {"model.optim.eps": {"low": 1e-9, "high": 1e-5, "log": True}}},
        "muon": {"model.optim.name": "muon"},
    },
}
FLAGS = {f"tune.{name}": value for name, value in {"trials": 9, "val_tokens": 200, "space": json.dumps(SPACE)}.items()}


def sweep(*options: str) -> int:
    return main(["tune", "sweep", *arguments({**OPTIONS, **FLAGS}), *options])


def result(folder: str = "runs/sweep") -> dict:
    return json.loads(Path(folder, "result.json").read_text())


@pytest.fixture
def trained(monkeypatch) -> list[tuple[str, int]]:
    """The rungs that are trained from now on, as (folder, tokens); the score is how far lr is from 0.03."""
    rungs = []

    def scored(stack, advance):
        rungs.append(("/".join(Path(stack["run_dir"]).parts[-2:]), stack["max_tokens"]))
        lr = stack["model.optim.lr"]
        score = abs(math.log(lr / 0.03)) if lr < 0.5 else math.inf
        return Score(score, score, stack["max_tokens"])

    monkeypatch.setattr(worker, "train_rung", scored)
    return rungs


def test_a_third_goes_on_and_the_best_is_an_overlay(folder, trained, capsys):
    assert sweep() == 0
    printed = capsys.readouterr()
    found = result()
    assert "arning:" not in printed.err, printed.err
    assert [sum(tokens == n for _, tokens in trained) for n in (1280, 3840, 11_520)] == [9, 3, 1]
    assert "9 trials over 4 settings, rungs of 1.28k, 3.84k, 11.5k tokens: about 34.6k in all, 33% of" in printed.out
    best = next(trial for trial in found["trials"] if trial["number"] == found["best"])
    assert best["scores"][0] == min(t["scores"][0] or math.inf for t in found["trials"]) and len(best["scores"]) == 3
    tuned = yaml.safe_load(Path("runs/sweep/tuned.yaml").read_text())
    assert tuned["model"]["optim"]["lr"] == best["point"]["model.optim.lr"]
    assert tuned["model"]["optim"]["name"] == best["point"]["optimizer"]
    assert printed.out.splitlines()[-1].startswith("recommendation: lr ") and "runs/sweep/tuned.yaml" in printed.out
    assert found["importance"]["model.optim.lr"] > 0.5
    assert Path("runs/sweep/figure.png").stat().st_size > 20_000
    stack, _ = read_stack([*arguments(OPTIONS), "--config=runs/sweep/tuned.yaml"], "fit")
    trained.clear()
    assert sweep() == 0 and trained == [] and result() == found, "the same command again trains nothing"
    assert sweep("--tune.trials=12") == 0
    assert [folder for folder, _ in trained][:3] == [f"{n:04d}/rung-1" for n in (9, 10, 11)]
    assert result()["trials"][:9][0]["scores"][0] == found["trials"][0]["scores"][0]


def test_the_next_sweep_is_one_and_looks_where_the_best_were(folder, trained):
    assert sweep() == 0
    proposed = yaml.safe_load(Path("runs/sweep/next.yaml").read_text())["tune"]["space"]
    assert 1e-4 < proposed["model.optim.lr"]["low"] < 0.03 < proposed["model.optim.lr"]["high"] < 1.0
    flags = arguments({**OPTIONS, "tune.trials": 3, "tune.val_tokens": 200})
    assert main(["tune", "sweep", *flags, "--config=runs/sweep/next.yaml"]) == 0
    assert len(result("runs/sweep-next")["trials"]) == 3


def test_a_best_value_at_the_edge_is_said(folder, trained, capsys):
    space = {"model.optim.lr": {"low": 1e-4, "high": 0.01, "log": True}}
    assert sweep(f"--tune.space={json.dumps(space)}", "--tune.trials=27") == 0
    assert "lies at the upper edge of 0.0001 to 0.01: move `high`" in capsys.readouterr().out
    assert yaml.safe_load(Path("runs/sweep/next.yaml").read_text())["tune"]["space"]["model.optim.lr"]["high"] > 0.01


def test_samplers_and_one_rung(folder, trained):
    space = json.dumps(
        {"model.optim.lr": {"low": 0.001, "high": 0.1, "log": True, "points": 3}, "data.batch_tokens": [32, 64]}
    )
    for sampler, n in (("grid", 6), ("random", 4), ("sobol", 4), ("gp", 5)):
        trained.clear()
        flags = [
            f"--tune.{key}={value}"
            for key, value in {"sampler": sampler, "trials": n, "rungs": 1, "dir": sampler}.items()
        ]
        assert sweep(*flags, f"--tune.space={space}") == 0
        assert [tokens for _, tokens in trained] == [11_520] * n
    points = [tuple(trial["point"].values()) for trial in result("grid")["trials"]]
    assert len(set(points)) == 6 and {lr for lr, _ in points} == {0.001, 0.01, 0.1}


def test_divergence_is_a_result_and_a_combination_that_makes_no_run_a_reason(folder, trained, capsys):
    space = {
        "model.optim.lr": [0.9, 0.02],
        "model.gpt.n_heads": [2, 4],
        "shape": {"a": {}, "b": {"model.gpt.d_model": 14}},
    }
    assert sweep(f"--tune.space={json.dumps(space)}", "--tune.sampler=grid", "--tune.rungs=1") == 0
    states = [trial["state"] for trial in result()["trials"]]
    assert states.count("diverged") == 3 and states.count("failed") == 2 and states.count("ended") == 3
    printed = capsys.readouterr().out
    assert (
        "failed: " in printed and "d_model 14 is not divisible by n_heads 4" in printed and "diverged after" in printed
    )


def test_a_trial_whose_folder_a_live_worker_still_has_waits_and_is_not_failed(folder, trained, monkeypatch):
    scored, busy = worker.train_rung, ["0000/rung-1"] * 2

    def in_use_at_first(stack, advance):
        name = "/".join(Path(stack["run_dir"]).parts[-2:])
        if name in busy:
            busy.remove(name)
            raise files.InUse(f"{name} is in use by another process")
        return scored(stack, advance)

    monkeypatch.setattr(worker, "train_rung", in_use_at_first)
    monkeypatch.setattr(worker, "BEAT_SECONDS", 0.0)
    assert sweep("--tune.trials=3", "--tune.rungs=1") == 0
    assert busy == [] and [trial["state"] for trial in result()["trials"]] == ["ended"] * 3


def test_a_worker_that_was_taken_for_dead_goes_on_with_another_trial(folder, trained, monkeypatch, capsys):
    scored, taken = worker.train_rung, []
    alive = SweepStudy.alive

    def taken_over(self, trial, *rest):
        taken.append((self.storage, trial._trial_id))
        return alive(self, trial, *rest)

    def taken_over_at_first(stack, advance):
        if len(taken) == 1:
            storage, trial = taken[0]
            storage.set_trial_state_values(trial, TrialState.FAIL)
        return scored(stack, advance)

    monkeypatch.setattr(SweepStudy, "alive", taken_over)
    monkeypatch.setattr(worker, "train_rung", taken_over_at_first)
    assert sweep("--tune.trials=3", "--tune.rungs=1") == 0
    assert "trial 0: another worker has taken it over" in capsys.readouterr().out
    assert [trial["state"] for trial in result()["trials"]] == ["ended"] * 3


def test_a_storage_that_no_longer_answers_and_ctrl_c_end_it_with_one_line(folder, trained, monkeypatch, capsys):
    def broken(self):
        raise optuna.exceptions.StorageInternalError("disk I/O error\n(background)")

    def interrupted(stack, advance):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SweepStudy, "take", broken)
        assert sweep("--tune.storage=sqlite:///study.db") == 2
    said = "error: tune.storage sqlite:///study.db no longer answers (disk I/O error (background)); when it does, "
    assert capsys.readouterr().err.splitlines()[-1] == said + "the same command goes on"
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(worker, "train_rung", interrupted)
        sweep("--tune.storage=sqlite:///study.db")
    assert capsys.readouterr().err.splitlines() == [
        "stopped by SIGINT; the same command, with --tune.if_exists resume, goes on"
    ]
    assert sweep("--tune.storage=sqlite:///study.db") == 0 and len(result()["trials"]) == 9


def test_a_score_is_kept_as_json_has_it(folder, monkeypatch):
    stack, _ = read_stack(arguments({**OPTIONS, "run_dir": "run"}), "fit")
    Path("run").mkdir()
    monkeypatch.setattr(training, "_trained", lambda *_: Score(math.inf, math.inf, 64))
    for _ in range(2):
        assert training.train_rung(stack) == Score(math.inf, math.inf, 64)
    assert Path("run/score.json").read_text() == '{"score": null, "val_loss": null, "tokens": 64}\n'


def test_the_sweep_for_a_wandb_server_calls_fit_with_what_it_searches(folder, trained):
    assert sweep("--tune.trials=1", "--tune.rungs=1", "--tune.tokens=2560", "--run_dir=runs/mine") == 0
    server = yaml.safe_load(Path("runs/sweep/wandb_sweep.yaml").read_text())
    assert server["parameters"]["model.optim.lr"] == {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0}
    assert server["parameters"]["data.batch_tokens"] == {"values": [32, 64]}
    assert (
        "# Left out, for W&B knows no choice of overlays: optimizer" in Path("runs/sweep/wandb_sweep.yaml").read_text()
    )
    program, verb, *words, args = server["command"]
    assert (program, verb, args) == ("gpt-lightning", "fit", "${args}")
    stack, _ = read_stack([*words, "--model.optim.lr=0.5", "--data.batch_tokens=64"], "fit")
    assert stack["model.optim.lr"] == 0.5 and stack["max_tokens"] == 2560, "as long as the sweep's"
    assert stack["run_dir"] is None, "each of the server's runs has a folder of its own"
    logger = stack["trainer.logger"]
    assert logger.class_path.endswith("WandbLogger") and logger.init_args.offline is False


@pytest.mark.slow
def test_trials_are_runs_and_only_those_of_the_last_rung_keep_their_weights(folder):
    assert sweep("--tune.trials=5") == 0
    found = result()
    best = found["best"]
    (weights,) = Path("runs/sweep/trials").glob("*/*/checkpoints")
    assert weights == Path(f"runs/sweep/trials/{best:04d}/rung-3/checkpoints")
    config = yaml.safe_load((weights.parent / "config.yaml").read_text())
    assert config["max_tokens"] == 11_520 and config["seed_everything"] == config["data"]["seed"] == 0
    assert gl.load(weights.parent).generate("the ", max_new_tokens=4)
    flags = {**TINY, **OPTIONS, "run_dir": "run", "trainer.limit_val_batches": 7}
    for name in ("model.optim.lr", "data.batch_tokens"):
        del flags[name]
    again = gl.run(["runs/sweep/tuned.yaml"], flags)
    score = next(trial for trial in found["trials"] if trial["number"] == best)["scores"][-1]
    assert again["val/bits_per_byte"] == pytest.approx(score, rel=1e-6), "tuned.yaml makes the best trial's run"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tune.trials=0"], "tune.trials 0: must be at least 1"),
        (["--tune.factor=1"], "tune.factor 1: must be at least 2"),
        (["--tune.sampler=gp"], "tune.sampler gp reads whole runs alone; add --tune.rungs 1"),
        (["--tune.rungs=6"], "tune.rungs 6: the first would have 47 tokens, fewer than 1,280"),
        (["--tune.space={}"], "tune.space is empty"),
        (["--tune.sampler=grid"], "tune.space model.optim.lr: a grid needs the number of its `points`"),
    ],
)
def test_settings_that_make_no_sweep_are_one_line(folder, trained, capsys, options, words):
    assert sweep(*options) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(f"error: {words}")
    assert trained == []

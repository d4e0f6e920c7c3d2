"""Trials: whole schedules of the same stack, which leave nothing behind, and stop well when told to."""

import math
import os
import signal
import subprocess
import sys
import time
import weakref
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback

from gpt_lightning.report.metrics_csv import read_metrics
from gpt_lightning.run.build import build
from gpt_lightning.run.fit import run
from gpt_lightning.run.stack import Stack, read_stack
from gpt_lightning.tune.trials import run_identity, score, train, trial_stack
from tests.fixtures import arguments, environment

OPTIONS = {"data.corpus": "text.txt", "max_tokens": 1024, "val_interval_tokens": 1024, "model.gpt.dropout": 0.0}


def stack(*flags: str, **options) -> Stack:
    return read_stack([*arguments({**OPTIONS, **options}), *flags], "tune none")[0]


def test_a_trial_is_the_run_that_fit_makes_and_writes_nothing(folder):
    trial = train(stack(), {}, seed=0, val_tokens=10**9)
    assert sorted(path.name for path in folder.iterdir()) == ["corpora", "text.txt"]
    result = run([*arguments(OPTIONS), "--run_dir=run"])
    assert trial.losses == pytest.approx(list(read_metrics("run")["train/loss"].dropna()), rel=1e-6)
    assert trial.val_loss == pytest.approx(result["val/loss"], rel=1e-6) and trial.tokens == 1024


@pytest.mark.slow
def test_trials_do_not_depend_on_those_before_and_other_seeds_are_other_runs(folder):
    same = stack()
    first = train(same, {"model.optim.lr": 0.01}, seed=0)
    assert train(same, {"model.optim.lr": 0.02}, seed=1).losses[0] != first.losses[0]
    assert train(same, {"model.optim.lr": 0.01}, seed=0).losses == first.losses


@pytest.mark.slow
def test_other_weights_to_start_from_make_another_run(folder):
    """Under the same path: a measurement with the old ones does not count."""

    def identity() -> dict:
        return run_identity(stack("--model.init_from=first"))

    run([*arguments(OPTIONS), "--run_dir=first"])
    before = identity()
    assert before == identity() and before != run_identity(stack())
    run([*arguments(OPTIONS), "--run_dir=first", "--if_exists=overwrite", "--model.optim.lr=0.02"])
    assert identity() != before


def test_schedule_and_ramp_are_shortened_with_the_horizon(folder):
    long = stack(
        "--model.schedule.warmup_tokens=512",
        "--model.schedule.decay_tokens=1000",
        "--batch_ramp.ramp_tokens=1024",
        "--batch_ramp.start_batch_tokens=32",
        "--gradient_noise.interval_steps=1",
    )
    run = build(trial_stack(long, {"max_tokens": 256}, seed=3))
    assert run.data.seed == 3, "other seeds see other data"
    schedule = run.module.schedule
    assert (schedule.warmup_tokens, schedule.decay_tokens, run.stack["batch_ramp.ramp_tokens"]) == (128, 250, 256)
    assert run.stack["gradient_noise.interval_steps"] == 0
    assert long["max_tokens"] == 1024, "the stack itself was changed"


def test_callbacks_that_write_or_need_a_logger_are_left_out_and_others_stay(folder):
    base = "lightning.pytorch.callbacks."
    names = [base + "ModelCheckpoint", base + "LearningRateMonitor", base + "ModelSummary"]
    trial = train(stack(*(f"--trainer.callbacks+={name}" for name in names)), {"max_tokens": 128})
    assert trial.tokens == 128
    assert [type(c).__name__ for c in trial.run.trainer.callbacks].count("ModelSummary") == 1


@pytest.mark.slow
def test_models_of_earlier_trials_do_not_pile_up(folder):
    models = [weakref.ref(train(stack(), {"max_tokens": 128}).run.module) for _ in range(4)]
    assert sum(model() is not None for model in models) <= 2


def test_a_run_whose_loss_is_no_longer_finite_ends_at_once(folder):
    trial = train(stack(), {"model.optim.lr": 1e30, "trainer.gradient_clip_val": None})
    assert trial.val_loss == float("inf") and trial.tokens < 1024


class OneBatchIsNaN(Callback):
    """As of a validation text on which the model overflows once."""

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0:
            pl_module.scores.nats.update(torch.tensor(float("nan")))


def test_a_validation_loss_with_one_number_missing_is_missing_and_not_the_mean_of_the_others(folder):
    trial = train(stack(), {"max_tokens": 64}, val_tokens=10**9, callbacks=[OneBatchIsNaN()])
    assert math.isnan(trial.val_loss)


def test_a_trial_is_scored_on_as_much_text_as_asked_for_whatever_its_micro_batch(folder):
    trial = train(stack(), {"max_tokens": 128}, val_tokens=10**9)
    whole = score(trial.run, 10**9, 2)
    assert whole["val/loss"] == pytest.approx(trial.val_loss, rel=1e-6)
    parts = [score(trial.run, 96, micro_batch_size)["val/loss"] for micro_batch_size in (1, 2, 3)]
    assert parts == pytest.approx([parts[0]] * 3, rel=1e-6) and parts[0] != pytest.approx(whole["val/loss"], rel=1e-4)


def test_resuming_with_another_optimizer_is_refused(folder, capsys):
    run([*arguments({**OPTIONS, "max_tokens": 128}), "--run_dir=run"])
    with pytest.raises(ValueError, match="updated by adamw, here by match_rms_adamw"):
        run([*arguments(OPTIONS), "--run_dir=run", "--if_exists=resume", "--model.optim.name=muon"])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_a_verb_with_its_code_and_a_word_on_how_to_go_on(folder, number, code):
    flags = arguments({**OPTIONS, "max_tokens": 10**7})
    command = [sys.executable, "-m", "gpt_lightning", "tune", "lr", *flags, "--tune.tokens=200_000"]
    # a shell's background jobs, and so these tests in one, would ignore SIGINT
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    deadline = time.monotonic() + 100
    while not (folder / "runs" / "lr" / "identity.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(5)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (code, -number), errors  # -number: between two trials, where nothing catches it
    assert "Traceback" not in errors
    if process.returncode == code == 143:
        assert "the same command, with --tune.if_exists resume, goes on" in errors

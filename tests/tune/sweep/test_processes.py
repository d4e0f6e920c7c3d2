"""Workers of `tune sweep` as processes of their own: killed, stopped, several ranks, and what W&B gets."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.pytorch import Callback
from wandb.proto.wandb_internal_pb2 import RunRecord

from gpt_lightning.checkpoint import read_checkpoint
from gpt_lightning.cli import main
from tests.fixtures import arguments, environment
from tests.tune.sweep.test_verb import FLAGS, OPTIONS, result, sweep

WORDS = [sys.executable, "-m", "gpt_lightning", "tune", "sweep"]


def started(flags: dict) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*WORDS, *arguments(flags)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_killed_worker_changes_neither_the_trials_nor_their_scores(folder):
    flags = {**OPTIONS, **FLAGS, "tune.trials": 6, "tune.sampler": "sobol"}
    whole = {**flags, "tune.dir": "whole"}
    assert main(["tune", "sweep", *arguments(whole)]) == 0
    process = started(flags)
    for line in process.stdout:
        if line.startswith("trial 1: rung 1"):
            time.sleep(0.3)
            os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not Path("runs/sweep/result.json").exists()
    assert sweep("--tune.trials=6", "--tune.sampler=sobol", "--tune.workers=2") == 0
    ended, expected = (
        [(t["number"], t["scores"], t["tokens"]) for t in result(name)["trials"]] for name in ("runs/sweep", "whole")
    )
    assert [t[0] for t in ended] == [t[0] for t in expected]
    for (_, scores, _), (_, others, _) in zip(ended, expected, strict=True):
        assert scores[0] == pytest.approx(others[0], rel=1e-5)
    assert result()["best"] == result("whole")["best"]


@pytest.mark.slow
def test_a_worker_that_is_asked_to_stop_saves_and_the_same_command_goes_on(folder):
    flags = {"max_tokens": 100_000, "tune.trials": 2, "tune.sampler": "sobol", "tune.rungs": 1}
    process = started({**OPTIONS, **FLAGS, **flags})
    for line in process.stdout:
        if line.startswith("trial 0: rung 1"):
            time.sleep(1.0)
            process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert (
        process.stderr.read().splitlines()[-1]
        == "stopped by SIGTERM; the same command, with --tune.if_exists resume, goes on"
    )
    stopped = read_checkpoint(Path("runs/sweep/trials/0001/rung-1/checkpoints/last.ckpt"))["tokens_seen"]
    assert 0 < stopped < 100_000 and stopped % 10_000, "it was saved where it stopped"
    assert sweep(*(f"--{name}={value}" for name, value in flags.items())) == 0
    assert [len(trial["scores"]) for trial in result()["trials"]] == [1, 1]


def ranks(flags: dict) -> subprocess.CompletedProcess[str]:
    """One worker of two processes."""
    flags = {**flags, "trainer.devices": 2, "trainer.strategy": "ddp"}
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", *WORDS[2:], *arguments(flags)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done


class FindsFault(Callback):
    """The first rank alone refuses the first trial, after it was trained."""

    def on_fit_end(self, trainer, pl_module):
        if trainer.global_rank == 0 and not Path("refused").exists():
            Path("refused").touch()
            raise ValueError("no room for its weights")


@pytest.mark.slow
def test_what_one_rank_alone_refuses_has_failed_and_all_ranks_go_on(folder):
    callback = {"class_path": f"{__name__}.{FindsFault.__name__}"}
    flags = {**OPTIONS, **FLAGS, "tune.trials": 2, "tune.rungs": 1, "data.micro_batch_size": 1, "tune.val_tokens": 256}
    ranks({**flags, "trainer.callbacks": json.dumps([callback])})
    failed, other = result()["trials"]
    assert failed["reason"] == "no room for its weights" and not failed["scores"]
    assert len(other["scores"]) == 1


@pytest.mark.slow
def test_two_ranks_train_the_trials_of_one_and_the_first_decides(folder):
    flags = {
        **OPTIONS,
        **FLAGS,
        "tune.trials": 3,
        "tune.sampler": "sobol",
        "data.micro_batch_size": 1,
        "tune.val_tokens": 256,
    }
    assert main(["tune", "sweep", *arguments({**flags, "tune.dir": "one"})]) == 0
    done = ranks({**flags, "tune.dir": "two"})
    one, two = result("one")["trials"], result("two")["trials"]
    assert [trial["point"] for trial in two] == [trial["point"] for trial in one]
    assert [len(trial["scores"]) for trial in two] == [len(trial["scores"]) for trial in one]
    for here, there in zip(one, two, strict=True):
        assert there["scores"] == pytest.approx(here["scores"], rel=1e-4)
    assert done.stdout.count("recommendation: ") == 1, "one rank reports"
    assert "arning:" not in done.stderr, done.stderr


@pytest.mark.slow
def test_wandb_has_one_run_per_trial_in_the_studys_group(folder):
    where = {"offline": True, "save_dir": str(folder)}  # wandb keeps to its first working directory
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": where}
    assert sweep("--tune.trials=2", "--tune.sampler=sobol", f"--trainer.logger={json.dumps(logger)}") == 0
    runs = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    names = [path.name.split("-")[:3] for path in runs]  # and the key of the study
    assert len(names) == 4, "the best of two trials goes on twice: pieces of its run"
    assert {tuple(name) for name in names} == {("run", "sweep", "0000"), ("run", "sweep", "0001")}
    assert len({path.name for path in runs}) == 2
    tag = bytes([RunRecord.DESCRIPTOR.fields_by_name["run_group"].number << 3 | 2, len("sweep")])
    assert all(tag + b"sweep" in path.read_bytes() for path in runs), "as a record of W&B has its group"

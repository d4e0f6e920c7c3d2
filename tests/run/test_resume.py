"""Nothing lost: a run that is stopped in any way and resumed is bit for bit the run that was not."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.fixtures import arguments, assert_equal, command, environment, fit_in_process, read, write_text
from tests.forked import Forked

RUN = {"data.corpus": "text.txt", "run_dir": "run", "max_tokens": 4096}  # 64 steps: long enough to be stopped in
RUN["trainer.log_every_n_steps"] = 3  # checkpoints are every 4 steps: most are between two rows
WALL_CLOCK = ("throughput/tokens_per_second",)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_text(folder / "text.txt")
    result = fit_in_process(folder, RUN)
    assert result.returncode == 0, result.stderr
    return folder


def start(folder: Path) -> Forked:
    write_text(folder / "text.txt")
    return Forked(["fit", *arguments({**RUN, "if_exists": "resume"})], folder)


def wait_for_step(folder: Path, process: subprocess.Popen | Forked, step: int) -> None:
    """Until the run has a checkpoint and has logged `step`."""
    metrics, deadline = folder / "run" / "metrics.csv", time.monotonic() + 120
    while time.monotonic() < deadline:
        rows = metrics.read_text().splitlines() if metrics.exists() else []
        steps = [row.split(",")[1] for row in rows[1:]]
        if str(step) in steps and (folder / "run" / "checkpoints" / "last.ckpt").exists():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    raise TimeoutError(f"step {step} was not reached")


def metrics(folder: Path) -> list[dict[str, str]]:
    import csv

    with (folder / "run" / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in csv.DictReader(file)]


def assert_same_run(folder: Path, reference: Path) -> None:
    a, b = (read(path / "run" / "checkpoints" / "last.ckpt") for path in (folder, reference))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "tokens_seen", "global_step", "CorpusDataModule"):
        assert_equal(a[key], b[key], key)
    assert_equal(a["callbacks"]["ResumeRandomState"], b["callbacks"]["ResumeRandomState"], "random state")
    assert metrics(folder) == metrics(reference)


@pytest.mark.slow
def test_resume_after_kill_9_at_a_random_moment_is_the_uninterrupted_run(uninterrupted, tmp_path):
    process = start(tmp_path)
    wait_for_step(tmp_path, process, 3 * random.randint(2, 16))
    time.sleep(random.random() * 0.02)
    process.kill()
    process.wait()
    result = fit_in_process(tmp_path, {**RUN, "if_exists": "resume"})
    assert result.returncode == 0, result.stderr
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_tells(uninterrupted, tmp_path, number, code):
    process = start(tmp_path)
    wait_for_step(tmp_path, process, 6)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "--if_exists resume" in errors and "Traceback" not in errors
    saved = read(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"]
    assert 6 <= saved < 64, "it did not stop early"
    result = fit_in_process(tmp_path, {**RUN, "if_exists": "resume"})
    assert result.returncode == 0, result.stderr
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.slow
def test_a_damaged_last_checkpoint_is_passed_over_loudly(uninterrupted, tmp_path):
    import shutil

    shutil.copytree(uninterrupted, tmp_path / "copy")
    last = tmp_path / "copy" / "run" / "checkpoints" / "last.ckpt"
    damaged = bytearray(last.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    last.write_bytes(damaged)
    options = {**RUN, "if_exists": "resume", "max_tokens": 4352}
    result = fit_in_process(tmp_path / "copy", options)
    assert result.returncode == 0, result.stderr
    assert "last.ckpt is damaged" in result.stderr and "best.ckpt" in result.stdout


@pytest.mark.slow
def test_a_signal_to_one_of_two_ranks_stops_both_and_the_run_goes_on(tmp_path):
    ranks = {"trainer.strategy": "ddp", "trainer.devices": 2, "max_tokens": 64 * 400, "val_interval_tokens": 640}
    write_text(tmp_path / "text.txt")
    whole = command("fit", {**RUN, "if_exists": "resume", **ranks})  # Lightning starts the second rank itself
    process = subprocess.Popen(whole, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for_step(tmp_path, process, 12)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    saved = read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert 12 <= saved["global_step"] < 400 and len(saved["callbacks"]["ResumeRandomState"]["ranks"]) == 2
    again = {"data.corpus": "text.txt", "run_dir": "run", "if_exists": "resume", **ranks}
    again["max_tokens"] = 64 * (saved["global_step"] + 2)
    result = fit_in_process(tmp_path, again)
    assert result.returncode == 0, result.stderr

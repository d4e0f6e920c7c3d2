"""The study: every configuration once, whatever workers do and whenever they die."""

import contextlib
import os
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from gpt_lightning.tune.sweep.storage import open_storage
from gpt_lightning.tune.sweep.study import SweepStudy, finalists, sampler_of
from gpt_lightning.tune.sweep.training import Score
from gpt_lightning.tune.sweep.worker import Worker

N = 12


def opened(folder, worker: int = 0) -> SweepStudy:
    return SweepStudy(open_storage(folder, None), "s", partial(sampler_of, "tpe", worker), "identity", 3, 3)


def end(study: SweepStudy, trial: optuna.Trial, score: float, last: bool = False) -> None:
    trial.set_user_attr("scores", [*trial.user_attrs.get("scores", []), score])
    trial.report(score, len(trial.user_attrs["scores"]))
    study.study.tell(trial, score if last else None, None if last else TrialState.PRUNED)


def test_what_waits_is_taken_in_order_with_its_values_or_the_samplers(tmp_path):
    study = opened(tmp_path)
    study.enqueue([{"x": 0.25}, {}])
    first, second = study.take(), study.take()
    assert (first.user_attrs["config"], first.suggest_float("x", 0, 1)) == (0, 0.25)
    assert second.user_attrs["config"] == 1 and 0 <= second.suggest_float("x", 0, 1) <= 1
    assert study.take() is None and study.n_running == 2


def test_a_study_of_another_identity_is_refused(tmp_path):
    opened(tmp_path)
    with pytest.raises(ValueError, match="study s holds trials of another stack or another space"):
        SweepStudy(open_storage(tmp_path, None), "s", partial(sampler_of, "tpe", 0), "other", 3, 3)


def test_who_goes_on_waits_once_with_what_it_reached_though_two_workers_say_so(tmp_path):
    one, two = opened(tmp_path), opened(tmp_path)
    one.enqueue([{"x": 0.1 * i} for i in range(3)])
    for score in (3.0, 1.0, 2.0):
        end(one, one.take(), score)
    assert one._promote() and two._again(two.configurations[1]) is None  # both at once
    again = two.take()
    assert again.user_attrs["config"] == 1 and again.user_attrs["scores"] == [1.0]
    assert again.suggest_float("x", 0, 1) == pytest.approx(0.1)
    assert one.take() is None, "the second is no trial of the sweep"
    assert len(one.configurations) == 3 and one.configurations[1].state == TrialState.RUNNING


WORKER = """
import sys, time
from pathlib import Path
from optuna.trial import TrialState
from tests.tune.sweep.test_study import end, opened
study = opened(Path(sys.argv[1]), int(sys.argv[2]))
while (trial := study.take()) is not None:
    with study.alive(trial):
        time.sleep(0.02)
        end(study, trial, trial.suggest_float("x", 0, 1), last=len(trial.user_attrs.get("scores", [])) == 2)
"""


@pytest.mark.slow
def test_two_processes_on_one_journal_lose_and_double_no_trial(tmp_path):
    opened(tmp_path).enqueue([{}] * N)
    both = [subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(i)]) for i in (1, 2)]
    assert [process.wait(120) for process in both] == [0, 0]
    study = opened(tmp_path)
    assert sorted(study.configurations) == list(range(N))
    counts = [sum(len(t.user_attrs["scores"]) > rung for t in study.configurations.values()) for rung in range(3)]
    assert counts[0] == N and counts[1] >= N // 3 and counts[2] >= 1
    for rung in range(3):  # each rung of each configuration was trained by one worker
        ended = [
            t.user_attrs["config"]
            for t in study.trials
            if len(t.user_attrs.get("scores", [])) == rung + 1
            and t.state in (TrialState.COMPLETE, TrialState.PRUNED)
            and t.user_attrs["from"] == rung
        ]
        assert len(ended) == len(set(ended)), rung


@pytest.mark.slow
def test_the_trial_of_a_worker_that_was_killed_waits_again(tmp_path):
    opened(tmp_path).enqueue([{"x": 0.5}])
    script = WORKER.replace("time.sleep(0.02)", "print('taken', flush=True); time.sleep(60)")
    worker = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), "1"], stdout=subprocess.PIPE)
    assert worker.stdout.readline() == b"taken\n"
    study, said = opened(tmp_path), []
    study.reap(said.append)
    assert study.take() is None and not said, "it is alive"
    worker.kill()
    worker.wait()
    study.reap(said.append)
    assert said == ["trial 0: its worker has died; it goes on from its last checkpoint"]
    trial = study.take()
    assert trial.user_attrs["config"] == 0 and trial.suggest_float("x", 0, 1) == 0.5
    study.reap(said.append)
    assert len(said) == 1 and len(study.configurations) == 1


def test_a_worker_of_another_machine_is_dead_when_its_heart_stops(tmp_path, monkeypatch):
    study, said = opened(tmp_path), []
    study.enqueue([{}])
    trial = study.take()
    with study.alive(trial, seconds=0.05):
        trial.set_user_attr("host", "elsewhere")
        trial.set_user_attr("pid", 1)
        time.sleep(0.5)
        study.reap(said.append, seconds=0.05)
        assert not said
    time.sleep(0.5)
    study.reap(said.append, seconds=0.05)
    assert len(said) == 1 and study.take().user_attrs["config"] == 0


@pytest.mark.slow
def test_a_grpc_proxy_serves_two_clients(tmp_path):
    pytest.importorskip("grpc")
    port = 20_000 + os.getpid() % 20_000
    server = f"""
from optuna.storages import run_grpc_proxy_server
from pathlib import Path
from gpt_lightning.tune.sweep.storage import open_storage
run_grpc_proxy_server(open_storage(Path({str(tmp_path)!r}), None), host="localhost", port={port})
"""
    process = subprocess.Popen([sys.executable, "-c", server], stderr=subprocess.DEVNULL)
    try:
        url = f"grpc://localhost:{port}"
        clients = [
            SweepStudy(open_storage(tmp_path, url), "s", partial(sampler_of, "random", i), "i", 3, 1) for i in range(2)
        ]
        clients[0].enqueue([{}] * 4)
        taken = [clients[i % 2].take() for i in range(4)]
        assert sorted(trial.user_attrs["config"] for trial in taken) == [0, 1, 2, 3]
        for i, trial in enumerate(taken):
            end(clients[i % 2], trial, trial.suggest_float("x", 0, 1), last=True)
        assert (
            clients[0].take() is None
            and len({finalists(client.configurations.values())[0].value for client in clients}) == 1
        )
    finally:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)


@pytest.mark.parametrize("url", ["grpc://localhost:1", "nosuchdb://x"])
def test_a_storage_that_is_not_there_is_one_line(tmp_path, url, monkeypatch):
    if url.startswith("grpc"):
        pytest.importorskip("grpc")
        monkeypatch.setattr("gpt_lightning.tune.sweep.storage.GRPC_SECONDS", 1)
    with pytest.raises(ValueError, match=f"tune.storage {url}: "):
        open_storage(tmp_path, url)


def test_an_rdb_keeps_a_study_too(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    one, two = (SweepStudy(open_storage(tmp_path, url), "s", partial(sampler_of, "tpe", 0), "i", 3, 1) for _ in "ab")
    one.enqueue([{"x": 0.5}, {}])
    assert [study.take().user_attrs["config"] for study in (two, one)] == [0, 1] and two.take() is None


def test_a_trial_at_work_on_its_next_rung_still_counts_in_the_one_below(tmp_path):
    study = opened(tmp_path)
    study.enqueue([{"x": 0.1 * i} for i in range(9)])
    for number in range(9):
        end(study, study.take(), float(number))
    assert [study.take().user_attrs["config"] for _ in range(3)] == [0, 1, 2]
    assert study.take() is None, "three of nine go on, and no fourth while they are at work"


def test_a_worker_that_dies_before_it_has_told_its_score_does_not_promote_it(tmp_path):
    study = opened(tmp_path)
    study.enqueue([{"x": 0.5}])
    trial = study.take()
    with study.alive(trial):
        trial.suggest_float("x", 0, 1)
    trial.set_user_attr("host", "elsewhere")
    trial.set_user_attr("scores", [9.0])
    trial.set_user_attr("tokens", 100)
    time.sleep(0.2)
    study.reap(lambda words: None, seconds=0.01)
    again = study.take()
    assert again.user_attrs["scores"] == [] and again.user_attrs["tokens"] == 0 and again.user_attrs["from"] == 0


def test_a_trial_that_was_told_dead_by_a_worker_that_died_waits_again(tmp_path):
    study, said = opened(tmp_path), []
    study.enqueue([{"x": 0.5}])
    trial = study.take()
    study.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    study.reap(said.append)
    assert said == ["trial 0: it was given back; it goes on from its last checkpoint"]
    assert study.take().suggest_float("x", 0, 1) == 0.5


def test_a_process_of_the_same_number_is_no_worker_once_the_machine_was_started_anew(tmp_path, monkeypatch):
    study, said = opened(tmp_path), []
    study.enqueue([{"x": 0.5}])
    trial = study.take()
    with study.alive(trial):
        trial.set_user_attr("pid", os.getppid())  # which lives
    study.reap(said.append, seconds=0.01)
    assert not said
    (boot := tmp_path / "boot_id").write_text("another")
    monkeypatch.setattr("gpt_lightning.tune.sweep.study.BOOT", boot)
    time.sleep(0.2)
    study.reap(said.append, seconds=0.01)
    assert said == ["trial 0: its worker has died; it goes on from its last checkpoint"]


def test_what_breaks_worker_after_worker_off_has_failed_and_the_others_go_on(tmp_path, monkeypatch):
    """The first trial breaks off, in the way that a broken block or a bad card does."""

    def train_rung(run, advance):
        if run == 0:
            raise RuntimeError("CUDA error:\n an illegal access")
        return Score(1.0, 1.0, 1)

    monkeypatch.setattr("gpt_lightning.tune.sweep.worker.train_rung", train_rung)
    opened(tmp_path).enqueue([{"x": 0.1}, {"x": 0.2}])
    space = SimpleNamespace(suggest=lambda trial: trial.params, stack=lambda stack, point: stack)
    plan = SimpleNamespace(tokens=[1, 3, 9], stack=None, space=space)
    plan.run_folder = lambda config, rung: tmp_path / f"{config}-{rung}"
    plan.rung_stack = lambda stack, config, rung, key: config
    for i in range(2):
        with pytest.raises(RuntimeError):
            Worker(plan, opened(tmp_path, i)).work()
    Worker(plan, study := opened(tmp_path)).work()
    assert study.configurations[0].user_attrs["reason"] == "CUDA error: an illegal access"
    assert [trial.state for trial in study.configurations.values()] == [TrialState.FAIL, TrialState.COMPLETE]


def test_a_killed_worker_leaves_no_lock_on_the_journal(tmp_path):
    opened(tmp_path).enqueue([{"x": 0.5}])
    script = f"""
import os, signal
from pathlib import Path
from gpt_lightning.tune.sweep.storage import _Lock
lock = _Lock(Path({str(tmp_path)!r}) / ".journal.lock")
lock.acquire()
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    assert opened(tmp_path).take().user_attrs["config"] == 0


def test_weights_go_once_a_rung_is_told_and_never_before(tmp_path, monkeypatch):
    study = opened(tmp_path)
    study.enqueue([{"x": 0.1 * i} for i in range(3)])
    monkeypatch.setattr("gpt_lightning.tune.sweep.worker.N_KEPT", 1)
    plan = SimpleNamespace(tokens=[1, 3, 9], run_folder=lambda config, rung: tmp_path / f"{config}-{rung}")
    worker = Worker(plan, study)

    def trained(trial, rung: int):
        folder = plan.run_folder(trial.user_attrs["config"], rung) / "checkpoints"
        folder.mkdir(parents=True)
        return folder

    for score in (3.0, 1.0, 2.0):
        trial = study.take()
        folder = trained(trial, 0)
        trial.set_user_attr("scores", [score])  # another worker looks before the end is told
        worker._drop_weights()
        assert folder.is_dir()
        study.study.tell(trial, state=TrialState.PRUNED)
        worker._drop_weights()
        assert not folder.is_dir()
    for rung in (1, 2):
        trial = study.take()
        folder = trained(trial, rung)
        trial.set_user_attr("scores", [1.0] * (rung + 1))
        worker._drop_weights()
        assert folder.is_dir()
        study.study.tell(trial, 1.0 if rung == 2 else None, None if rung == 2 else TrialState.PRUNED)
        worker._drop_weights()
    assert [path.parent.name for path in tmp_path.glob("*/checkpoints")] == ["1-2"], "of the best run alone"

"""The study: what all workers of a sweep share, kept by Optuna in a journal file, an RDB or behind a gRPC proxy.

    queue     every configuration of the sweep is a waiting trial from the start, with its values (Sobol, grid, random)
              or without, for the sampler to fill in when a worker takes it; so neither workers nor restarts change how
              many there are
    taken     by whoever turns it from waiting to running first
    alive     a running trial whose worker has died is told so (reap), and waits again, with what it had reached

    again     a trial that goes on to its next rung is one more in the queue, with what it had reached

A trial's user attributes: config (its number in the sweep, the same when it is taken again), from (the rung that it
starts at), before (tokens trained when it was taken), scores (by rung), tokens (trained so far, all rungs), beat, host
and pid (of its worker), reason (why it failed or diverged), second (two workers let it wait at once, and this is the
later one).
"""

import contextlib
import importlib.util
import os
import secrets
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from gpt_lightning.tune.sweep.rungs import promoted

BEAT_SECONDS = 10.0
DEAD_AFTER = 6  # beats that were missed, where the worker's process cannot be looked at
BOOT = Path("/proc/sys/kernel/random/boot_id")  # changes as the numbers of processes start again


def sampler_of(name: str, seed: int, n_trials: int) -> BaseSampler:
    """Fills in the trial that waits without values and comes after so many others."""
    seed = seed * 100_003 + n_trials
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "tpe":
            return TPESampler(multivariate=True, group=True, constant_liar=True, n_startup_trials=1, seed=seed)
        if name == "gp":
            if importlib.util.find_spec("scipy") is None:
                raise ValueError("tune.sampler gp needs scipy: pip install scipy, or take tpe")
            return GPSampler(n_startup_trials=1, seed=seed)
    return RandomSampler(seed)


class SweepStudy:
    """A study, and this worker's part in it.

    Args:
        storage: Where it is kept.
        name: Of the study.
        sampler: Makes what fills in a trial without values, from the number of trials before it.
        identity: Text that decides what a score means; a study made with another one is refused.
        factor, n_rungs: One trial of so many goes on to the next rung, of so many.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        sampler: Callable[[int], BaseSampler],
        identity: str,
        factor: int,
        n_rungs: int,
    ):
        self.factor, self.n_rungs, self.sampler, self.storage = factor, n_rungs, sampler, storage
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self.study = optuna.create_study(storage=storage, study_name=name)
            self.study.set_user_attr("key", secrets.token_hex(3))
            self.study.set_user_attr("identity", identity)
        except optuna.exceptions.DuplicatedStudyError:
            self.study = optuna.load_study(study_name=name, storage=storage)
            if self.study.user_attrs.get("identity", identity) != identity:
                raise ValueError(
                    f"study {name} holds trials of another stack or another space; choose another --tune.dir"
                ) from None

    @property
    def key(self) -> str:
        """Tells it from other studies of its name."""
        return str(self.study.user_attrs.get("key", ""))

    @property
    def trials(self) -> list[FrozenTrial]:
        """All, those that were taken again included."""
        return self.study.get_trials(deepcopy=False)

    @property
    def configurations(self) -> dict[int, FrozenTrial]:
        """The newest trial of each configuration."""
        found = [trial for trial in self.trials if "config" in trial.user_attrs and "second" not in trial.user_attrs]
        return {trial.user_attrs["config"]: trial for trial in found}

    def enqueue(self, points: Sequence[dict[str, Any]]) -> None:
        """Let these wait, after what there is; an empty point is filled in by the sampler."""
        first = len(self.configurations)
        for number, point in enumerate(points, first):
            self.study.enqueue_trial(point, user_attrs={"config": number, "from": 0})

    def take(self) -> optuna.Trial | None:
        """The next that waits, or that is to go on, now ours; None when there is none."""
        while True:
            if not self._waiting and not self._promote():
                return None
            self.study.sampler = self.sampler(len(self.trials))
            trial = self.study.ask()
            if "config" not in trial.user_attrs:  # nothing waited any longer, and Optuna made one of its own
                self.study.tell(trial, state=TrialState.FAIL)
            elif self._is_second(trial):
                trial.set_user_attr("second", True)
                self.study.tell(trial, state=TrialState.FAIL)
            else:
                return trial

    @property
    def n_running(self) -> int:
        """Trials that a worker has."""
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return sum("config" in trial.user_attrs for trial in running)

    @property
    def _waiting(self) -> bool:
        return bool(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _promote(self) -> bool:
        """Let the trial wait that is to go on to its next rung; False where none is."""
        there = self.configurations
        busy = [number for number, trial in there.items() if trial.state in (TrialState.WAITING, TrialState.RUNNING)]
        kept = {number: trial.user_attrs for number, trial in there.items() if trial.state != TrialState.FAIL}
        scores = {number: known["scores"] for number, known in kept.items() if "scores" in known}
        number = promoted(scores, busy, self.factor, self.n_rungs)
        if number is not None:
            self._again(there[number])
        return number is not None

    def _again(self, trial: FrozenTrial, rewound: bool = False) -> None:
        """Let a trial wait once more, with what it has reached; rewound: with what it had when it was taken."""
        known: dict[str, Any] = trial.user_attrs
        rung = known["from"] if rewound else len(known.get("scores", []))
        spent = known.get("before", 0) if rewound else known.get("tokens", 0)
        kept = {"config": known["config"], "from": rung, "before": spent, "tokens": spent}
        # a worker may have died before it read the values of its trial
        point = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        self.study.enqueue_trial(point, user_attrs={**kept, "scores": known.get("scores", [])[:rung]})

    def _is_second(self, trial: optuna.Trial) -> bool:
        """Whether another worker let the same trial wait for the same rung, and before this one."""
        known, step = trial.user_attrs, len(trial.user_attrs.get("scores", []))
        return any(
            other.number < trial.number
            and other.state != TrialState.FAIL
            and other.user_attrs.get("config") == known["config"]
            and other.user_attrs.get("from", 0) == step
            for other in self.trials
            if "config" in other.user_attrs
        )

    @contextlib.contextmanager
    def alive(self, trial: optuna.Trial, seconds: float = BEAT_SECONDS) -> Iterator[None]:
        """Say every few seconds that the worker of this trial is alive."""
        trial.set_user_attr("host", _host())
        trial.set_user_attr("pid", os.getpid())
        trial.set_user_attr("beat", time.time())
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(seconds):
                with contextlib.suppress(Exception):  # the next one may come through
                    trial.set_user_attr("beat", time.time())

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def give_back(self, trial: optuna.Trial | FrozenTrial) -> None:
        """End a running trial without a reason, so that it waits again. Raises UpdateFinishedTrialError if it ended."""
        self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def reap(self, say: Callable[[str], None], seconds: float = BEAT_SECONDS) -> None:
        """Put the trials of dead workers back into the queue, as they were when they were taken."""
        for number, trial in self.configurations.items():
            if trial.state == TrialState.RUNNING and not _lives(trial, seconds):
                try:
                    self.give_back(trial)
                except optuna.exceptions.UpdateFinishedTrialError:
                    continue  # another worker was faster
                why = "its worker has died"
            elif trial.state == TrialState.FAIL and "reason" not in trial.user_attrs:
                why = "it was given back"  # or who took its worker for dead has died itself
            else:
                continue
            self._again(trial, rewound=True)
            say(f"trial {number}: {why}; it goes on from its last checkpoint")


def finalists(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Those that ended the last rung, the lowest first."""
    ended = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(ended, key=lambda trial: trial.value)  # type: ignore[arg-type, return-value]


def _host() -> str:
    """This machine, since it was started."""
    boot = BOOT.read_text(encoding="ascii").strip() if BOOT.is_file() else ""
    return f"{socket.gethostname()} {boot}".strip()


def _lives(trial: FrozenTrial, seconds: float) -> bool:
    """Whether a trial's worker is there: its process, on this machine; elsewhere its heartbeat."""
    known = trial.user_attrs
    if known.get("host") == _host():
        if known["pid"] == os.getpid():  # which trains nothing while it looks: an earlier sweep of it was interrupted
            return False
        try:
            os.kill(known["pid"], 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True
    started = trial.datetime_start.timestamp() if trial.datetime_start else time.time()
    return time.time() - known.get("beat", started) < DEAD_AFTER * seconds

"""A worker: takes a trial from the study, trains its next rung, and says what it reached; again while any waits.

    trials/0007/rung-1/    a run folder like any other: config.yaml, metrics.csv, summary.json, checkpoints

Under torchrun all ranks train the same trial: the first one talks to the study, and tells the others what it decided.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial as StudyTrial
from optuna.trial import TrialState

from gpt_lightning import files
from gpt_lightning.data.batches import micro_step_tokens
from gpt_lightning.run.stack import Stack
from gpt_lightning.terminal import say
from gpt_lightning.tune.sweep.errors import TrialErrors, in_a_line
from gpt_lightning.tune.sweep.ranks import from_first, n_ranks
from gpt_lightning.tune.sweep.space import Point, Space
from gpt_lightning.tune.sweep.study import BEAT_SECONDS, SweepStudy, finalists
from gpt_lightning.tune.sweep.training import Score, train_rung
from gpt_lightning.tune.trials import horizon

WAIT_SECONDS = 0.5
N_KEPT = 3  # trials whose weights stay, for report select to score anew


@dataclass(frozen=True)
class Plan:
    """What every trial of a sweep has in common.

    tokens: of each rung. val_tokens: of the validation split that a rung is scored on.
    group: of the W&B runs.
    """

    stack: Stack
    space: Space
    tokens: list[int]
    val_tokens: int
    folder: Path
    group: str

    @cached_property
    def own(self) -> Point | None:
        """The point of the stack as it is, if the space holds it."""
        return self.space.of(self.stack)

    def run_folder(self, config: int, rung: int) -> Path:
        return self.folder / "trials" / f"{config:04d}" / f"rung-{rung + 1}"

    def rung_stack(self, stack: Stack, config: int, rung: int, key: str = "") -> Stack:
        """The run of a rung: its horizon, one validation at its end, and a folder of its own. key: of the study."""
        tokens = self.tokens[rung]
        unit = micro_step_tokens(stack["data.micro_batch_size"], stack["data.context_length"], n_ranks())
        alone = {"trainer.devices": 1, "trainer.num_nodes": 1, "trainer.strategy": "auto"}
        options = {
            **(alone if n_ranks() == 1 else {}),
            **horizon(stack, tokens),
            "val_interval_tokens": tokens,
            "run_dir": str(self.run_folder(config, rung)),
            "if_exists": "resume",
            "samples.max_new_tokens": 0,
            "gradient_noise.interval_steps": 0,
            "trainer.limit_val_batches": -(-self.val_tokens // unit),
            "trainer.enable_progress_bar": False,
            "trainer.enable_checkpointing": True,
        }
        if logs_to_wandb(stack):
            name = f"{self.group}-{config:04d}"
            own = {"group": self.group, "name": name, "id": f"{name}-{key}"}  # to one run of W&B all rungs add
            options |= {f"trainer.logger.init_args.{argument}": value for argument, value in own.items()}
        return stack.with_(options)


class Worker:
    """Takes and trains the trials of a study.

    Args:
        plan: What they have in common.
        study: None on all ranks but the first.
        told: Is called when a trial has moved, with its number and words on it.
        advance: Is called with a trial's number, its rung, and the share of it that is done.
    """

    def __init__(
        self,
        plan: Plan,
        study: SweepStudy | None,
        told: Callable[[int, str], None] = lambda number, words: None,
        advance: Callable[[int, int, float], None] = lambda number, rung, share: None,
    ):
        self.plan, self.study, self.told, self.advance = plan, study, told, advance

    def work(self) -> None:
        """Train until nothing waits and nothing runs."""
        while True:
            trial = self._take()
            taken = from_first(None if trial is None else (trial.user_attrs, self.plan.space.suggest(trial)))
            if taken is None:
                if self.study is not None:
                    self._drop_weights()  # of workers that died before they did
                return
            known, point = taken
            if trial is None:
                self._train(None, known, point)
            else:
                self._train_ours(trial, known, point)

    def _take(self) -> StudyTrial | None:
        """The next trial; where all others are taken, what their workers leave, or what follows from what they find."""
        if self.study is None:
            return None
        while True:
            self.study.reap(say)
            n_running = self.study.n_running  # first: what ends afterwards may let others go on
            trial = self.study.take()
            if trial is not None or not n_running:
                return trial
            time.sleep(WAIT_SECONDS)

    def _train_ours(self, trial: StudyTrial, known: dict[str, Any], point: dict[str, Any]) -> None:
        """Train it as long as no other worker takes it for dead."""
        assert self.study is not None
        try:
            with self.study.alive(trial):
                self._train(trial, known, point)
        except UpdateFinishedTrialError:
            self.told(known["config"], "another worker has taken it over")

    def _train(self, trial: StudyTrial | None, known: dict[str, Any], point: dict[str, Any]) -> None:
        """The next rung of a trial."""
        scores = list(known.get("scores", []))
        try:
            found = self._attempt(known, point)
        except files.InUse:  # by a worker that was taken for dead
            if trial is not None:
                assert self.study is not None
                self.study.give_back(trial)
            time.sleep(BEAT_SECONDS)
            return
        if trial is None:
            return
        if isinstance(found, str):
            self._fail(trial, known["config"], found)
        else:
            self._record(trial, [*scores, found.score], known.get("tokens", 0) + found.tokens, found)
            self.told(known["config"], _words(len(scores), found))
            self._drop_weights()

    def _attempt(self, known: dict[str, Any], point: dict[str, Any]) -> Score | str:
        """What the rung gives, or why this trial cannot be trained; other errors end the worker, a few times."""
        config, rung = known["config"], len(known.get("scores", []))
        errors = TrialErrors(self.plan.run_folder(config, rung))
        if given_up := from_first(errors.given_up):
            return given_up
        try:
            stack = self.plan.space.stack(self.plan.stack, point)
            run = self.plan.rung_stack(stack, config, rung, self.study.key if self.study else "")
            return train_rung(run, partial(self._advance, config, rung))
        except files.InUse as error:  # the others train, and wait for this one
            if n_ranks() > 1:
                raise ValueError(f"trial {config}: its worker was taken for dead, and lives; stop it first") from error
            raise
        except ValueError as error:
            return in_a_line(error)
        except Exception as error:  # of this trial, or of the machine
            errors.add(error)
            if n_ranks() == 1 and errors.given_up:
                return errors.given_up
            say(f"trial {config} ends its worker: {in_a_line(error)}; the same command goes on")
            raise

    def _advance(self, config: int, rung: int, tokens: int) -> None:
        self.advance(config, rung, tokens / self.plan.tokens[rung])

    def _drop_weights(self) -> None:
        """Nothing goes on from a rung that has ended, so its checkpoints go; only the best of the last keep them."""
        assert self.study is not None
        there = self.study.configurations
        best, last = finalists(there.values())[:N_KEPT], len(self.plan.tokens) - 1
        for number, trial in there.items():
            known = trial.user_attrs
            gave_up = trial.state == TrialState.FAIL and "reason" in known
            n_ended = len(known.get("scores", [])) + gave_up if trial.state.is_finished() else known["from"]
            for rung in range(min(n_ended, last + 1)):
                if trial not in best or rung < last:
                    files.remove(self.plan.run_folder(number, rung) / "checkpoints")

    def _record(self, trial: StudyTrial, scores: list[float], spent: int, found: Score) -> None:
        trial.set_user_attr("tokens", spent)
        trial.set_user_attr("val_loss", found.val_loss)
        if not math.isfinite(found.score):
            trial.set_user_attr("reason", f"diverged after {found.tokens:,} tokens")
        trial.report(found.score, self.plan.tokens[len(scores) - 1])
        trial.set_user_attr("scores", scores)
        assert self.study is not None
        if len(scores) == len(self.plan.tokens) and math.isfinite(found.score):
            self.study.study.tell(trial, found.score)
        else:
            self.study.study.tell(trial, state=TrialState.PRUNED)

    def _fail(self, trial: StudyTrial, config: int, reason: str) -> None:
        assert self.study is not None
        trial.set_user_attr("reason", reason)
        self.study.study.tell(trial, state=TrialState.FAIL)
        self.told(config, f"failed: {reason}")


def logs_to_wandb(stack: Stack) -> bool:
    """Whether W&B is the stack's logger."""
    return bool(getattr(stack["trainer.logger"], "class_path", "").endswith(WandbLogger.__name__))


def _words(rung: int, found: Score) -> str:
    what = f"{found.score:.4f}" if math.isfinite(found.score) else "diverged"
    return f"rung {rung + 1}, {found.tokens:,} tokens: {what}"

"""The verbs fit, validate, test and predict: a run into its folder, or scores of what it has left there.

stack.py reads the settings and build.py turns them into objects; here they run, and leave config.yaml, tokenizer.json
and summary.json beside what the callbacks write.
"""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from gpt_lightning.callbacks.preemption import Preempted, Preemption
from gpt_lightning.checkpoint import find_checkpoint
from gpt_lightning.data.compression import compression
from gpt_lightning.run.build import Run, build, check, is_rank_zero, supported_precision
from gpt_lightning.run.folder import RunDir
from gpt_lightning.run.predictions import write_predictions
from gpt_lightning.run.stack import Stack, read_stack
from gpt_lightning.run.summary import next_commands, print_scores, print_start, print_summary, summarise
from gpt_lightning.terminal import quiet, say


def run(arguments: Sequence[str], verb: str = "fit", about: str = "") -> dict[str, Any]:
    """Read, build and run; the metrics, and for `fit` the summary of the run, with its `run_dir`.

    Raises ValueError, with one line that says what to change, for everything a user can get wrong.
    """
    with quiet():
        stack, _ = read_stack(arguments, verb, about)
        check(stack)
        folder = _folder(stack)
        if verb == "fit" and is_rank_zero():
            folder.check(stack["if_exists"])
        _, why = supported_precision(stack["trainer.precision"], stack["trainer.accelerator"])
        if why and is_rank_zero():
            say(why)
        built = build(stack, folder=folder)
        with _closing(built, folder):
            try:
                return _fit(built, folder) if verb == "fit" else _evaluate(built, folder, verb)
            except Preempted as stop:
                if built.trainer.is_global_zero:
                    print(
                        f"stopped by {stop.signal.name} after step {stop.step}, nothing lost; go on with: "
                        f"gpt-lightning fit --config {folder / 'config.yaml'} --if_exists resume",
                        file=sys.stderr,
                    )
                raise


def fit(stack: Stack, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """The summary of the run of a stack, trained into its folder without a word; callbacks: beside the stack's own.

    Raises Preempted for a signal, also where it came too late to stop the run.
    """
    with quiet():
        folder = _folder(stack)
        built = build(stack, callbacks, folder)
        with _closing(built, folder):
            summary = _fit(built, folder, shown=False)
    for callback in built.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Preemption) and callback.received:
            raise Preempted(callback.received, built.trainer.global_step)
    return summary


def _folder(stack: Stack) -> RunDir:
    return RunDir(Path(stack["run_dir"] or time.strftime("runs/%Y-%m-%d_%H-%M-%S")))


@contextlib.contextmanager
def _closing(run: Run, folder: RunDir) -> Iterator[None]:
    """Let others have the folder in the end, and finish what the loggers hold."""
    try:
        yield
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    finally:
        folder.release()
        for logger in run.trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()  # or the next run in this process would go on with it


def _fit(run: Run, folder: RunDir, shown: bool = True) -> dict[str, Any]:
    trainer: Any = run.trainer
    if_exists = run.stack["if_exists"]
    checkpoint = folder.resume_checkpoint() if if_exists == "resume" else None
    named = run.stack.with_({"run_dir": str(folder.path)})  # before training, for it draws random numbers
    if is_rank_zero():
        folder.claim(if_exists)
        # once a checkpoint has been accepted, so that a refused one leaves the folder as it was
        trainer.callbacks.append(LambdaCallback(on_train_start=lambda *_: _describe(run, named, folder)))
    if shown:
        print_start(trainer, run.module, run.data, folder.path, checkpoint)
    started = time.perf_counter()
    try:
        trainer.fit(run.module, run.data, ckpt_path=checkpoint, weights_only=True)
    except SIGTERMException:  # before the first step; Lightning would exit with 0
        raise Preempted(signal.SIGTERM, trainer.global_step) from None
    if checkpoint is not None and not run.metrics.latest:
        raise ValueError(
            f"{folder.path} has already seen its {run.module.max_tokens:,} tokens; raise --max_tokens to go on"
        )
    summary = summarise(run.module, run.data, run.metrics.latest, time.perf_counter() - started)
    summary["run_dir"] = str(folder.path)
    if trainer.is_global_zero:
        folder.write_summary(summary)
    if trainer.is_global_zero and shown:
        print_summary(summary, next_commands(run.module, run.data, folder.path))
    return summary


def _describe(run: Run, stack: Stack, folder: RunDir) -> None:
    """Write what the run is into its folder and its loggers."""
    folder.write_text("config.yaml", stack.to_yaml())
    if run.data.tokenizer is not None:
        run.data.tokenizer.save(folder / "tokenizer.json")
    for logger in run.trainer.loggers:
        logger.log_hyperparams(stack.to_dict())


def score(stack: Stack, split: str) -> tuple[dict[str, float], Run]:
    """Scores of the stack's checkpoint on its validation or test split, `val` or `test`, without a word; and the run.

    Raises ValueError where the corpus has no such split.
    """
    with quiet():
        folder = _folder(stack)
        built = build(stack, folder=folder)
        with _closing(built, folder):
            return _score(built, find_checkpoint(stack["ckpt_path"] or folder.path), split), built


def _score(run: Run, checkpoint: Path, split: str) -> dict[str, float]:
    method = {"val": run.trainer.validate, "test": run.trainer.test}[split]
    method(run.module, run.data, ckpt_path=checkpoint, verbose=False, weights_only=True)
    return {key: value.item() for key, value in run.trainer.callback_metrics.items()}


def _evaluate(run: Run, folder: RunDir, verb: str) -> dict[str, Any]:
    checkpoint = find_checkpoint(run.stack["ckpt_path"] or folder.path)
    split = {"validate": "val", "test": "test"}.get(verb)
    if split is not None:
        scores = _score(run, checkpoint, split)
        is_there = f"{split}/bits_per_byte" in scores and all(split in corpus.splits for corpus in run.data.val_corpora)
        yardsticks = compression(run.data.val_corpora, split, run.data.corpora) if is_there else {}
        print_scores(scores, checkpoint, yardsticks)
        return scores
    batches = run.trainer.predict(run.module, run.data, ckpt_path=checkpoint, weights_only=True)
    return write_predictions(run, list(batches or []), folder)


def fit_main(arguments: list[str], about: str = "") -> int:
    """The verb `fit`."""
    return _main(arguments, "fit", about)


def validate_main(arguments: list[str], about: str = "") -> int:
    """The verb `validate`."""
    return _main(arguments, "validate", about)


def test_main(arguments: list[str], about: str = "") -> int:
    """The verb `test`."""
    return _main(arguments, "test", about)


def predict_main(arguments: list[str], about: str = "") -> int:
    """The verb `predict`."""
    return _main(arguments, "predict", about)


def _main(arguments: list[str], verb: str, about: str) -> int:
    run(arguments, verb, about)
    return 0

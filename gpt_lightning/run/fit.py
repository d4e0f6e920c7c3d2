"""One run, from a stack of YAML layers and flags to a run folder: the only builder of a run.

gpt_cli.py turns the stack into objects; here they run, and leave config.yaml, tokenizer.json and summary.json beside
what the callbacks write.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
import yaml
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import WandbLogger

from gpt_lightning.checkpoint import find_checkpoint
from gpt_lightning.run.gpt_cli import GPTCLI, is_rank_zero
from gpt_lightning.run.summary import print_scores, print_start, print_summary, summarise
from gpt_lightning.terminal import quiet, say


def run(args: Sequence[str], verb: str = "fit") -> dict[str, Any]:
    """Parse, build and run; the metrics, and for `fit` the summary of the run, with its `run_dir`.

    Raises ValueError, with one line that says what to change, for everything a user can get wrong.
    """
    with quiet():
        cli = GPTCLI(args, verb)
        try:
            return _fit(cli) if verb == "fit" else _evaluate(cli, verb)
        finally:
            cli.run_dir.release()
            for logger in cli.trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.experiment.finish()  # or the next run in this process would go on with it


def _fit(cli: GPTCLI) -> dict[str, Any]:
    trainer: Any = cli.trainer
    run_dir = cli.run_dir
    checkpoint = run_dir.resume_checkpoint() if cli.config.if_exists == "resume" else None
    if is_rank_zero():
        run_dir.claim(cli.config.if_exists)
        # once a checkpoint has been accepted, so that a refused one leaves the folder as it was
        trainer.callbacks.append(LambdaCallback(on_train_start=lambda *_: _describe(cli)))
    print_start(trainer, cli.model, cli.datamodule, run_dir.path, checkpoint)
    started = time.perf_counter()
    trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    if checkpoint is not None and not cli.metrics.latest:
        raise ValueError(
            f"{run_dir.path} has already seen its {cli.model.max_tokens:,} tokens; raise --max_tokens to go on"
        )
    summary = summarise(cli.model, cli.datamodule, cli.metrics.latest, time.perf_counter() - started)
    summary["run_dir"] = str(run_dir.path)
    if trainer.is_global_zero:
        run_dir.write_summary(summary)
        print_summary(summary)
    return summary


def _describe(cli: GPTCLI) -> None:
    """Write what the run is into its folder and its loggers."""
    cli.run_dir.write_text("config.yaml", cli.stack)
    if cli.datamodule.tokenizer is not None:
        cli.datamodule.tokenizer.save(cli.run_dir / "tokenizer.json")
    for logger in cli.trainer.loggers:
        logger.log_hyperparams(yaml.safe_load(cli.stack))


def _evaluate(cli: GPTCLI, verb: str) -> dict[str, Any]:
    checkpoint = find_checkpoint(cli.config.ckpt_path or cli.run_dir.path)
    method = {"validate": cli.trainer.validate, "test": cli.trainer.test}.get(verb)
    if method is not None:
        method(cli.model, cli.datamodule, ckpt_path=checkpoint, verbose=False, weights_only=True)
        scores = {key: value.item() for key, value in cli.trainer.callback_metrics.items()}
        print_scores(scores, checkpoint)
        return scores
    batches = cli.trainer.predict(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    losses = torch.cat(list(batches)).tolist()  # type: ignore[arg-type]
    rows = [f"{i},{loss}" for i, loss in enumerate(losses) if not math.isnan(loss)]
    cli.run_dir.write_text("predictions.csv", "\n".join(["sequence,loss", *rows]) + "\n")
    say(f"loss of {len(rows)} sequences, in nats per token: {cli.run_dir / 'predictions.csv'}")
    return {"predictions": str(cli.run_dir / "predictions.csv"), "n_sequences": len(rows)}


def fit_main(arguments: list[str]) -> int:
    """The verb `fit`."""
    return _main(arguments, "fit")


def validate_main(arguments: list[str]) -> int:
    """The verb `validate`."""
    return _main(arguments, "validate")


def test_main(arguments: list[str]) -> int:
    """The verb `test`."""
    return _main(arguments, "test")


def predict_main(arguments: list[str]) -> int:
    """The verb `predict`."""
    return _main(arguments, "predict")


def _main(arguments: list[str], verb: str) -> int:
    run(arguments, verb)
    return 0

"""What a run says to its user: a few lines at the start, one table at the end, and what to try next.

The table sets the model's bits per byte beside those of gzip -9 and xz -9e for the same validation text: a language
model that loses to gzip has a bug.
"""

import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from gpt_lightning.callbacks.batch_ramp import BatchRamp
from gpt_lightning.data.compression import compression
from gpt_lightning.data.datamodule import CorpusDataModule
from gpt_lightning.data.examples.baselines import BASELINES, baselines
from gpt_lightning.model.flops import count_parameters, flops_per_token
from gpt_lightning.model.huggingface.choice import why_not_written
from gpt_lightning.module import GPTModule
from gpt_lightning.report.metrics_csv import COMPRESSORS
from gpt_lightning.terminal import duration, short


def summarise(
    module: GPTModule, data: CorpusDataModule, latest: dict[str, float], elapsed_seconds: float
) -> dict[str, Any]:
    """The numbers of summary.json: last metrics, size, time, and what the compressors reach."""
    counts = count_parameters(module.gpt_config, module.own_block)
    summary: dict[str, Any] = {
        **latest,
        "tokens": module.tokens_seen,
        "n_params": counts.total,
        "n_params_non_embedding": counts.non_embedding,
        "n_flops": flops_per_token(module.gpt_config, module.own_block) * module.tokens_seen,
        "elapsed_seconds": elapsed_seconds,
    }
    if "val/bits_per_byte" in latest:
        summary |= compression(data.val_corpora, trained_on=data.corpora)
    if "val/accuracy" in latest:
        summary |= baselines(data.val_corpora[0], "val")
    return summary


@rank_zero_only
def print_start(
    trainer: Trainer, module: GPTModule, data: CorpusDataModule, run_dir: Path, checkpoint: Path | None
) -> None:
    """Three lines: the model, the batch, the folder; and one on what is trained of it, where that is not all."""
    config, counts = module.gpt_config, count_parameters(module.gpt_config, module.own_block)
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"model  {config.n_layers} layers x {config.d_model}, {short(counts.total)} parameters "
        f"({short(counts.non_embedding)} without embeddings), vocabulary {config.vocab_size:,}"
    )
    trained = module.trainable.describe()
    if trained:
        console.print(f"trains {trained}")
    ramps = [callback for callback in trainer.callbacks if isinstance(callback, BatchRamp)]  # type: ignore[attr-defined]
    steps = ramps[0].describe() if ramps else f"{math.ceil(module.max_tokens / data.batch_tokens):,} x "
    console.print(
        f"steps  {steps}{data.batch_tokens:,} tokens = {trainer.accumulate_grad_batches} x "
        f"{data.micro_batch_size} sequences of {data.context_length} on {trainer.world_size} device"
        f"{'s' if trainer.world_size > 1 else ''}, {trainer.precision}"
    )
    console.print(f"run    {run_dir}" + (f", going on from {checkpoint.name}" if checkpoint else ""))


def _can_write(data: CorpusDataModule, text: str) -> bool:
    """Whether the corpus has a token for every character of `text`."""
    try:
        return data.tokenizer is not None and bool(data.tokenizer.encode(text))
    except ValueError:
        return False


def next_commands(module: GPTModule, data: CorpusDataModule, run_dir: Path) -> list[str]:
    """What can be done with the run: nothing that would be refused."""
    if data.tokenizer is None:
        return [f"gpt-lightning validate --config {run_dir}/config.yaml"]
    own = f" --model.block {module.block_spec['class_path']}" if module.block_spec else ""
    prompt = ' --prompt "def "' if _can_write(data, "def ") else ""
    if data.labels:
        return [f"gpt-lightning validate --config {run_dir}/config.yaml"]
    if data.tokenizer.chat_ids is not None:
        prompt = ' --chat --prompt "Hello"'
    commands = [f"gpt-lightning generate --run {run_dir}{prompt}{own}"]
    if not own and data.eot_id is not None and not why_not_written(module.gpt_config):
        commands.append(f"gpt-lightning export --run {run_dir} --output {run_dir}/huggingface")
    return commands


def print_summary(summary: dict[str, Any], commands: Sequence[str]) -> None:
    """The final table and the next commands."""
    console = Console(highlight=False, soft_wrap=True)
    if "val/loss" not in summary:  # limit_val_batches 0: no score, no checkpoint
        console.print(f"{summary['tokens']:,} tokens in {duration(summary['elapsed_seconds'])}, not validated")
        return
    console.print(_of_labels(summary) if "val/accuracy" in summary else _of_text(summary))
    run_dir = summary["run_dir"]
    console.print(f"{summary['tokens']:,} tokens in {duration(summary['elapsed_seconds'])}")
    console.print(f"checkpoint  {run_dir}/checkpoints/best.ckpt")
    for name, command in zip_longest(["next"], commands, fillvalue=""):
        console.print(f"{name:<12}{command}")


def _table(*columns: str) -> Table:
    table = Table(title="validation", title_justify="left", title_style="bold", show_header=True)
    for column in ("", *columns):
        table.add_column(column, justify="left" if not column else "right")
    return table


def _of_text(summary: dict[str, Any]) -> Table:
    table = _table("loss (nats/token)", "perplexity", "bits per byte")
    bits = summary.get("val/bits_per_byte")
    loss, perplexity = f"{summary['val/loss']:.4f}", f"{summary['val/perplexity']:.2f}"
    table.add_row("this model", loss, perplexity, f"{bits:.4f}" if bits is not None else "no tokenizer")
    for name, key in COMPRESSORS.items():
        if key in summary:
            table.add_row(name, "", "", f"{summary[key]:.4f}")
    return table


def _of_labels(summary: dict[str, Any]) -> Table:
    f1 = {"macro F1": "val/macro_f1", "micro F1": "val/micro_f1"}
    known = {name: f"{summary[key]:.4f}" for name, key in f1.items() if key in summary}
    table = _table("loss (nats/label)", "accuracy", *known)
    table.add_row("this model", f"{summary['val/loss']:.4f}", f"{summary['val/accuracy']:.2%}", *known.values())
    for name, key in BASELINES.items():
        table.add_row(name, "", f"{summary[key]:.2%}")
    return table


@rank_zero_only
def print_scores(scores: dict[str, float], checkpoint: Path, yardsticks: dict[str, float]) -> None:
    """Scores of `validate` and `test`, a line each, and the compressors' bits per byte of the same split."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"checkpoint  {checkpoint}")
    named = {name: yardsticks[key] for name, key in COMPRESSORS.items() if key in yardsticks}
    for key, value in {**scores, **named}.items():
        console.print(f"{key:32s}{value:.4f}")

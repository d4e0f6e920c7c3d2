"""Checks 7 and 8: the model that writes, and a real run of ten minutes."""

from typing import Any

import torch

import gpt_lightning as gl
from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.sampling import SamplingConfig, generate_tokens
from gpt_lightning.report.metrics_csv import read_metrics
from gpt_lightning.terminal import quiet
from gpu_checks.bench import Bench, Row, row


def generation(bench: Bench) -> list[Row]:
    """Tokens/s at batch 1 and 64 with the cache, in bf16: eager, and one step captured in a CUDA graph."""
    torch.manual_seed(0)
    gpt = GPT(bench.config("dense")).to(bench.device, torch.bfloat16).eval()
    rows = []
    for n_prompts in (1, 2) if bench.tiny else (1, 64):
        n_new = 8 if bench.tiny else 256
        prompts = [[1] * 16 for _ in range(n_prompts)]
        config = SamplingConfig(max_new_tokens=n_new, temperature=0)
        seconds = bench.seconds(lambda p=prompts, c=config: list(generate_tokens(gpt, p, c)), warmup=1, timed=3)
        expected = "19,000 by memory, 1,000 by launches" if n_prompts == 1 else ""
        rows.append(row(f"batch {n_prompts}, eager", n_prompts * n_new / seconds, "tokens/s", expected))
        if not bench.cuda:
            rows.append(row(f"batch {n_prompts}, CUDA graph", "needs CUDA"))
            continue
        step_seconds = _captured(bench, gpt, n_prompts)
        rows.append(row(f"batch {n_prompts}, CUDA graph", n_prompts / step_seconds, "tokens/s", "at half the context"))
    return rows


@torch.inference_mode()
def _captured(bench: Bench, gpt: GPT, n_prompts: int) -> float:
    """Seconds of one greedy step at half the context, replayed from a graph.

    A graph has fixed addresses, so it repeats this one step: its time is what launches no longer cost.
    """
    half = gpt.config.context_length // 2
    cache = gpt.new_cache()
    gpt.hidden_states(torch.ones(n_prompts, half, dtype=torch.long, device=bench.device), cache)
    tokens = torch.ones(n_prompts, 1, dtype=torch.long, device=bench.device)

    def step() -> None:
        for layer in cache.layers:
            layer.length = half
        logits = gpt.logits(gpt.hidden_states(tokens, cache)[:, -1])
        tokens.copy_(logits.argmax(-1, keepdim=True))

    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return bench.seconds(graph.replay, warmup=10, timed=200)


def real_run(bench: Bench) -> list[Row]:
    """`fit` for ten minutes: the validation curve, and MFU in metrics.csv against the calculation by hand."""
    rate, size = bench.found.get("tokens_per_second", 0), bench.found.get("micro_batch_size", 8)
    shape = bench.config()
    batch = size * shape.context_length * (1 if bench.tiny else max(2**19 // (size * shape.context_length), 1))
    n_steps = 4 if bench.tiny else max(int(rate * 60 * bench.minutes) // batch, 20)
    run_dir = bench.folder / "checks" / "run"
    options: dict[str, Any] = {
        "data.corpus": bench.corpus,
        "data.context_length": shape.context_length,
        "data.micro_batch_size": size,
        "data.batch_tokens": batch,
        "max_tokens": n_steps * batch,
        "val_interval_tokens": max(n_steps // 4, 1) * batch,
        "model.gpt": {"n_layers": shape.n_layers, "n_heads": shape.n_heads, "d_model": shape.d_model},
        "model.optim.lr": 6e-4,
        "model.schedule.warmup_tokens": n_steps * batch // 10,
        "model.compile": bench.compiles and bench.found.get("how") != "eager",
        "trainer.accelerator": "gpu" if bench.cuda else "cpu",
        "trainer.devices": 1,
        "trainer.log_every_n_steps": 1 if bench.tiny else 10,
        "run_dir": str(run_dir),
        "if_exists": "overwrite",
    }
    if bench.tiny:
        options |= {"data.prepare.tokenizer": "bytes", "samples.max_new_tokens": 4}
    options["model.gpt"] |= {"attention_pattern": ["dense", "banded"], "band_width": shape.band_width}
    with quiet():
        result = gl.run([], options)
    table = read_metrics(run_dir)
    curve = table["val/loss"].dropna()
    falls = bool(curve.iloc[-1] < curve.iloc[0])
    rows = [row("validation loss", f"{curve.iloc[0]:.3f} to {curve.iloc[-1]:.3f}", "nats", "falls", falls)]
    rows += [row("bits per byte", result.get("val/bits_per_byte", "needs a tokenizer"))]
    measured = table["throughput/tokens_per_second"].dropna().median()
    rows += [row("tokens", result["tokens"]), row("speed in metrics.csv", measured, "tokens/s")]
    return [*rows, _mfu(bench, run_dir, table, measured)]


def _mfu(bench: Bench, run_dir: Any, table: Any, tokens_per_second: float) -> Row:
    config: GPTConfig = gl.load(run_dir).gpt.config
    by_hand = bench.mfu(config, tokens_per_second)
    if by_hand is None:
        return row("MFU in metrics.csv", "needs a GPU whose peak is known")
    logged = table["throughput/mfu"].dropna().median()
    return row("MFU in metrics.csv", logged, "", f"{by_hand:.4f} by hand", abs(logged / by_hand - 1) < 0.02)

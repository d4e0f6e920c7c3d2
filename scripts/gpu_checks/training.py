"""Checks 3 to 6: the speed of a training step, where it goes, what Lightning adds, and what precision costs."""

import re
import time
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback
from torch.profiler import ProfilerActivity, profile, record_function

from gpt_lightning.files import write_text
from gpt_lightning.run.build import build
from gpt_lightning.run.stack import read_stack
from gpt_lightning.terminal import quiet
from gpu_checks.bench import Bench, Row, Training, row

GOAL = 370_000  # tokens/s of GPT-3 125M at T 2048 on one H200
KINDS = {  # of kernels, by words in their names; the first that fits
    "attention": r"flash|fmha|attention|sdpa|flex",
    "normalisation": r"layer_norm|layernorm",
    "optimizer": r"adam|foreach|multi_tensor",
    "matrix products": r"gemm|gemv|matmul|cutlass|addmm|::mm|bmm|nvjet|wgmma|mkldnn_linear",
}


def speed(bench: Bench) -> list[Row]:
    """Tokens/s and peak memory over micro-batch, compilation and attention; the best becomes an overlay."""
    sizes = (1, 2) if bench.tiny else (8, 16, 32, 64)
    rows, best = [], (0.0, sizes[0], "eager")
    for how in ("eager", "blocks", "whole") if bench.compiles else ("eager",):
        for pattern in ("dense", "banded"):
            for size in sizes:
                tokens_per_second, text = _measure(bench, pattern, size, how)
                if pattern == "banded":  # GPT-3's own
                    best = max(best, (tokens_per_second, size, how))
                rows.append(row(f"micro-batch {size}, {how}, {pattern}", tokens_per_second, "tokens/s", text))
    bench.found.update(tokens_per_second=best[0], micro_batch_size=best[1], how=best[2])
    overlay = {"data": {"micro_batch_size": best[1]}, "model": {"compile": best[2] != "eager"}}
    head = f"# The fastest of benchmark_gpu.py's table: {best[0]:,.0f} tokens/s with {best[2]}, GPT-3 125M, T 2048.\n"
    write_text(bench.folder / "fastest.yaml", head + yaml.safe_dump(overlay))
    rows.append(
        row("best, GPT-3's pattern", best[0], "tokens/s", f"{GOAL:,} on one H200", bench.judge(best[0] >= GOAL))
    )
    return rows


def _measure(bench: Bench, pattern: str, size: int, how: str) -> tuple[float, str]:
    """Tokens/s, and peak memory with MFU in words; 0 when it does not fit."""
    config = bench.config(pattern)
    torch.compiler.reset()
    if bench.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
    try:
        training = Training(bench, config, size, how)
        rate = size * config.context_length / bench.seconds(training.step)
    except torch.OutOfMemoryError:
        return 0.0, "out of memory"
    memory = f"{torch.cuda.max_memory_allocated(bench.device) / 1e9:.1f} GB" if bench.cuda else "memory needs CUDA"
    mfu = bench.mfu(config, rate)
    return rate, memory if mfu is None else f"{memory}, MFU {mfu:.1%}"


def profiled(bench: Bench) -> list[Row]:
    """Shares of three micro-steps, gaps between kernels, and host synchronisations."""
    size, how = bench.found.get("micro_batch_size", 2), bench.found.get("how", "eager")
    training = Training(bench, bench.config(), size, how)
    for _ in range(2):
        training.step()
    bench.synchronize()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.cuda else [])]
    with profile(activities=activities) as profiler:
        started = time.perf_counter()
        for _ in range(3):
            training.step(record_function)
        bench.synchronize()
        wall = time.perf_counter() - started
    events = profiler.key_averages()
    times = {event.key: event.self_device_time_total if bench.cuda else event.self_cpu_time_total for event in events}
    kernels = {key: seconds for key, seconds in times.items() if not key.startswith("##")}
    total = sum(kernels.values()) or 1.0
    kinds = {kind: 0.0 for kind in [*KINDS, "the rest"]}
    for key, seconds in kernels.items():
        kinds[next((kind for kind, words in KINDS.items() if re.search(words, key, re.I)), "the rest")] += seconds
    rows = [row(f"share of {kind}", value / total, "of kernel time") for kind, value in kinds.items()]
    parts = {event.key: event.device_time_total if bench.cuda else event.cpu_time_total for event in events}
    whole = sum(value for key, value in parts.items() if key.startswith("## ")) or 1.0
    rows += [row(f"part {key[3:]}", value / whole, "of the step") for key, value in parts.items() if key[:3] == "## "]
    busy = f"{max(1 - total / 1e6 / wall, 0.0):.1%}" if bench.cuda else "needs CUDA"
    waits = sum(event.count for event in events if re.search(r"_local_scalar_dense|StreamSynchronize", event.key))
    return [*rows, row("time without a kernel", busy, "", "below 5%"), row("host syncs", waits / 3, "per micro-step")]


class _Clock(Callback):
    """The time, synchronised, after step `first` and at the end."""

    def __init__(self, bench: Bench, first: int):
        self.bench, self.first, self.times = bench, first, []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.first and not self.times:
            self.bench.synchronize()
            self.times.append(time.perf_counter())

    def on_train_end(self, *_: Any) -> None:
        self.bench.synchronize()
        self.times.append(time.perf_counter())


def lightnings_cost(bench: Bench) -> list[Row]:
    """The same step under the Trainer, with the callbacks that steer a run, and in a bare loop."""
    size, how = bench.found.get("micro_batch_size", 2), bench.found.get("how", "eager")
    config, first, last = bench.config(), *((1, 3) if bench.tiny else (10, 40))
    corpus = bench.folder / "checks" / "words.txt"
    corpus.parent.mkdir(parents=True, exist_ok=True)
    corpus.write_text("\n\n".join(f"paragraph {i} of a text that is read in order" for i in range(2000)))
    batch = size * config.context_length
    shape = {"n_layers": config.n_layers, "n_heads": config.n_heads, "d_model": config.d_model}
    options = {
        "data.corpus": str(corpus),
        "data.prepare.tokenizer": "bytes",
        "data.context_length": config.context_length,
        "data.micro_batch_size": size,
        "data.batch_tokens": batch,
        "max_tokens": last * batch,
        "trainer.accelerator": "gpu" if bench.cuda else "cpu",
        "trainer.devices": 1,
        "trainer.limit_val_batches": 0,
        "trainer.enable_progress_bar": False,
        "model.compile": how != "eager",
    } | {f"model.gpt.{key}": value for key, value in shape.items()}
    clock = _Clock(bench, first)
    with quiet():
        stack, _ = read_stack([f"--{key}={value}" for key, value in options.items()], "fit")
        run = build(stack, [clock])
        run.trainer.fit(run.module, run.data)
    trainer = (clock.times[1] - clock.times[0]) / (last - first)
    vocab = run.module.gpt_config.vocab_size
    bare_config = bench.config("dense", vocab_size=vocab)
    bare = bench.seconds(Training(bench, bare_config, size, "eager" if how == "eager" else "blocks").step, first, 30)
    ratio = trainer / bare - 1
    rows = [row("Trainer", trainer * 1e3, "ms per step"), row("bare loop", bare * 1e3, "ms per step")]
    return [*rows, row("Lightning adds", ratio, "of the bare step", "below 0.02", bench.judge(ratio < 0.02))]


def precision(bench: Bench) -> list[Row]:
    """Losses of the same seed and batches: bf16-mixed against float32, compiled against eager."""
    n_steps, size = (5, 2) if bench.tiny else (100, bench.found.get("micro_batch_size", 8))
    variants = {"float32": ("eager", False), "bf16": ("eager", True)}
    if bench.compiles:
        variants["bf16, compiled"] = ("blocks", True)
    curves = {}
    for name, (how, bf16) in variants.items():
        training = Training(bench, bench.config(), size, how, bf16)
        losses = []
        for _ in range(n_steps):
            training.new_batch()
            losses.append(training.step())
        curves[name] = torch.stack(losses).float().cpu()
    rows = [row(f"last loss, {name}", curve[-1].item(), "nats") for name, curve in curves.items()]
    for name, against in (("bf16", "float32"), ("bf16, compiled", "bf16")):
        if name in curves:
            worst = ((curves[name] - curves[against]).abs() / curves[against]).max().item()
            rows.append(row(f"{name} against {against}", worst, "largest relative", "below 0.01", worst < 0.01))
    return rows

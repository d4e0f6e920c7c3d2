"""What modern structure, with settings to suit it, is worth beside GPT-3's with its own; anyone can run it.

    python scripts/benchmark_structures.py [--only table,ablation,judge,quickstart,speed] [--folder FOLDER]

table       {AdamW, Muon} x {GPT-3, modern} at 4 layers x 256, and modern with half the tokens: five paired seeds
ablation    each change of structure or loss alone: configs/task/ablation.yaml
judge       how tune compare decides on the losses of the table: an arm against itself, and with planted differences
quickstart  configs/quickstart.yaml beside the same run with GPT-3's structure and one lr for all roles
speed       seconds of a training step of each structure over GPT-3's, in turns

The text is the source code of Python's standard library. Runs are kept in the folder, so that an interrupted benchmark
goes on where it stopped. On two idle cores without bf16 table takes two hours, ablation two hours, quickstart
half of one, judge, after table, and speed some minutes each.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

import gpt_lightning as gl
from gpt_lightning.model.flops import has_native_bf16
from gpt_lightning.model.gpt import GPT, Block, GPTConfig
from gpt_lightning.model.loss import linear_cross_entropy
from gpt_lightning.run.stack import read_stack
from gpt_lightning.tune.compare.statistics import seeds_needed
from gpt_lightning.tune.compare.verdict import Comparison, compare, judge
from gpt_lightning.tune.trials import horizon

QUICKSTART, MODERN = "configs/quickstart.yaml", "configs/model/modern-4x256.yaml"
STRUCTURE = yaml.safe_load((Path(__file__).parents[1] / MODERN).read_text(encoding="utf-8"))["model"]["gpt"]
SIZE = {name: STRUCTURE[name] for name in ("n_layers", "n_heads", "d_model")}
GPT3 = {name: getattr(GPTConfig(), name) for name in STRUCTURE} | SIZE
TOKENS, SEEDS = 307_200, 5
BATCH = {"adamw": (2, 512), "muon": (8, 2_048)}  # sequences of a micro-batch, tokens of a step: as suits the optimizer
OPTIM = {  # of GPT-3's structure and of modern, the lowest of what was tried (EXPERIMENTS.md)
    "adamw": (
        {"lr": 1.0e-3, "betas": [0.9, 0.95], "lr_ratios": {}},
        {"lr": 1.0e-3, "betas": [0.9, 0.99], "lr_ratios": {"embedding": 10, "vector": 6}},
    ),
    "muon": (
        {"lr": 6.0e-3, "betas": [0.9, 0.99], "momentum": 0.9, "lr_ratios": {}},
        {"lr": 7.0e-3, "betas": [0.9, 0.99], "momentum": 0.9, "lr_ratios": {"embedding": 10, "vector": 6}},
    ),
}
RESAMPLINGS = 200
STEPS = 15


def table(folder: Path) -> None:
    """{AdamW, Muon} x {GPT-3, modern}, and modern with half the tokens: a comparison for each optimizer."""
    for optimizer in OPTIM:
        compared(folder, optimizer)


def compared(folder: Path, optimizer: str) -> dict[str, Any]:
    """GPT-3 as the baseline, modern, and modern with half the tokens."""
    (gpt3, modern), (micro_batch_size, batch_tokens) = OPTIM[optimizer], BATCH[optimizer]
    stack, _ = read_stack([f"--config={QUICKSTART}"], "fit")
    overlay = [MODERN, {"model": {"optim": modern}}]
    arms = {"modern": overlay, "modern_half": [*overlay, horizon(stack, TOKENS // 2)]}
    options = {**horizon(stack, TOKENS), "model.optim": {"name": optimizer, **gpt3}}
    options |= {"data.micro_batch_size": micro_batch_size, "data.batch_tokens": batch_tokens}
    options |= {f"model.gpt.{name}": value for name, value in GPT3.items()}
    options |= {"tune.arms": arms, "tune.seeds": SEEDS, "tune.dir": str(folder / f"table_{optimizer}")}
    return gl.run([QUICKSTART], options, verb="tune compare")


def ablation(folder: Path) -> None:
    options = {"tune.dir": str(folder / "ablation")}
    gl.run([QUICKSTART, "configs/task/ablation.yaml"], options, verb="tune compare")


def quickstart(folder: Path) -> None:
    """GPT-3's structure, with one lr for all roles, in place of the quickstart's: both runs whole."""
    structure = {name: getattr(GPTConfig(), name) for name in STRUCTURE if name not in SIZE}
    arms = {"gpt3": {"model": {"gpt": structure, "optim": {"lr_ratios": {}}}}}
    options = {"tune.arms": arms, "tune.seeds": 3}
    gl.run([QUICKSTART], options | {"tune.dir": str(folder / "quickstart")}, verb="tune compare")


def verdicts(folder: Path) -> None:
    """What does the judge say of no difference and of planted ones, in seeds drawn from the table's own spread?"""
    arms = [arm["scores"] for optimizer in OPTIM for arm in compared(folder, optimizer)["arms"].values()]
    mean = statistics.mean(score for scores in arms for score in scores)
    noise = [score - statistics.mean(scores) for scores in arms for score in scores]
    numbers = random.Random(0)

    def drawn(planted: float, n: int) -> Comparison:
        a, b = ([mean * (1 - p) + numbers.choice(noise) for _ in range(n)] for p in (planted, 0.0))
        return judge([compare("arm", a, b, 0.05)], 0.05)[0]

    def share(planted: float, n: int, says: Callable[[Comparison], bool]) -> float:
        return sum(says(drawn(planted, n)) for _ in range(RESAMPLINGS)) / RESAMPLINGS

    kinds = [drawn(0.0, SEEDS).kind for _ in range(RESAMPLINGS)]
    shares = ", ".join(f"{kind} {kinds.count(kind) / RESAMPLINGS:.1%}" for kind in sorted(set(kinds)))
    print(f"an arm against itself, {RESAMPLINGS} resamplings: {shares}")
    print(f"2% lower: found in {share(0.02, SEEDS, lambda one: one.kind == 'lower'):.0%} with {SEEDS} seeds")
    n = seeds_needed(0.01 * mean / (statistics.pstdev(noise) * 2**0.5), 0.05)
    found = {m: share(0.01, max(m, 2), lambda one: one.kind == "lower") for m in (n // 2, n, 2 * n)}
    shares = ", ".join(f"{share:.0%} with {m}" for m, share in found.items())
    print(f"1% lower: {n} seeds needed for 8 in 10; found in {shares}")
    asked = [SEEDS + one.more_seeds for one in (drawn(0.01, SEEDS) for _ in range(RESAMPLINGS)) if one.more_seeds]
    right = sum(n / 2 <= m <= 2 * n for m in asked) / len(asked)
    median = statistics.median(asked)
    print(f"where {SEEDS} seeds do not find it: asks for {median} in the median, {right:.0%} within 2 x of {n}")


class Published(Block):
    """GPT-3's layer in torch's own operations, as if there were no options."""

    def forward(self, x: Tensor, mask: Any = None, cache: Any = None, **shared: Tensor) -> Tensor:
        B, T, D = x.shape
        qkv = self.attn.qkv(self.ln_1(x)).view(B, T, 3, SIZE["n_heads"], -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn.proj(y.transpose(1, 2).reshape(B, T, D))
        return x + self.mlp.proj(F.gelu(self.mlp.fc(self.ln_2(x)), approximate="tanh"))


def speed(folder: Path) -> None:
    """Medians of steps in turns, of 8 x 256 tokens at 4 layers x 256; bf16 where the processor has it."""
    base = GPTConfig(vocab_size=8192, context_length=256, **SIZE)
    structures: dict[str, dict[str, Any]] = {
        "GPT-3": {},
        "rotary": {"positions": "rotary"},
        "rms": {"norm": "rms"},
        "norm both": {"norm_place": "both"},
        "qk_norm": {"qk_norm": True},
        "relu2": {"mlp": "relu2"},
        "swiglu": {"mlp": "swiglu"},
        "one kv head": {"n_kv_heads": 1},
        "parallel": {"parallel": True},
        "value_residual": {"value_residual": True},
        "modern": STRUCTURE,
    }
    models = {name: GPT(replace(base, **structure)) for name, structure in structures.items()}
    models["GPT-3 without options"] = GPT(base, Published)
    bf16 = has_native_bf16("cpu")
    rows = torch.randint(0, 8192, (8, 257))
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(STEPS):
        for name, gpt in models.items():
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = linear_cross_entropy(gpt.hidden_states(rows[:, :-1]), gpt.readout, rows[:, 1:])
            loss.backward()
            gpt.zero_grad()
            seconds[name].append(time.perf_counter() - start)
    reference = statistics.median(seconds["GPT-3"])
    print("bf16" if bf16 else "float32")
    for name, values in seconds.items():
        print(f"{name:22s} {statistics.median(values) / reference:.3f} x the seconds of a step of GPT-3's structure")


SECTIONS = {"table": table, "ablation": ablation, "judge": verdicts, "quickstart": quickstart, "speed": speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(SECTIONS))
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark_structures"))
    options = parser.parse_args()
    for name in options.only.split(","):
        if name not in SECTIONS:
            parser.error(f"--only {name}: expected {', '.join(SECTIONS)}")
        print(f"== {name}")
        SECTIONS[name](options.folder)


if __name__ == "__main__":
    main()

"""Training speed and memory, as ratios measured in one run: ours, Hugging Face's GPT-2, and nanoGPT's when given.

    python scripts/benchmark_training.py [--nanogpt PATH_TO_CHECKOUT] [--only step,loss,trainer,memory]

step     forward, backward and AdamW: 6 layers x 384, T 256, B 16, V 8192, bf16 autocast, eager and compiled
loss     the readout's cross entropy: ours, plain, and torch's linear_cross_entropy, in bf16
trainer  the Lightning Trainer with all callbacks of a run over a bare loop around the same model
memory   peak resident memory of one process: GPT 124M, B 2, T 1024, V 50257, three steps in bf16

Contenders take turns, one step each, and the median counts, so that a noisy machine disturbs all alike.
Needs the extra hf for Hugging Face's rows.
"""

import argparse
import contextlib
import importlib.util
import io
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.loss import linear_cross_entropy
from gpt_lightning.model.parametrization import parametrization
from gpt_lightning.model.readout import Readout
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.optim.optimizer import build_optimizer

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
STEP = {"n_layers": 6, "d_model": 384, "n_heads": 6, "context_length": 256, "vocab_size": 8192}
GPT_124M = {"n_layers": 12, "d_model": 768, "n_heads": 12, "context_length": 1024, "vocab_size": 50257}


def ours(shape: dict[str, int], compiled: bool = False) -> tuple[Loss, torch.optim.Optimizer]:
    gpt = GPT(GPTConfig(**shape))  # type: ignore[arg-type]
    if compiled:
        gpt.compile_blocks()

    def loss(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(gpt.hidden_states(tokens), gpt.readout, targets)

    numbers = parametrization(gpt.config).roles
    return loss, build_optimizer(dict(gpt.named_parameters()), gpt.facts(), OptimConfig(), numbers)


def hugging_face(shape: dict[str, int]) -> tuple[Loss, torch.optim.Optimizer]:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape["vocab_size"],
            n_positions=shape["context_length"],
            n_embd=shape["d_model"],
            n_layer=shape["n_layers"],
            n_head=shape["n_heads"],
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).train()

    def loss(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(tokens).logits.flatten(0, 1), targets.flatten())

    return loss, torch.optim.AdamW(model.parameters(), lr=6e-4)


def nanogpt(path: str, shape: dict[str, int], compiled: bool = False) -> tuple[Loss, torch.optim.Optimizer]:
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(path) / "model.py")
    assert spec and spec.loader, f"no model.py in {path}"
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    with contextlib.redirect_stdout(io.StringIO()):
        model = module.GPT(
            module.GPTConfig(
                block_size=shape["context_length"],
                vocab_size=shape["vocab_size"],
                n_layer=shape["n_layers"],
                n_head=shape["n_heads"],
                n_embd=shape["d_model"],
            )
        )
        optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu")
    net = torch.compile(model) if compiled else model
    return (lambda tokens, targets: net(tokens, targets)[1]), optimizer


def contenders(shape: dict[str, int], nanogpt_path: str | None, compiled: bool) -> dict[str, Callable]:
    found: dict[str, Callable] = {"ours": lambda: ours(shape)}
    if compiled:
        found["ours, compiled"] = lambda: ours(shape, compiled=True)
    if importlib.util.find_spec("transformers"):
        found["Hugging Face"] = lambda: hugging_face(shape)
    if nanogpt_path:
        found["nanoGPT"] = lambda: nanogpt(nanogpt_path, shape)
        if compiled:
            found["nanoGPT, compiled"] = lambda: nanogpt(nanogpt_path, shape, compiled=True)
    return found


def step(loss: Loss, optimizer: torch.optim.Optimizer, tokens: torch.Tensor, targets: torch.Tensor) -> float:
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(tokens, targets)
    value.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - started


def random_batch(shape: dict[str, int], n_sequences: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, targets = torch.randint(shape["vocab_size"], (2, n_sequences, shape["context_length"]))
    return tokens, targets


def in_turns(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median seconds of each, after one uncounted round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            seconds = run()
            if i:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def report(title: str, figures: dict[str, float], unit: str, invert: float = 0.0) -> None:
    """Rows with ours as 1.00 x; with `invert`, figures are seconds and are shown as invert / seconds."""
    print(f"\n{title}")
    base = figures["ours"]
    for name, value in figures.items():
        ratio, shown = value / base, invert / value if invert else value
        print(f"  {name:26s}{shown:12,.1f} {unit:10s}{ratio:6.2f} x ours")


def benchmark_step(args: argparse.Namespace) -> None:
    tokens, targets = random_batch(STEP, 16)
    built = {name: build() for name, build in contenders(STEP, args.nanogpt, not args.eager).items()}
    runs = {name: (lambda pair=pair: step(*pair, tokens, targets)) for name, pair in built.items()}
    report("training step (time over ours)", in_turns(runs, args.rounds), "tokens/s", invert=tokens.numel())


def benchmark_loss(args: argparse.Namespace) -> None:
    N, D, V = 4096, 384, 8192
    hidden = torch.randn(N, D, requires_grad=True)
    weight = (torch.randn(V, D) * 0.02).requires_grad_()
    targets = torch.randint(V, (N,))
    losses = {
        "ours": lambda: linear_cross_entropy(hidden[None], Readout(weight), targets[None]),
        "plain cross entropy": lambda: F.cross_entropy(F.linear(hidden, weight), targets),
    }
    if hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions()
        losses["torch linear_cross_entropy"] = lambda: F.linear_cross_entropy(hidden, weight, targets, options=options)

    def timed(loss: Callable[[], torch.Tensor]) -> float:
        hidden.grad = weight.grad = None
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss()
        value.backward()
        return time.perf_counter() - started

    runs = {name: (lambda loss=loss: timed(loss)) for name, loss in losses.items()}
    milliseconds = {name: seconds * 1e3 for name, seconds in in_turns(runs, args.rounds).items()}
    report(f"cross entropy of the readout, {N} tokens x {D}, V {V}, bf16", milliseconds, "ms")


def benchmark_trainer(args: argparse.Namespace) -> None:
    from benchmark_trainer_loops import bare_loop, trainer_loop, write_corpus

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_corpus(Path("text.txt"))
        rounds = [(bare_loop(args.steps), trainer_loop(args.steps, f"run{i}")) for i in range(args.trainer_rounds)]
    bare, trainer = (statistics.median(times) * 1e3 for times in zip(*rounds, strict=True))
    print("\nthe Trainer with all callbacks over a bare loop, 4 layers x 256, B 16, T 256, V 4096")
    print(f"  bare loop {bare:.1f} ms per step, Trainer {trainer:.1f} ms: {trainer / bare - 1:+.1%}")


def benchmark_memory(args: argparse.Namespace) -> None:
    figures = {}
    for name in contenders(GPT_124M, args.nanogpt, compiled=False):
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            "--peak",
            name,
            *(["--nanogpt", args.nanogpt] if args.nanogpt else []),
        ]
        figures[name] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1e9
    report("peak memory, GPT 124M, B 2, T 1024, bf16", figures, "GB")


def peak(name: str, nanogpt_path: str | None) -> int:
    """Bytes at the peak of a process that trains `name` for three steps."""
    loss, optimizer = contenders(GPT_124M, nanogpt_path, compiled=False)[name]()
    batch = random_batch(GPT_124M, 2)
    for _ in range(3):
        step(loss, optimizer, *batch)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", help="path of a nanoGPT checkout")
    parser.add_argument("--only", default="step,loss,trainer,memory", help="which of the four, comma-separated")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds of step and loss")
    parser.add_argument("--steps", type=int, default=20, help="steps per round of trainer")
    parser.add_argument("--trainer_rounds", type=int, default=5, help="rounds of trainer")
    parser.add_argument("--eager", action="store_true", help="leave the compiled contenders out")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(peak(args.peak, args.nanogpt))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in args.only.split(","):
        {"step": benchmark_step, "loss": benchmark_loss, "trainer": benchmark_trainer, "memory": benchmark_memory}[
            name
        ](args)


if __name__ == "__main__":
    main()

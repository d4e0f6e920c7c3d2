"""What a step of fine-tuning costs: examples packed into full rows, beside one per row, padded.

    python scripts/benchmark_finetuning.py [--only packing,mask]

packing   answers' tokens per second, forward, backward and AdamW: packed by best fit with a document mask, over one
          example per row, padded to the longest of its batch, and over rows padded to the context
mask      a step on packed rows with their document mask, over the same tokens as plain causal rows

The quickstart's structure, T 256, rows of 8, vocabulary 8,192, in float32; conversations made of the standard library's
signatures and docstrings. Contenders take turns, a few steps each, and the median counts. Two minutes on two cores.
"""

import argparse
import ast
import statistics
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt_lightning.data.examples.encode import Encoded, encode_example, fill
from gpt_lightning.data.examples.kinds import ExamplesConfig, to_example
from gpt_lightning.data.examples.packing import pack
from gpt_lightning.data.examples.read import Row
from gpt_lightning.data.shards import IGNORED_TARGET
from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.model.gpt import GPT, GPTConfig
from gpt_lightning.model.loss import CrossEntropy, MicroStep
from gpt_lightning.model.parametrization import parametrization
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.optim.optimizer import build_optimizer

T, ROWS, VOCABULARY = 256, 8, 8192
STEPS, TURNS = 4, 7  # steps a turn, of each contender
Batch = tuple[Tensor, Tensor, Tensor | None]  # tokens, targets, positions


def conversations() -> list[tuple[str, str]]:
    """Question and answer of every documented function in the top folder of the standard library."""
    found = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
                names = ", ".join(argument.arg for argument in node.args.args)
                found.append((f"What does {node.name}({names}) in {path.stem} do?", text.split("\n\n")[0]))
    return found


def encoded() -> list[Encoded]:
    """The conversations as ids, those that fit."""
    turns = conversations()
    tokenizer = Tokenizer.train((f"{asked} {answer}" for asked, answer in turns), VOCABULARY - 4).with_chat_markers()
    config = ExamplesConfig(kind="chat")
    made = []
    for asked, answer in turns:
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        example = to_example(Row(asked, {"messages": messages}), config)
        made.append(encode_example(example, tokenizer, T + 1, {}))
    return [each for each in made if each is not None]


def rows(examples: Sequence[Encoded], groups: Sequence[Sequence[int]], width: int) -> Batch:
    """A batch whose rows hold these examples, each by itself."""
    tokens, targets, positions = map(torch.from_numpy, fill(examples, groups, width, 0))
    return tokens, targets, positions


def endless(make: Callable[[Sequence[int]], Batch], n: int) -> Iterator[Batch]:
    """Batches of ROWS out of n, shuffled anew each time round."""
    random = np.random.default_rng(0)
    while True:
        order = random.permutation(n)
        for start in range(0, n - ROWS + 1, ROWS):
            yield make(order[start : start + ROWS].tolist())


def contenders(examples: list[Encoded]) -> dict[str, Iterator[Batch]]:
    """packed, the same without a mask, padded to the longest of a batch, padded to the context."""
    packed = pack([len(one.ids) - 1 for one in examples], T)

    def padded(chosen: Sequence[int], width: int | None) -> Batch:
        width = width or max(len(examples[i].ids) - 1 for i in chosen)
        return *rows(examples, [[i] for i in chosen], width)[:2], None

    def plain(chosen: Sequence[int]) -> Batch:
        return *rows(examples, [packed[i] for i in chosen], T)[:2], None

    return {
        "packed": endless(lambda chosen: rows(examples, [packed[i] for i in chosen], T), len(packed)),
        "unmasked": endless(plain, len(packed)),
        "to the longest": endless(lambda chosen: padded(chosen, None), len(examples)),
        "to the context": endless(lambda chosen: padded(chosen, T), len(examples)),
    }


def measure(examples: list[Encoded]) -> dict[str, tuple[float, float]]:
    """Median seconds of a step, and median tokens of answers per second, by contender."""
    torch.manual_seed(0)
    shape = {"n_layers": 4, "n_heads": 3, "d_model": 192, "context_length": T, "vocab_size": VOCABULARY}
    gpt = GPT(GPTConfig(**shape, positions="rotary", norm="rms", qk_norm=True, mlp="swiglu", bias=False))  # type: ignore[arg-type]
    optimizer = build_optimizer(
        dict(gpt.named_parameters()), gpt.facts(), OptimConfig(), parametrization(gpt.config).roles
    )
    loss, batches = CrossEntropy(), contenders(examples)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in batches}
    for turn in range(TURNS + 1):
        for name, source in batches.items():
            made = [next(source) for _ in range(STEPS)]
            started = time.perf_counter()
            for tokens, targets, positions in made:
                hidden = gpt.hidden_states(tokens, None, positions)
                total, count = loss(MicroStep(hidden, gpt.readout, tokens, targets, 0.0, positions))
                (total / count).backward()
                optimizer.step()
                optimizer.zero_grad()
            seconds = time.perf_counter() - started
            n_answers = sum(int((targets != IGNORED_TARGET).sum()) for _, targets, _ in made)
            if turn:  # the first is to warm up
                found[name].append((seconds / STEPS, n_answers / seconds))
    medians = {name: zip(*values, strict=True) for name, values in found.items()}
    return {name: tuple(map(statistics.median, values)) for name, values in medians.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="packing,mask", help="parts, with commas between")
    parts = parser.parse_args().only.split(",")
    examples = encoded()
    lengths = [len(one.ids) - 1 for one in examples]
    print(
        f"{len(examples):,} conversations of {statistics.median(lengths):.0f} tokens (median; longest {max(lengths)})"
    )
    found = measure(examples)
    if "packing" in parts:
        for name in ("packed", "to the longest", "to the context"):
            print(f"{name:16s}{found[name][1]:8,.0f} tokens of answers per second")
        for name in ("to the longest", "to the context"):
            print(f"packed over padded {name}: {found['packed'][1] / found[name][1]:.2f} x (at least 1.5)")
    if "mask" in parts:
        ratio = found["packed"][0] / found["unmasked"][0]
        print(f"a masked step over an unmasked one: {ratio:.2f} x (at most 1.1)")

"""The first hour on a GPU: eight checks in order, each result as JSON in a folder, and a table at the end.

    python scripts/benchmark_gpu.py [--output runs/gpu] [--only 1,2,3] [--corpus stdlib] [--minutes 10]
    python scripts/benchmark_gpu.py --device cpu --tiny        # every check in seconds, to see that it works

1 peak         device, driver, matrix products in bf16     5 lightning    the Trainer over a bare loop
2 correctness  attention, loss, checkpoint, resume         6 precision    bf16 and compiled against float32
3 speed        micro-batch x compilation x attention       7 generation   tokens/s, eager and in a CUDA graph
4 profile      where a step's time goes                    8 run          `fit` for ten minutes

Later checks use the fastest setting of check 3, which stands as an overlay in fastest.yaml. Each takes under ten
minutes on an H200, most of it compiling. A check that fails says why and the next one runs. `yes` and `NO` in the
table stand where a value has a limit; the script exits with 1 where there is a `NO`.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_checks import kernels, running, training
from gpu_checks.bench import Bench, Row, row, to_json

from gpt_lightning.files import write_text
from gpt_lightning.terminal import say

CHECKS: dict[str, Callable[[Bench], list[Row]]] = {
    "peak": kernels.device_and_peak,
    "correctness": kernels.correctness,
    "speed": training.speed,
    "profile": training.profiled,
    "lightning": training.lightnings_cost,
    "precision": training.precision,
    "generation": running.generation,
    "run": running.real_run,
}


def measure(number: int, name: str, bench: Bench) -> list[Row]:
    """Rows of one check, also written to a file; its failure is a row."""
    say(f"{number} {name} ...")
    started = time.perf_counter()
    try:
        rows = CHECKS[name](bench)
    except Exception as error:  # one check must not cost the hour of the others
        rows = [row("failed", f"{type(error).__name__}: {error}", ok=False)]
    result = to_json(name, rows, time.perf_counter() - started, bench)
    write_text(bench.folder / f"{number}_{name}.json", json.dumps(result, indent=2) + "\n")
    return rows


def print_table(results: dict[str, list[Row]]) -> None:
    for title, rows in results.items():
        say(f"\n{title}")
        for line in rows:
            value = f"{line['value']:,.4g}" if isinstance(line["value"], float) else str(line["value"])
            mark = {True: "yes", False: "NO", None: ""}[line["ok"]]
            say(f"  {line['what']:<52} {value:>14} {line['unit']:<20} {mark:<4} {line['expected']}".rstrip())


def main() -> int:
    parser = argparse.ArgumentParser(description="Eight checks of a GPU, in order.")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to see that the checks work")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder of the results")
    parser.add_argument("--only", default=",".join(str(i + 1) for i in range(len(CHECKS))), help="numbers of checks")
    parser.add_argument("--corpus", default="stdlib", help="what check 8 trains on")
    parser.add_argument("--minutes", type=float, default=10, help="length of check 8")
    parser.add_argument("--tiny", action="store_true", help="every check in seconds; its numbers mean nothing")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; see that the checks work with --device cpu --tiny")
    (options.output / "checks").mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    bench = Bench(device, options.output, options.tiny, options.corpus, options.minutes)
    wanted = {int(number) for number in options.only.split(",")}
    results = {
        f"{number} {name}": measure(number, name, bench) for number, name in enumerate(CHECKS, 1) if number in wanted
    }
    print_table(results)
    return int(any(line["ok"] is False for rows in results.values() for line in rows))


if __name__ == "__main__":
    sys.exit(main())

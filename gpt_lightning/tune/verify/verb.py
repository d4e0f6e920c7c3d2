"""`gpt-lightning tune verify`: does what you tune on a small model hold for a large one? Measured on your own model.

The stack's model, with your changes, is built in miniature (miniature.py) and three things are asked of it: do
duplicated models train alike to the last digit, do initial weights follow the laws (both in equivalence.py), and
do a few steps move activations as far in wide and deep models as in small ones (coordinate_check.py). It needs no
corpus and takes a few seconds. Exit code 1 when a check fails.
"""

import hashlib
import inspect
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from gpt_lightning.model.gpt import Block, GPTConfig
from gpt_lightning.model.own_block import MakeBlock, import_block
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.tune.results import IfExists, TuneFolder
from gpt_lightning.tune.trials import TuneCLI
from gpt_lightning.tune.verify.checks import VerifyResult, judge, measurements
from gpt_lightning.tune.verify.coordinate_check import slopes
from gpt_lightning.tune.verify.figure import coordinate_check
from gpt_lightning.tune.verify.miniature import Miniature, one_thread

SEEDS = 3  # of each size in the coordinate check
# Settings that the miniatures do not take from the stack.
UNUSED = ("vocab_size", "context_length", "dropout", "init_std", "band_width", "lr", "weight_decay", "eps")


@dataclass(frozen=True)
class VerifyConfig:
    """Prove that the parametrization of this stack's model is right: that tuned settings hold for other sizes."""

    dir: str = "runs/verify"
    """Folder of the results."""
    if_exists: IfExists = "resume"
    """resume keeps what has been measured there, overwrite starts anew."""


def verify(gpt: GPTConfig, optim: OptimConfig, block: MakeBlock = Block, seeds: int = SEEDS) -> VerifyResult:
    """Check the parametrization of a model and optimizer.

    seeds: runs per size of the coordinate check. Raises ValueError when wider models have other layers.
    """
    with one_thread():
        return judge(gpt, {key: measure() for key, measure in measurements(gpt, optim, block, seeds).items()})


def main(arguments: list[str]) -> int:
    """The verb `tune verify`: 0 when all checks pass, 1 when one fails."""
    cli = TuneCLI([*arguments, "--trainer.precision=32-true"], "tune verify", VerifyConfig)  # or it talks about bf16
    settings = cli.settings
    gpt, optim = GPTConfig(**cli.config.model.gpt.as_dict()), OptimConfig(**cli.config.model.optim.as_dict())
    spec = cli.config.model.block.as_dict()
    block = partial(import_block(spec["class_path"]), **spec.get("init_args", {}))
    question = {f"model.gpt.{key}": value for key, value in asdict(gpt).items() if key not in UNUSED}
    question |= {f"model.optim.{key}": value for key, value in asdict(optim).items() if key not in UNUSED}
    with TuneFolder(settings.dir, {**question, "model.block": spec}, settings.if_exists) as folder:
        result = judge(gpt, _measure(gpt, optim, block, folder))
        print_result(result)
        advice = advise(gpt, result, settings.dir)
        title = f"Parametrization {gpt.parametrization}, {optim.name}: {advice.split(':')[0]}"
        lines = slopes(result.over_widths), slopes(result.over_depths)
        figure = coordinate_check(result.over_widths, result.over_depths, lines, title)
        numbers = {"passed": result.passed, "parametrization": gpt.parametrization, **asdict(result)}
        folder.finish(numbers, figure, tuned_layer(gpt, result.passed), f"gpt-lightning tune verify\n{advice}")
    print(advice)
    return 0 if result.passed else 1


def _measure(gpt: GPTConfig, optim: OptimConfig, block: MakeBlock, folder: TuneFolder) -> dict[str, Any]:
    code = fingerprint(block, gpt)  # so that a mended model is measured anew
    console = Console(stderr=True)
    measured = {}
    plan = measurements(gpt, optim, block, SEEDS)
    with one_thread(), Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for key, measure in progress.track(plan.items(), description="verifying"):
            measured[key] = folder.measured(f"{code} {key}", measure)
    return measured


def fingerprint(block: MakeBlock, gpt: GPTConfig) -> str:
    """Digest of the code that decides the measurements: the model's, its layers', the optimizer's and the checks'."""
    here = Path(__file__).parent
    files = {here / f"{name}.py" for name in ("miniature", "equivalence", "coordinate_check", "checks")}
    package = here.parents[1]
    files |= {*(package / "model").glob("*.py"), *(package / "optim").glob("*.py")}
    layers = {type(module) for module in Miniature.of(gpt, block, n_heads=1, n_layers=1).build(0).modules()}
    for layer in layers:
        files |= {Path(file) for base in layer.__mro__ if base is not object and (file := inspect.getsourcefile(base))}
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()[:12]


def tuned_layer(gpt: GPTConfig, passed: bool) -> dict[str, Any]:
    """The layer under which what is tuned now holds for other sizes: the stack's own keys when it passed.

    A standard model becomes one of muP with its own width as the base: the same model, as long as it is that wide.
    """
    d_head = gpt.d_model // gpt.n_heads
    if gpt.parametrization == "standard":
        keys: dict[str, Any] = {"parametrization": "mup", "base_d_model": gpt.d_model}
        keys |= {"base_d_head": d_head} if gpt.base_d_head else {}
    elif passed:
        names = ("parametrization", "base_d_model", "base_n_layers", "base_d_head")
        keys = {name: getattr(gpt, name) for name in names if getattr(gpt, name) is not None}
    else:
        return {}
    return {"model": {"gpt": keys}}


def advise(gpt: GPTConfig, result: VerifyResult, folder: str) -> str:
    """One line: the verdict, and what to do."""
    if gpt.parametrization == "standard":
        return (
            "FAIL: with parametrization standard, what you tune at one width does not hold at another. Lay "
            f"{Path(folder) / 'tuned.yaml'} over the stack: the same model now, and mup when you make it wider"
        )
    if not result.passed:
        return (
            f"FAIL: tuned settings do not hold at other sizes. {len(result.failed)} failed: {'; '.join(result.failed)}"
        )
    base = f"d_model {gpt.base_d_model}"
    if gpt.parametrization == "completep":
        return f"PASS: what you tune at {base} and n_layers {gpt.base_n_layers} holds at other widths and depths"
    return f"PASS: what you tune at {base} holds at other widths; for other depths too, use completep"


def print_result(result: VerifyResult) -> None:
    """The table of checks."""
    caption = "differences in nats over 15 steps; the others are exponents in width or depth"
    table = Table("check", "measured", "expected", "verdict", box=SIMPLE, caption=caption)
    words = {True: "pass", False: "[bold red]FAIL[/]", None: "shown"}
    for check in result.checks:
        is_loss = check.name.startswith("loss")
        number = f"{check.measured:.1e}" if is_loss else f"{check.measured:+.2f}"
        table.add_row(check.name, number, check.expected, words[check.passed])
    Console().print(table)

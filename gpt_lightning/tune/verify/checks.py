"""What `tune verify` measures on a model, and the verdicts on it, one row each."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.table import Table

from gpt_lightning.model.gpt import GPTConfig
from gpt_lightning.model.loss import Loss
from gpt_lightning.model.own_block import MakeBlock
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.tune.verify.coordinate_check import (
    DEPTH_TOLERANCE,
    WIDTH_TOLERANCE,
    mean_movements,
    movements,
    slopes,
)
from gpt_lightning.tune.verify.equivalence import (
    CLIP,
    DIFFERENCE,
    SIGMAS,
    duplicated_losses,
    initial_std,
    largest_difference,
)
from gpt_lightning.tune.verify.figure import coordinate_check
from gpt_lightning.tune.verify.miniature import D_HEAD, Miniature, check_followable

HEADS = {"duplication": 2, "coordinates": 4}  # of the miniatures at base width
DOUBLINGS = (0, 1, 2, 3)
DEPTHS = (2, 4, 8, 16)


@dataclass(frozen=True)
class Check:
    """One row of the table: a difference of losses, or an exponent in width or depth.

    passed: None where the parametrization claims nothing, and the number is only shown.
    """

    name: str
    measured: float
    expected: str
    passed: bool | None


@dataclass(frozen=True)
class VerifyResult:
    """All rows, and the movements of activations that the figure shows, by size and kind."""

    gpt: GPTConfig
    optimizer: str
    checks: tuple[Check, ...]
    over_widths: dict[int, dict[str, float]]
    over_depths: dict[int, dict[str, float]]

    @property
    def passed(self) -> bool:
        return all(check.passed is not False for check in self.checks)

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [check.name for check in self.checks if check.passed is False]

    @property
    def recommendation(self) -> str:
        """The verdict, and what to do."""
        gpt, base = self.gpt, f"d_model {self.gpt.base_d_model}"
        if gpt.parametrization == "standard":
            return (
                "FAIL: with parametrization standard, what you tune at one width does not hold at another. The "
                "overlay is the same model now, and mup when you make it wider"
            )
        if not self.passed:
            failed = "; ".join(self.failed)
            return f"FAIL: tuned settings do not hold at other sizes. {len(self.failed)} failed: {failed}"
        if gpt.parametrization == "completep":
            return f"PASS: what you tune at {base} and n_layers {gpt.base_n_layers} holds at other widths and depths"
        return f"PASS: what you tune at {base} holds at other widths; for other depths too, use completep"

    @property
    def explanation(self) -> str:
        return ""

    def notes(self) -> list[str]:
        """What the numbers are."""
        return ["differences of the loss over 15 steps; the others are exponents in width or depth"]

    def to_dict(self) -> dict[str, Any]:
        """The verdict and all numbers."""
        checks = [asdict(check) for check in self.checks]
        numbers = {"checks": checks, "over_widths": self.over_widths, "over_depths": self.over_depths}
        return {"passed": self.passed, "parametrization": self.gpt.parametrization, **numbers}

    def table(self) -> Table:
        """One row a check."""
        table = Table("check", "measured", "expected", "verdict", box=SIMPLE)
        words = {True: "pass", False: "[bold red]FAIL[/]", None: "shown"}
        for check in self.checks:
            number = f"{check.measured:.1e}" if check.name.startswith("loss") else f"{check.measured:+.2f}"
            table.add_row(check.name, number, check.expected, words[check.passed])
        return table

    def figure(self) -> Figure:
        """The coordinate check."""
        verdict = self.recommendation.split(":")[0]
        title = f"Parametrization {self.gpt.parametrization}, {self.optimizer}: {verdict}"
        lines = slopes(self.over_widths), slopes(self.over_depths)
        return coordinate_check(self.over_widths, self.over_depths, lines, title)

    def overlay(self) -> dict[str, Any]:
        """What makes tuned settings hold for other sizes: the stack's own keys when it passed.

        A standard model becomes one of muP with its own width as the base: the same model, as long as it is that wide.
        """
        gpt = self.gpt
        if gpt.parametrization == "standard":
            keys: dict[str, Any] = {"parametrization": "mup", "base_d_model": gpt.d_model}
            keys |= {"base_d_head": gpt.d_head} if gpt.base_d_head else {}
        elif self.passed:
            names = ("parametrization", "base_d_model", "base_n_layers", "base_d_head")
            keys = {name: getattr(gpt, name) for name in names if getattr(gpt, name) is not None}
        else:
            return {}
        return {"model": {"gpt": keys}}


def measurements(
    gpt: GPTConfig, loss: Loss, optim: OptimConfig, block: MakeBlock, seeds: int
) -> dict[str, Callable[[], Any]]:
    """What is to be measured, by name; each call gives a JSON value.

    Raises ValueError for a loss that cannot be followed in miniature.
    """
    check_followable(loss)
    n_layers = min(gpt.n_layers, 2)
    small = Miniature.of(gpt, block, HEADS["duplication"], n_layers)
    base = Miniature.of(gpt, block, HEADS["coordinates"], n_layers)
    return {
        **{
            f"losses x{2**d} clip {clip:g}": partial(duplicated_losses, small, d, loss, optim, clip)
            for clip in (0.0, CLIP)
            for d in (0, 1, 2)
        },
        "initial std": partial(initial_std, base),
        **{
            f"width {d} {s}": partial(movements, base.wider(d), loss, optim, s) for d in DOUBLINGS for s in range(seeds)
        },
        **{f"depth {n} {s}": partial(movements, base.deeper(n), loss, optim, s) for n in DEPTHS for s in range(seeds)},
    }


def judge(gpt: GPTConfig, optimizer: str, measured: Mapping[str, Any]) -> VerifyResult:
    """The verdicts on what `measurements` gave."""
    checks = []
    for clip, how in ((0.0, ""), (CLIP, ", clipped")):
        curves = [measured[f"losses x{2**d} clip {clip:g}"] for d in (0, 1, 2)]
        differences = [largest_difference(curves[0], curve) for curve in curves[1:]]
        worst = math.nan if any(map(math.isnan, differences)) else max(differences)
        name = f"loss difference, width x2, x4{how}"
        checks.append(Check(name, worst, f"{DIFFERENCE:.0e} or less", worst <= DIFFERENCE))
    for law, found in measured["initial std"].items():
        expected, holds = f"{found['expected']:g}", found["sigmas"] <= SIGMAS
        checks.append(Check(f"initial std {law}", found["exponent"], expected, holds))
    over_widths = {HEADS["coordinates"] * D_HEAD * 2**d: _mean(measured, f"width {d} ") for d in DOUBLINGS}
    over_depths = {n: _mean(measured, f"depth {n} ") for n in DEPTHS}
    for kind, slope in slopes(over_widths).items():
        expected = f"0 ± {WIDTH_TOLERANCE}"
        checks.append(Check(f"movement over widths: {kind}", slope, expected, abs(slope) <= WIDTH_TOLERANCE))
    claimed = gpt.parametrization == "completep"
    for kind, slope in slopes(over_depths).items():
        holds = abs(slope) <= DEPTH_TOLERANCE
        expected = f"0 ± {DEPTH_TOLERANCE}" if claimed else "(any)"
        checks.append(Check(f"movement over depths: {kind}", slope, expected, holds if claimed else None))
    return VerifyResult(gpt, optimizer, tuple(checks), over_widths, over_depths)


def _mean(measured: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return mean_movements([value for key, value in measured.items() if key.startswith(prefix)])

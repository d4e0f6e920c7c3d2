"""Published laws for learning rate, batch, weight decay and size, as data: each with its source and fitted range.

They disagree by up to 20x, for each holds for the models, data and schedules that it was fitted on. So none is the
answer: what counts is their geometric centre, their spread, and whether a case lies where a law was fitted.

N is the number of parameters without embeddings, D tokens, C = 6 N D FLOPs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from gpt_lightning.model.gpt3 import GPT3_ROWS, GPT3_TOKENS, GPT3_WEIGHT_DECAY, GPT3Row
from gpt_lightning.optim.config import timescale_weight_decay

ROUNDING = 1.05  # published edges have two digits
E, A, B, a, b = 1.8172, 482.01, 2085.43, 0.3478, 0.3658  # of Chinchilla's law, arXiv 2404.10102
SAME_SIZE = 1.1  # non-embedding parameters within 10%: the same row of GPT-3's table


@dataclass(frozen=True)
class Case:
    """What a law is asked about: N, and D of the whole run."""

    n_params_non_embedding: float
    n_tokens: float

    @property
    def n_flops(self) -> float:
        """6 N D, as the laws count."""
        return 6 * self.n_params_non_embedding * self.n_tokens


@dataclass(frozen=True)
class Range:
    """Where a law was fitted, as (lowest, highest); None where that could not be established."""

    n_params: tuple[float, float] | None = None
    n_tokens: tuple[float, float] | None = None
    n_flops: tuple[float, float] | None = None

    def holds(self, case: Case) -> bool | None:
        """Whether the case is inside; None when nothing is known of the range."""
        pairs = (
            (self.n_params, case.n_params_non_embedding),
            (self.n_tokens, case.n_tokens),
            (self.n_flops, case.n_flops),
        )
        known = [(edges, value) for edges, value in pairs if edges is not None]
        if not known:
            return None
        return all(low / ROUNDING <= value <= high * ROUNDING for (low, high), value in known)

    def __str__(self) -> str:
        edges = (("N", self.n_params), ("D", self.n_tokens), ("C", self.n_flops))
        parts = []
        for name, edge in edges:
            if edge is not None:
                low, high = (f"{value:.1e}".replace("+", "").replace("e0", "e").replace(".0e", "e") for value in edge)
                parts.append(f"{name} {low}" if low == high else f"{name} {low} to {high}")
        return ", ".join(parts) or "not stated"


@dataclass(frozen=True)
class Law:
    """One publication. A function gives None where the law says nothing about the case.

    restated: the constants were read in another's restatement, not in the publication itself.
    weight_decay takes (case, lr, batch_tokens); size takes C and gives (N, D).
    """

    name: str
    source: str
    restated: bool
    fitted: Range
    note: str = ""
    lr: Callable[[Case], float | None] | None = None
    batch_tokens: Callable[[Case], float | None] | None = None
    weight_decay: Callable[[Case, float, float], float | None] | None = None
    size: Callable[[float], tuple[float, float]] | None = None


def gpt3_row(n_params_non_embedding: float) -> GPT3Row | None:
    """The row of this size, within 10%; nothing is interpolated between rows."""

    def ratio(row: GPT3Row) -> float:
        return math.exp(abs(math.log(row.n_params_non_embedding / n_params_non_embedding)))

    nearest = min(GPT3_ROWS, key=ratio)
    return nearest if ratio(nearest) <= SAME_SIZE else None


def _gpt3(value: Callable[[GPT3Row], float]) -> Callable[[Case], float | None]:
    def of(case: Case) -> float | None:
        row = gpt3_row(case.n_params_non_embedding)
        return value(row) if row else None

    return of


def step_law_lr(case: Case) -> float:
    return 1.79 * case.n_params_non_embedding**-0.713 * case.n_tokens**0.307


def step_law_batch(case: Case) -> float:
    return 0.58 * case.n_tokens**0.571


def deepseek_lr(case: Case) -> float:
    return 0.3118 * case.n_flops**-0.1250


def deepseek_batch(case: Case) -> float:
    return 0.2920 * case.n_flops**0.3271


def kaplan_lr(case: Case) -> float | None:
    """A straight line in ln N, which falls below 0 at N = 1.2e10: nothing is said there."""
    lr = 0.003239 - 0.0001395 * math.log(case.n_params_non_embedding)
    return lr if lr > 0 else None


def porian_lr(case: Case) -> float:
    return 0.0047 * (case.n_params_non_embedding / 108e6) ** (-1 / 3)


def porian_batch(case: Case) -> float:
    return 160 * 2048 * (case.n_params_non_embedding / 108e6) ** (2 / 3)


def power_lines_batch(case: Case) -> float:
    return 0.0306 * 2048 * case.n_tokens**0.383


def power_lines_weight_decay(case: Case, lr: float, batch_tokens: float) -> float:
    return timescale_weight_decay(lr, batch_tokens, case.n_tokens, case.n_params_non_embedding)


def chinchilla_loss(n_params: float, n_tokens: float) -> float:
    """E + A / N^a + B / D^b as refitted in arXiv 2404.10102, nats per token of Chinchilla's own web text."""
    return E + A / n_params**a + B / n_tokens**b


def compute_optimal(n_flops: float) -> tuple[float, float]:
    """N and D that minimise that under 6 N D = C."""
    G = (a * A / (b * B)) ** (1 / (a + b))
    n_params = G * (n_flops / 6) ** (b / (a + b))
    return n_params, n_flops / 6 / n_params


LAWS = (
    # Range: the runs of data/dense_lr_bs_loss.csv in github.com/step-law/steplaw, whose fits agree with the constants.
    Law(
        "Step Law",
        "arXiv 2503.04715",
        True,
        Range(n_params=(2.1e8, 1.1e9), n_tokens=(4e9, 1e11)),
        lr=step_law_lr,
        batch_tokens=step_law_batch,
    ),
    # Section 3.1: compute budgets from 1e17 to 2e19.
    Law(
        "DeepSeek LLM",
        "arXiv 2401.02954",
        True,
        Range(n_flops=(1e17, 2e19)),
        lr=deepseek_lr,
        batch_tokens=deepseek_batch,
    ),
    Law("Kaplan 2020", "arXiv 2001.08361", True, Range(), lr=kaplan_lr),
    # Range: the authors' code (github.com/formll/resolving-scaling-law-discrepancies, analysis.py).
    Law(
        "Porian 2024",
        "arXiv 2406.19146",
        False,
        Range(n_params=(2.5e7, 1.1e8)),
        note="its own N counts the readout",
        lr=porian_lr,
        batch_tokens=porian_batch,
    ),
    Law(
        "Power Lines",
        "arXiv 2505.13738",
        True,
        Range(n_params=(1.11e8, 3.3e9)),
        note="its range is restated too, and lr followed muP",
        batch_tokens=power_lines_batch,
        weight_decay=power_lines_weight_decay,
    ),
    Law(
        "GPT-3's table",
        "arXiv 2005.14165",
        False,
        Range(n_params=(8.5e7, 1.75e11), n_tokens=(GPT3_TOKENS, GPT3_TOKENS)),
        lr=_gpt3(lambda row: row.lr),
        batch_tokens=_gpt3(lambda row: row.batch_tokens),
        weight_decay=lambda case, lr, batch: GPT3_WEIGHT_DECAY if gpt3_row(case.n_params_non_embedding) else None,
    ),
    # Refit of Hoffmann et al. 2022 (arXiv 2203.15556), whose abstract gives the range: 70M to 16B, 5 to 500 billion.
    Law(
        "Chinchilla, refitted",
        "arXiv 2404.10102",
        True,
        Range(n_params=(7e7, 1.6e10), n_tokens=(5e9, 5e11)),
        size=compute_optimal,
    ),
)

"""From the laws' answers to one recommendation: centre, spread, a batch that `fit` accepts, and what to beware of."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gpt_lightning.data.batches import micro_step_tokens
from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.flops import count_parameters
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.optim.rescale import rescaled
from gpt_lightning.terminal import short
from gpt_lightning.tune.suggest.laws import LAWS, Case, Law, compute_optimal, gpt3_row

MIN_TOKENS_PER_PARAMETER = 20  # about compute-optimal (Hoffmann et al. 2022, arXiv 2203.15556)
MIN_STEPS = 100  # below this no schedule has its shape
MAX_EPOCHS = 4  # up to here repeated text is almost as good as new (Muennighoff et al. 2023, arXiv 2305.16264)


@dataclass(frozen=True)
class Run:
    """What is asked about: the model with its corpus's vocabulary, the stack's settings, the budget."""

    gpt: GPTConfig
    optim: OptimConfig
    micro_batch_size: int
    n_devices: int
    n_tokens: float
    n_flops: float
    block: Any = None
    """The user's own, where it is not the built-in one."""


@dataclass(frozen=True)
class Centre:
    """Geometric mean of several laws' values, with the lowest and the highest."""

    value: float
    low: float
    high: float
    laws: tuple[str, ...]

    @property
    def spread(self) -> float:
        """Highest over lowest."""
        return self.high / self.low


def centre(values: Iterable[tuple[str, float]]) -> Centre:
    """Centre of (law, value) pairs, of which there is at least one."""
    pairs = list(values)
    numbers = [value for _, value in pairs]
    mean = math.exp(sum(math.log(value) for value in numbers) / len(numbers))
    return Centre(mean, min(numbers), max(numbers), tuple(name for name, _ in pairs))


def trusted(answer: Callable[[Law], float | None], case: Case) -> tuple[list[tuple[str, float]], bool]:
    """(law, answer) of the laws whose range holds the case, and True; where none does, of all, and False."""
    answers = [(law, value) for law in LAWS if (value := answer(law)) is not None]
    inside = [(law.name, value) for law, value in answers if law.fitted.holds(case)]
    return inside or [(law.name, value) for law, value in answers], bool(inside)


def round_batch(batch_tokens: float, micro_batch_size: int, context_length: int, n_devices: int) -> tuple[int, int]:
    """(batch_tokens, micro_batch_size): the nearest whole number of micro-batches, halved while one is too large."""
    row_tokens, rows = micro_step_tokens(1, context_length, n_devices), micro_batch_size
    while rows > 1 and batch_tokens < rows * row_tokens / math.sqrt(2):
        rows //= 2
    return max(1, round(batch_tokens / (rows * row_tokens))) * rows * row_tokens, rows


def budget_warnings(case: Case, n_flops: float, epochs: float, batch_tokens: int) -> list[str]:
    """About the budget: too few tokens for the size, too many passes over the text, too few steps."""
    warnings = []
    ratio = case.n_tokens / case.n_params_non_embedding
    if ratio < MIN_TOKENS_PER_PARAMETER:
        n_params, n_tokens = compute_optimal(n_flops)
        warnings.append(
            f"{ratio:.2g} tokens per parameter, fewer than {MIN_TOKENS_PER_PARAMETER}: for the same FLOPs about "
            f"{short(n_params)} parameters on {short(n_tokens)} tokens should do better"
        )
    if epochs > MAX_EPOCHS:
        warnings.append(
            f"{passes(epochs)} epochs, more than {MAX_EPOCHS}: further passes teach ever less (arXiv 2305.16264); "
            "bring more text or shorten the run"
        )
    if case.n_tokens < MIN_STEPS * batch_tokens:
        warnings.append(
            f"{case.n_tokens / batch_tokens:.0f} steps of {batch_tokens:,} tokens, fewer than {MIN_STEPS}: the budget "
            "is too small for this model"
        )
    return warnings


def passes(epochs: float) -> str:
    """0.583, 9.54, 795, 95,400."""
    return f"{epochs:.3g}" if epochs < 1000 else f"{epochs:,.0f}"


def accumulation_warning(recommended: Mapping[str, Any], run: Run) -> str | None:
    """On one replica: a smaller batch instead of accumulation, with its numbers."""
    batch_tokens = recommended["batch_tokens"]
    unit = micro_step_tokens(recommended["micro_batch_size"], run.gpt.context_length)
    if run.n_devices > 1 or batch_tokens <= unit:
        return None
    settings = {"lr": recommended["lr"], "betas": run.optim.betas}
    if run.optim.weight_decay != "timescale":  # which follows from the rest by itself
        settings["weight_decay"] = recommended["weight_decay"]
    smaller = rescaled(settings, unit / batch_tokens)
    beta1, beta2 = smaller["betas"]
    flags = (
        f"--data.batch_tokens {unit} --model.optim.lr {smaller['lr']:.2g} --model.optim.betas [{beta1:g},{beta2:.5g}]"
    )
    if "weight_decay" in smaller:
        flags += f" --model.optim.weight_decay {smaller['weight_decay']:.2g}"
    return (
        f"{batch_tokens // unit} micro-steps are accumulated on one device; a step of each is as good per token "
        f"(arXiv 2507.07101): {flags}"
    )


def law_warnings(run: Run, unfitted: list[str]) -> list[str]:
    """About the laws themselves: no range holds this case, or they were fitted on another method."""
    warnings = []
    if unfitted:
        warnings.append(
            f"no law for {' or '.join(unfitted)} is known to have been fitted on such a run: the centre is that of "
            "all of them, a place to start a search from"
        )
    if run.gpt.parametrization != "standard":
        warnings.append(f"the laws for lr are for the standard parametrization, not for {run.gpt.parametrization}")
    if run.optim.name != "adamw":
        warnings.append(f"the laws are for AdamW, not for {run.optim.name}")
    if any(ratio != 1 for ratio in run.optim.lr_ratios.values()):
        ratios = ", ".join(f"{role} {ratio:g}" for role, ratio in run.optim.lr_ratios.items())
        warnings.append(
            f"the laws are for one lr for all roles, not for lr_ratios {ratios}; --model.optim.lr_ratios {{}} has one"
        )
    return warnings


def advise(run: Run, epochs: float) -> dict[str, Any]:
    """Laws, centres, recommendation and warnings, as JSON values."""
    counts = count_parameters(run.gpt, run.block)
    case = Case(counts.non_embedding, run.n_tokens)
    lrs, lr_fits = trusted(lambda law: law.lr(case) if law.lr else None, case)
    batches, batch_fits = trusted(lambda law: law.batch_tokens(case) if law.batch_tokens else None, case)
    lr, batch = centre(lrs), centre(batches)
    batch_tokens, rows = round_batch(batch.value, run.micro_batch_size, run.gpt.context_length, run.n_devices)

    def decay_of(law: Law) -> float | None:
        return law.weight_decay(case, lr.value, batch_tokens) if law.weight_decay else None

    decays, decay_fits = trusted(decay_of, case)
    decay = centre(decays)
    recommended = {
        "lr": float(f"{lr.value:.2g}"),
        "batch_tokens": batch_tokens,
        "micro_batch_size": rows,
        "weight_decay": float(f"{decay.value:.2g}"),
        "max_tokens": max(int(run.n_tokens) // batch_tokens, 1) * batch_tokens,
    }
    unfitted = [
        name
        for name, fits in zip(("lr", "batch", "weight decay"), (lr_fits, batch_fits, decay_fits), strict=True)
        if not fits
    ]
    warnings = law_warnings(run, unfitted) + budget_warnings(case, run.n_flops, epochs, batch_tokens)
    accumulated = accumulation_warning(recommended, run)
    row = gpt3_row(case.n_params_non_embedding)
    centres = {"lr": lr, "batch_tokens": batch, "weight_decay": decay}
    return {
        "case": {**asdict(case), "n_params": counts.total, "epochs": epochs, "n_devices": run.n_devices},
        "laws": [_law_row(law, case, run.n_flops, decay_of(law)) for law in LAWS],
        "centres": {name: {**asdict(found), "spread": found.spread} for name, found in centres.items()},
        "gpt3_row": asdict(row) if row else None,
        "compute_optimal": _size(run.n_flops),
        "recommendation": recommended,
        "warnings": warnings + ([accumulated] if accumulated else []),
    }


def _size(n_flops: float) -> dict[str, float]:
    return dict(zip(("n_params_non_embedding", "n_tokens"), compute_optimal(n_flops), strict=True))


def _law_row(law: Law, case: Case, n_flops: float, weight_decay: float | None) -> dict[str, Any]:
    size = law.size(n_flops) if law.size else None
    return {
        "name": law.name,
        "source": law.source,
        "restated": law.restated,
        "fitted": str(law.fitted),
        "note": law.note,
        "inside": law.fitted.holds(Case(*size) if size else case),
        "lr": law.lr(case) if law.lr else None,
        "batch_tokens": law.batch_tokens(case) if law.batch_tokens else None,
        "weight_decay": weight_decay,
        "size": {"n_params_non_embedding": size[0], "n_tokens": size[1]} if size else None,
    }

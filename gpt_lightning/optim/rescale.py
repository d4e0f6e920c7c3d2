"""What another batch does to the optimizer's settings: the one place that knows, for suggest, batch, branches and ramp.

For a batch r times as large:

    lr                      x sqrt(r)   signal grows as sqrt(r) over noise, to which AdamW and Muon scale a step:
                                        drift and diffusion per token stay (Malladi et al. 2022, arXiv 2205.10287)
    beta2                   ^ r         its half-life in tokens stays (Marek et al. 2025, arXiv 2507.07101)
    weight decay            x sqrt(r)   so that of the weights does, B / (lr x decay) (Bergsma et al. 2025, 2505.13738)
    beta1, Muon's momentum  stay        they average the gradient itself. Over the same tokens whatever the batch, every
                                        step would have the signal of all of them, and lr would have to grow as r

Pure functions of numbers, without torch: a group of an optimizer and an OptimConfig's fields are mappings alike.
"""

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Literal

LRRule = Literal["none", "sqrt", "linear"]
LR_EXPONENT: dict[LRRule, float] = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


def rescaled(
    settings: Mapping[str, Any], ratio: float, lr_rule: LRRule = "sqrt", scale_beta2: bool = True
) -> dict[str, Any]:
    """Those of `settings` that change, of lr, betas and weight_decay, for a batch `ratio` times as large.

    lr_rule: lr x ratio^0, ^(1/2) or ^1. Weight decay goes with it, x ratio / lr's factor, and stays with none, which
    leaves both as they were given. A weight decay that is no number (timescale) follows from the batch by itself.
    """
    lr_factor = ratio ** LR_EXPONENT[lr_rule]
    changed: dict[str, Any] = {"lr": settings["lr"] * lr_factor}
    if scale_beta2 and "betas" in settings:
        beta1, beta2 = settings["betas"]
        changed["betas"] = (beta1, beta2**ratio)
    if lr_rule != "none" and isinstance(settings.get("weight_decay"), int | float):
        changed["weight_decay"] = settings["weight_decay"] * ratio / lr_factor
    return changed


def rounded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same numbers as YAML holds them: six digits, and nine decimals for betas, which count by 1 - beta."""
    return {
        name: [round(beta, 9) for beta in value] if name == "betas" else float(f"{value:.6g}")
        for name, value in settings.items()
    }


def ramp_overlay(ramp: Mapping[str, Any], micro_step_tokens: int, batch_tokens: int) -> dict[str, Any]:
    """The settings that a batch ramp needs beside a new batch: a start between one micro-step and the full batch."""
    start = ramp["start_batch_tokens"]
    fitting = min(max(start, micro_step_tokens), batch_tokens)
    return {"batch_ramp": {"start_batch_tokens": fitting}} if ramp["ramp_tokens"] and fitting != start else {}


class StepSettings:
    """Rescaled settings of an optimizer's groups, in place for one step only, so that no checkpoint has them."""

    def __init__(self) -> None:
        self._before: list[dict[str, Any]] = []

    def rescale(
        self,
        groups: Iterable[MutableMapping[str, Any]],
        ratio: float,
        lr_rule: LRRule = "sqrt",
        scale_beta2: bool = True,
    ) -> None:
        """Put the settings of the coming step in place, right before it."""
        for group in groups:
            changed = rescaled(group, ratio, lr_rule, scale_beta2)
            # lr is not kept: after the step the scheduler sets it anew
            self._before.append({name: group[name] for name in changed if name != "lr"})
            group.update(changed)

    def restore(self, groups: Iterable[MutableMapping[str, Any]]) -> None:
        """Give back what the groups had before the step; nothing between steps."""
        if self._before:
            for group, before in zip(groups, self._before, strict=True):
                group.update(before)
            self._before = []

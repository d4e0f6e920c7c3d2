"""The optimizer of a run: AdamW, and Muon for the groups that ask for it, in the one object that Lightning takes."""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.lr_scheduler import LambdaLR

from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.optim.groups import Facts, Multipliers, parameter_groups
from gpt_lightning.optim.muon import muon_step


class RoleOptimizer(torch.optim.Optimizer):
    """Steps groups made by `parameter_groups`, each with its own algorithm.

    Where `found_inf`, a tensor set before the step, is 1, weights and moments stay as they are, without a
    synchronisation.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: list[dict[str, Any]], lr: float):
        super().__init__(groups, {"lr": lr})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the moments alone: lr, decay, betas and the like stay those that this optimizer was built with."""
        own = [{key: value for key, value in group.items() if key != "params"} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, settings in zip(self.param_groups, own, strict=True):
            group.update(settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            step = muon_step if group["algorithm"] == "muon" else adamw_step
            step(group, self.state, self.found_inf)
        return loss


class TokenSchedule(LambdaLR):
    """A multiplier of every group's learning rate, from the module's tokens; it has nothing to load but the steps."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from the saved step, with the peak and the schedule of this run."""
        peaks = self.base_lrs
        super().load_state_dict(state_dict)
        self.base_lrs = peaks
        self.refresh()

    def refresh(self) -> None:
        """Set the learning rate of the coming step again, after what it depends on has changed."""
        self._last_lr = [
            base * multiplier(self.last_epoch) for base, multiplier in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


def adamw_step(group: Mapping[str, Any], state: MutableMapping[Tensor, Any], found_inf: Tensor | None) -> None:
    """torch's own AdamW on one group."""
    parameters = [p for p in group["params"] if p.grad is not None]
    for p in parameters:
        if not state[p]:
            step = torch.zeros((), dtype=torch.float32, device=p.device if group["fused"] else "cpu")
            state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    adam(
        parameters,
        [p.grad for p in parameters],
        [state[p]["exp_avg"] for p in parameters],
        [state[p]["exp_avg_sq"] for p in parameters],
        [],
        [state[p]["step"] for p in parameters],
        fused=group["fused"],
        found_inf=found_inf,
        decoupled_weight_decay=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"] * group["lr_ratio"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def build_optimizer(
    parameters: Mapping[str, Tensor],
    facts: Mapping[str, Facts],
    config: OptimConfig,
    multipliers: Mapping[Any, Multipliers],
) -> RoleOptimizer:
    """The optimizer that `config` asks for, over named parameters with their facts."""
    return RoleOptimizer(parameter_groups(parameters, facts, config, multipliers), config.lr)

"""The gradient noise scale: how large a batch is worth paying for, measured while a run trains.

Below the critical batch, twice the batch needs about half the steps; above it, more sequences average away noise that
is gone already (McCandlish et al. 2018, arXiv 1812.06162, appendix A). It compares the squared gradient norm of one
micro-batch with that of the whole step:

    k micro-batches of b sequences   g_i: gradient of the i-th's mean loss   G: their mean, the step's gradient
    |G|^2_est = (k |G|^2 - mean |g_i|^2) / (k - 1)        S_est = b k / (k - 1) (mean |g_i|^2 - |G|^2)
    noise scale = EMA(S_est) / EMA(|G|^2_est), in sequences; x context_length in tokens

Ranks count as further micro-batches. A hook on each parameter sees each micro-batch's own gradient before it is added
up, under DDP before the ranks' mean; no gradient is kept twice. A step of a single micro-batch has nothing to compare;
there the norms stand in for the whole, whose per-example gradients are cheap (Gray et al. 2024, arXiv 2411.00999:
their noise scale predicts the total). Cost: a norm of the gradients per measured micro-step; nothing on other steps.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_lightning.callbacks.steps import begins_step

KEPT = 10_000  # last estimates that are kept for an interval
Number = TypeVar("Number", float, Tensor)


class CriticalBatch(NamedTuple):
    """The critical batch in tokens, with a 90% interval; infinite where the gradient is lost in its noise."""

    tokens: float
    low: float
    high: float


def noise_estimates(mean_square_small: Number, square_big: Number, b: int, k: int) -> tuple[Number, Number]:
    """(|G|^2_est, S_est), both unbiased, from mean |g_i|^2 over k micro-batches of b sequences and |G|^2."""
    square = (k * square_big - mean_square_small) / (k - 1)
    noise = (mean_square_small - square_big) * (b * k / (k - 1))
    return square, noise


def critical_batch(estimates: Sequence[tuple[float, float]], context_length: int) -> CriticalBatch:
    """Ratio of the means of S_est and |G|^2_est, in tokens, with a bootstrap over the steps.

    Raises ValueError for fewer than two estimates.
    """
    if len(estimates) < 2:
        raise ValueError(f"{len(estimates)} measured steps: a critical batch needs at least 2")
    pairs, random = np.asarray(estimates, dtype=np.float64), np.random.default_rng(0)
    draws = [pairs[random.integers(len(pairs), size=len(pairs))].mean(0) for _ in range(1000)]
    low, high = np.quantile([_ratio(*draw) for draw in draws], [0.05, 0.95], method="nearest")
    return CriticalBatch(*(float(x) * context_length for x in (_ratio(*pairs.mean(0)), low, high)))


def _ratio(square: float, noise: float) -> float:
    return max(noise, 0.0) / square if square > 0 else float("inf")


def norm_squares(
    norm: nn.LayerNorm | nn.RMSNorm, x: Float[Tensor, "batch *time width"], gradient: Float[Tensor, "batch *time width"]
) -> Float[Tensor, ""]:
    """Sum over the examples of |gradient of weight and bias|^2, from the input and the gradient of the output."""
    gradient = gradient.float()
    normalize: Any = F.rms_norm if isinstance(norm, nn.RMSNorm) else F.layer_norm
    normalized = normalize(x.float(), norm.normalized_shape, eps=norm.eps)
    total = _square((gradient * normalized).flatten(1, -2).sum(1))  # of (B, D)
    return total if getattr(norm, "bias", None) is None else total + _square(gradient.flatten(1, -2).sum(1))


def _square(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=torch.float32) ** 2  # x^2 as a whole never exists


class MicroBatchSquares:
    """Sum of |gradient|^2 over the micro-batches of this process, through a hook on every parameter."""

    def __init__(self, module: nn.Module):
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.total = torch.zeros((), device=self.parameters[0].device)
        self._handles = [p.register_hook(self._add) for p in self.parameters]

    def _add(self, gradient: Tensor) -> None:
        self.total += _square(gradient)

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


class NormSquares(MicroBatchSquares):
    """Sum of |gradient of the norms|^2 over the examples of a micro-batch."""

    def __init__(self, module: nn.Module):
        norms = [m for m in module.modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm)]
        if not norms:
            raise ValueError("gradient_noise: no norms in this model; use a smaller data.micro_batch_size")
        self.parameters = [p for norm in norms for p in norm.parameters()]
        self.total = torch.zeros((), device=self.parameters[0].device)
        self._handles = [norm.register_forward_hook(self._watch) for norm in norms]

    def _watch(self, norm: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        x = inputs[0].detach()  # autograd keeps it for the backward pass anyway
        output.register_hook(lambda gradient: self.total.add_(norm_squares(norm, x, gradient)) and None)


class GradientNoiseScale(Callback):
    """Measure the gradient noise scale while training; `metrics` are its smoothed values.

    Args:
        interval_steps: Measure every so many steps; 0 turns it off.
        decay: Of the moving averages, per measured step; 0.99 remembers about 100.
    """

    def __init__(self, interval_steps: int = 0, decay: float = 0.99):
        if interval_steps < 0:
            raise ValueError(f"gradient_noise.interval_steps is {interval_steps}; expected 0 (off) or more")
        if not 0 <= decay < 1:
            raise ValueError(f"gradient_noise.decay is {decay}; expected at least 0 and below 1")
        self.interval_steps, self.decay = interval_steps, decay
        self._reset(by_norms=False)
        self._watch: MicroBatchSquares | None = None
        self._shape = torch.Size((0, 0))  # of a micro-batch: sequences, tokens

    @property
    def estimates(self) -> list[tuple[float, float]]:
        """(|G|^2_est, S_est) of the measured steps, the last 10,000; for `critical_batch`."""
        self._settle()
        return list(self._estimates)

    def metrics(self) -> dict[str, float]:
        """The smoothed noise scale in sequences and tokens; nothing while it is not known. Synchronises."""
        self._settle()
        square, noise = self._smoothed  # the bias correction 1 - decay^n is the same for both and cancels
        if square <= 0 or noise <= 0:
            return {}
        scale = noise / square
        return {"gradient_noise_scale": scale, "critical_batch_tokens": scale * self._shape[1]}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            refuse_sharded(trainer.strategy)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        k = trainer.accumulate_grad_batches
        if not self.interval_steps or trainer.global_step % self.interval_steps or not begins_step(trainer, batch_idx):
            return
        self._shape = batch[0].shape
        by_norms = k * trainer.world_size == 1
        if by_norms != self._by_norms:
            self._reset(by_norms)
        check_measurable(k * trainer.world_size, self._shape[0], getattr(pl_module, "compile_blocks", False))
        self._watch = NormSquares(pl_module) if by_norms else MicroBatchSquares(pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        if self._watch is None:
            return
        watch = self._close()
        k = trainer.accumulate_grad_batches
        hooks, scale = loss_scales(trainer.precision_plugin, optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in watch.parameters if p.grad is not None])
        square = (norm.float() / scale) ** 2
        total: Any = trainer.strategy.reduce(watch.total / hooks / hooks, reduce_op="mean")
        b, n = (1, self._shape[0]) if self._by_norms else (self._shape[0], k * trainer.world_size)
        # Lightning divides each micro-batch's loss by k, and the loss of a micro-batch is the mean over its examples
        # (over all their targets, also those that do not count: the module corrects that later, by one factor):
        # either way the parts that were summed are g_i / k or g_i / b, and the mean is over as many.
        small = total * (n if self._by_norms else k)
        self._pending.append(torch.stack(noise_estimates(small, square, b, n)))

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if self._watch is not None:
            self._close()

    def state_dict(self) -> dict[str, Any]:
        estimates = torch.tensor(self.estimates, dtype=torch.float64).view(-1, 2)
        state = {"smoothed": list(self._smoothed), "estimates": estimates, "layer_norms": self._by_norms}
        return {**state, "shape": list(self._shape)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._reset(state_dict["layer_norms"])
        self._shape = torch.Size(state_dict["shape"])
        self._smoothed = (state_dict["smoothed"][0], state_dict["smoothed"][1])
        self._estimates.extend((square, noise) for square, noise in state_dict["estimates"].tolist())

    def _close(self) -> MicroBatchSquares:
        watch, self._watch = self._watch, None
        assert watch is not None
        watch.close()
        return watch

    def _reset(self, by_norms: bool) -> None:
        """Start again: the norms' gradients and the whole model's are numbers of different size."""
        self._by_norms = by_norms
        self._pending: list[Tensor] = []  # on the device until somebody asks
        self._estimates: deque[tuple[float, float]] = deque(maxlen=KEPT)
        self._smoothed = (0.0, 0.0)

    def _settle(self) -> None:
        """Bring the pending estimates from the device and smooth them, in order; skipped updates do not count."""
        pending, self._pending = self._pending, []
        for square, noise in torch.stack(pending).tolist() if pending else []:
            if np.isfinite(square) and np.isfinite(noise):
                self._estimates.append((square, noise))
                old = self._smoothed
                keep, add = self.decay, 1 - self.decay
                self._smoothed = (keep * old[0] + add * square, keep * old[1] + add * noise)


def loss_scales(precision: Any, optimizer: Any) -> tuple[Tensor | float, Tensor | float]:
    """What gradients are multiplied with: in hooks, and in `on_before_optimizer_step`; without a synchronisation.

    float16 training scales the loss. Lightning has unscaled by `on_before_optimizer_step`, but not for fused
    optimizers, which do it themselves in their step.
    """
    scaler = getattr(precision, "scaler", None)
    scale = None if scaler is None else scaler._get_scale_async()
    if scale is None:
        return 1.0, 1.0
    optimizer = getattr(optimizer, "optimizer", optimizer)
    return scale, scale if getattr(optimizer, "_step_supports_amp_scaling", False) else 1.0


def refuse_sharded(strategy: Strategy) -> None:
    """Raises ValueError where a hook would see a piece of a gradient that is already summed over the ranks."""
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
        raise ValueError(
            f"gradient_noise does not work with {type(strategy).__name__}, where gradients are in pieces; "
            "measure on one device or with --trainer.strategy ddp, or set gradient_noise.interval_steps to 0"
        )


def check_measurable(n_micro_batches: int, micro_batch_size: int, compiled: bool) -> None:
    """Raises ValueError where a step has nothing to compare. `n_micro_batches` counts over all ranks."""
    if n_micro_batches > 1 or (micro_batch_size > 1 and not compiled):
        return
    why = "of one sequence" if micro_batch_size == 1 else "and model.compile hides its norms"
    raise ValueError(
        f"gradient_noise needs something to compare, but a step is a single micro-batch {why}; "
        "use a smaller data.micro_batch_size or a larger data.batch_tokens"
    )

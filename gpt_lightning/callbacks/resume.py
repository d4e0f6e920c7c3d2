"""Random numbers go on where they stopped: without this, dropout makes a resumed run another run.

Lightning's checkpoints hold no RNG state. Here each rank's Python, NumPy, torch and CUDA generators are saved as plain
tensors and integers, so that the checkpoint stays loadable without running code, and set when training starts.

What a resumed run takes from where (tests/run/test_resume_settings.py):

    from the checkpoint    weights, moments, tokens and samples seen, random state, sums of the row under way
    as told now            max_tokens, schedule, loss, clipping, dropout, batch, micro-batch, ramp, devices, precision;
                           optim but for its name: lr, lr_ratios, betas, eps, weight_decay, momentum
    refused when changed   gpt and block; optim.name and adjust_lr; corpus, mixture, data.seed, context_length,
                           document_mask, fim_rate, fim_spm_rate
    without effect         seed_everything, init_std, init_from: they say how the run began
"""

import random
from typing import Any

import numpy
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class ResumeRandomState(Callback):
    """Save the random state of every rank in each checkpoint and restore it on resume.

    With another number of ranks than at the save there is no state to go on from; dropout then differs.
    """

    def __init__(self) -> None:
        self._loaded: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        state = random_state()
        if not torch.distributed.is_initialized():
            return {"ranks": [state]}
        ranks: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(ranks, state)
        return {"ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict["ranks"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._loaded is not None and len(self._loaded) == trainer.world_size:
            set_random_state(self._loaded[trainer.global_rank])
        self._loaded = None


def random_state() -> dict[str, Any]:
    """The state of all generators as tensors and plain values."""
    version, internal, gauss = random.getstate()
    numpy_state: Any = numpy.random.get_state()
    name, keys, position, has_gauss, cached = numpy_state
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(numpy.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, keys.numpy().astype(numpy.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])

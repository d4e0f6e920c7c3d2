"""Processes that train one trial together, under torchrun, and what they tell each other between trials."""

import os
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from torch import distributed

LONGEST_WAIT = timedelta(days=30)  # the other ranks of a worker wait as long as the first one waits for a trial
Value = TypeVar("Value")


def n_ranks() -> int:
    """Processes that train one trial together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def from_first(value: Value) -> Value:
    """The value that the first rank has, on all ranks."""
    if n_ranks() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0, group=_patient_group())
    return box[0]


@cache
def _patient_group() -> Any:
    """All ranks, beside the group that trains, whose waits are to end soon where a rank has died."""
    if not distributed.is_initialized():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)

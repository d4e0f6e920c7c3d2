"""A user's own loss: what training can call, and its buffers, all that a checkpoint holds of it."""

import inspect
from typing import Any

from gpt_lightning.model.loss import Loss


def check_loss(loss: Loss) -> Loss:
    """The loss. Raises ValueError for one that has parameters, or wants more than training gives it."""
    name = f"loss {type(loss).__name__}"
    if list(loss.parameters()):
        raise ValueError(f"{name} has parameters, which nothing would train; use buffers")
    try:
        inspect.signature(loss.forward).bind("step")
    except TypeError as error:
        raise ValueError(f"{name}: {error}; training calls forward(step), with a MicroStep") from error
    return loss


def load_loss(loss: Loss, state: dict[str, Any]) -> None:
    """Bring back the buffers of a loss. Raises ValueError where they are those of another loss."""
    here = loss.state_dict()
    if state.keys() != here.keys():
        theirs, ours = (", ".join(names) or "none" for names in (state, here))
        raise ValueError(
            f"the checkpoint was trained with another model.loss: its buffers are {theirs}, those of "
            f"{type(loss).__name__} here {ours}; repeat its loss, or start a new run with --model.init_from"
        )
    loss.load_state_dict(state)

"""The arms of a comparison: overlays by name over the common stack, which itself is the arm `baseline`."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from gpt_lightning.data.compression import text_digest
from gpt_lightning.model.gpt import GPT, Block
from gpt_lightning.run.build import check, open_corpora
from gpt_lightning.run.stack import Stack, flatten
from gpt_lightning.tune.code import training_digest
from gpt_lightning.tune.overlays import read_overlay, refuse_without_effect
from gpt_lightning.tune.trials import check_data, run_identity

BASELINE = "baseline"
SEEDS = ("seed_everything", "data.seed")


@dataclass(frozen=True)
class Arm:
    """A named overlay, and the stack with it on top."""

    name: str
    overlay: dict[str, Any]
    stack: Stack = field(repr=False)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the results of its runs, but for their seeds and length: settings, corpora, machine, code."""
        with torch.device("meta"):
            model = GPT(self.stack.settings("model.gpt"), self.stack.own_block() or Block)
        callbacks = [callback.class_path for callback in self.stack["trainer.callbacks"] or []]
        return {**run_identity(self.stack), "code": training_digest(model, self.stack.loss(), callbacks)}

    @property
    def digest(self) -> str:
        return digest(self.identity)

    @cached_property
    def scored_text(self) -> str | None:
        """A digest of the text of the validation split that it is scored on; None where there is no tokenizer."""
        return text_digest(open_corpora(self.stack)[1])


def digest(identity: Mapping[str, Any]) -> str:
    """A short name of JSON values."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def read_arms(stack: Stack, given: Mapping[str, Any]) -> list[Arm]:
    """The baseline and the arms that were given. Raises ValueError naming the arm and what is wrong."""
    if not set(given) - {BASELINE}:
        raise ValueError(
            "tune.arms has no arm to compare with the baseline; give names and overlays, as "
            "--tune.arms '{d2z: configs/optim/d2z.yaml, small_lr: {model: {optim: {lr: 1e-3}}}}'"
        )
    return [_read(stack, name, overlay) for name, overlay in {BASELINE: {}, **given}.items()]


def check_arms(arms: Sequence[Arm]) -> None:
    """Raise ValueError, naming the arm, where its data lack what it needs or its scores would not compare."""
    for arm in arms:
        with naming(arm.name):
            check_data(arm.stack)
        _check_same_text(arms[0], arm)


def _check_same_text(baseline: Arm, arm: Arm) -> None:
    """Raise ValueError where two arms are scored on different texts, whose bits per byte say nothing of the arms."""
    if arm.identity["scored"] == baseline.identity["scored"]:
        return
    if arm.scored_text is None or arm.scored_text != baseline.scored_text:
        raise ValueError(
            f"arm {arm.name}: its validation text is not the baseline's, or unknown without a tokenizer; scores of "
            "different texts do not compare: set data.val_corpus for all arms"
        )


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Errors that a user can mend say which arm they are of."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"arm {name}: {error}") from error
    except torch.cuda.OutOfMemoryError as error:
        raise ValueError(f"arm {name}: does not fit the GPU's memory; lower its data.micro_batch_size") from error


def _read(stack: Stack, name: str, overlay: Any) -> Arm:
    with naming(name):
        common = stack
        for part in overlay if isinstance(overlay, list) else [overlay]:
            settings = read_overlay(part)
            refuse_without_effect(stack, settings)
            _refuse_seeds(settings)
            stack = stack.over(settings)
        check(stack)
        arm = Arm(name, common.overlay_to(stack), stack)
        _ = arm.identity  # its files are there, and its model can be made
        return arm


def _refuse_seeds(settings: dict[str, Any]) -> None:
    for key in SEEDS:
        if key in flatten(settings):
            raise ValueError(f"{key} is the same for all arms, which are compared in pairs of one seed; set it for all")

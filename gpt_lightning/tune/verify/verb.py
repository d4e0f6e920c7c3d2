"""`gpt-lightning tune verify`: does what you tune on a small model hold for a large one? Measured on your own model.

The stack's model, with your changes, is built in miniature (miniature.py) and three things are asked of it: do
duplicated models train alike to the last digit, do initial weights follow the laws (both in equivalence.py), and
do a few steps move activations as far in wide and deep models as in small ones (coordinate_check.py). It needs no
corpus and takes a few seconds. Exit code 1 when a check fails.
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt_lightning.model.gpt import Block, GPTConfig
from gpt_lightning.model.loss import CrossEntropy, Loss
from gpt_lightning.model.own_block import MakeBlock
from gpt_lightning.optim.config import OptimConfig
from gpt_lightning.run.stack import Stack
from gpt_lightning.tune.code import class_files
from gpt_lightning.tune.results import IfExists
from gpt_lightning.tune.verb import Job, Verb
from gpt_lightning.tune.verify.checks import VerifyResult, judge, measurements
from gpt_lightning.tune.verify.miniature import Miniature, one_thread

SEEDS = 3  # of each size in the coordinate check
# Settings that the miniatures do not take from the stack.
UNUSED = ("vocab_size", "context_length", "dropout", "init_std", "band_width", "lr", "weight_decay", "eps")


@dataclass(frozen=True)
class VerifyConfig:
    """Prove that the parametrization of this stack's model is right: that tuned settings hold for other sizes."""

    dir: str = "runs/verify"
    """Folder of the results."""
    if_exists: IfExists = "resume"
    """resume keeps what has been measured there, overwrite starts anew."""


def verify(
    gpt: GPTConfig,
    optim: OptimConfig,
    block: MakeBlock = Block,
    seeds: int = SEEDS,
    loss: Loss = CrossEntropy(),  # noqa: B008 (it has no state)
) -> VerifyResult:
    """Check the parametrization of a model, its loss and optimizer.

    seeds: runs per size of the coordinate check. Raises ValueError when wider models have other layers, and for a loss
    that cannot be followed in miniature.
    """
    with one_thread():
        plan = measurements(gpt, loss, optim, block, seeds)
        return judge(gpt, optim.name, {key: measure() for key, measure in plan.items()})


def tune_verify(job: Job) -> VerifyResult:
    """Measure what the folder does not hold, and judge."""
    gpt, optim = job.stack.settings("model.gpt"), job.stack.settings("model.optim")
    block, loss = job.stack.own_block() or Block, job.stack.loss()
    code = code_digest(block, gpt, loss)  # so that a mended model is measured anew
    measured = {}
    plan = measurements(gpt, loss, optim, block, SEEDS)
    with one_thread():
        for key, measure in job.progress.track(plan.items(), description="verifying"):
            measured[key] = job.folder.measured(f"{code} {key}", measure)
    return judge(gpt, optim.name, measured)


def identity(stack: Stack, settings: VerifyConfig) -> dict[str, Any]:
    """What decides the verdict: structure, loss, optimizer; neither data nor sizes that the miniatures do not take."""
    kept = {
        f"{group}.{key}": value
        for group in ("model.gpt", "model.optim")
        for key, value in asdict(stack.settings(group)).items()
        if key not in UNUSED
    }
    return {**kept, "model.block": stack["model.block"].as_dict(), "model.loss": stack["model.loss"].as_dict()}


def code_digest(block: MakeBlock, gpt: GPTConfig, loss: Loss = CrossEntropy()) -> str:  # noqa: B008
    """Digest of the code that decides the measurements: of model, layers, loss, optimizer and checks."""
    here = Path(__file__).parent
    files = {here / f"{name}.py" for name in ("miniature", "equivalence", "coordinate_check", "checks")}
    package = here.parents[1]
    files |= {*(package / "model").glob("*.py"), *(package / "optim").glob("*.py")}
    model = Miniature.of(gpt, block, n_heads=1, n_layers=1).build(0)
    files |= class_files([*model.modules(), *loss.modules()])
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()[:12]


VERB = Verb("tune verify", VerifyConfig, tune_verify, identity, passed=lambda result: result.passed)

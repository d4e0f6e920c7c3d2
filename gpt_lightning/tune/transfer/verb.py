"""The verb `tune transfer`: tune narrow, shallow proxies, and carry the learning rate over to the wide target.

    the parametrization is proved         tune verify on the target's own structure; nothing is trained where it fails
    three proxies are tuned (proxies.py)  tune lr on each, with trials as long as the run
    the best must not move with width     or it would move further on the way to the target
    the overlay of the target             parametrization, base width and depth, lr; the loss to expect (prediction.py)

Anything else is tuned on the widest proxy by other verbs: proxy.yaml is its overlay, as in `tune sweep --config STACK
--config runs/transfer/tuned.yaml --config runs/transfer/proxy.yaml --config SPACE`.
"""

from dataclasses import dataclass, replace

import yaml

from gpt_lightning import files
from gpt_lightning.terminal import say, short
from gpt_lightning.tune.lr.verb import LearningRateConfig, check_length, cost, find_learning_rate
from gpt_lightning.tune.results import IfExists
from gpt_lightning.tune.sizes import Size
from gpt_lightning.tune.transfer.proxies import target_and_proxies
from gpt_lightning.tune.transfer.result import TransferResult, TunedProxy
from gpt_lightning.tune.trials import identity
from gpt_lightning.tune.verb import Job, Verb
from gpt_lightning.tune.verify.verb import VerifyConfig, tune_verify


@dataclass(frozen=True)
class TransferConfig:
    """Tune narrow and shallow copies of this stack's model, and carry the learning rate over to it."""

    widths: list[int] | None = None
    """d_model of the three proxies, multiples of the width of a head; when not given a quarter of the heads, half of
    those and half again."""
    n_layers: int | None = None
    """Of the proxies. Half of the model's when not given, and as many with mup, which holds for one depth."""
    tokens: int | None = None
    """Length of the proxies' longest runs, in tokens; max_tokens when not given."""
    seeds: int = 1
    """Of the longest runs."""
    val_tokens: int = 50_000
    """Tokens of the validation split that a run is scored on."""
    dir: str = "runs/transfer"
    """Folder for result.json, figure.png, tuned.yaml and proxy.yaml."""
    if_exists: IfExists = "resume"
    """resume goes on where the same search was interrupted; overwrite starts anew."""

    def __post_init__(self) -> None:
        for name in ("tokens", "seeds", "val_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"tune.{name} {getattr(self, name)}: must be at least 1")


def tune_transfer(job: Job) -> TransferResult:
    """Prove, tune the proxies, and predict. Raises ValueError where tuned settings would not hold for the target."""
    settings = job.settings
    target, proxies = target_and_proxies(job.stack, settings.widths, settings.n_layers)
    tokens = settings.tokens or job.stack["max_tokens"]
    check_length(tokens, job.stack["data.batch_tokens"])
    _prove(job, target)
    share = sum(proxy.flops for proxy in proxies) / target.flops
    of_run = share * cost(settings.seeds) * tokens / job.stack["max_tokens"]
    widths = ", ".join(str(proxy.d_model) for proxy in proxies)
    say(
        f"proxies of d_model {widths} and {proxies[-1].n_layers} layers, runs of up to {short(tokens)} tokens: about "
        f"{of_run:.0%} of the target's run in FLOPs, {share:.0%} of tuning it as it is"
    )
    overlay = job.stack.overlay_to(job.stack.with_(proxies[-1].options()))
    words = " ".join(f"--config {job.folder.path}/{name}.yaml" for name in ("tuned", "proxy"))
    comment = f"# The widest proxy: gpt-lightning tune sweep --config STACK {words} --config SPACE\n"
    files.write_text(job.folder.path / "proxy.yaml", comment + yaml.safe_dump(overlay, sort_keys=False))
    tuned = [_tuned(job, proxy, tokens) for proxy in proxies]
    return TransferResult(job.stack, target, tuned, tokens)


def _prove(job: Job, target: Size) -> None:
    proved = tune_verify(replace(job, stack=job.stack.with_(target.options()), settings=VerifyConfig(), part="verify"))
    if not proved.passed:
        raise ValueError(
            f"tune verify fails on {', '.join(proved.failed)}: what is tuned on a narrow model would not hold for this "
            "one; gpt-lightning tune verify with the same stack shows by how much"
        )


def _tuned(job: Job, proxy: Size, tokens: int) -> TunedProxy:
    settings = LearningRateConfig(
        tokens=tokens, seeds=job.settings.seeds, val_tokens=job.settings.val_tokens, lengthen=False
    )
    part = replace(job, stack=job.stack.with_(proxy.options()), settings=settings, part=f"d_model {proxy.d_model}")
    tuned = TunedProxy(proxy, find_learning_rate(part, tokens))
    if job.progress.disable:
        say(f"d_model {proxy.d_model}: lr {tuned.found.lr:.3g}")
    return tuned


VERB = Verb("tune transfer", TransferConfig, tune_transfer, identity, passed=lambda result: result.stable)

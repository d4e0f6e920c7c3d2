"""The verb `tune compare`: is a change better here, and at what cost?

    arms (arms.py) -> cost in turns (costs.py) -> length, lr -> runs, seed by seed (runs.py) -> verdicts (verdict.py)

Every run is kept under a digest of what decides it: its settings, corpora, machine and the code that trains it. So the
folder grows: with another arm, or more seeds, the same command trains what is missing, and an arm whose code was
changed is trained anew.
"""

import math
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

from rich.progress import TaskID

from gpt_lightning.run.stack import Stack, flatten
from gpt_lightning.terminal import duration, say, short
from gpt_lightning.tune.compare.arms import Arm, check_arms, digest, naming, read_arms
from gpt_lightning.tune.compare.costs import Cost, measure_in_turns
from gpt_lightning.tune.compare.result import ArmResult, CompareResult
from gpt_lightning.tune.compare.runs import ArmRun, from_json, train_arm
from gpt_lightning.tune.compare.statistics import student_quantile
from gpt_lightning.tune.lr.verb import LearningRateConfig, default_tokens, tune_learning_rate
from gpt_lightning.tune.results import IfExists
from gpt_lightning.tune.trials import horizon, run_identity, trial_stack
from gpt_lightning.tune.verb import Job, Verb

WHOLE_TEXT = 8_192  # a multiple of usual context lengths
HARDLY = 5  # sd of the pairs
LR_SEED = 1000  # of the search for lr: further than any run is from the first


@dataclass(frozen=True)
class CompareConfig:
    """Compare arms, overlays over one stack, by whole runs with several seeds: a verdict with a p value, and costs."""

    arms: dict[str, Any] = field(default_factory=dict)
    """Names and overlays: a YAML file, a list of them, or settings. The stack itself is the arm baseline."""
    seeds: int = 5
    """Runs of each arm; seed s meets every arm with the same data and initial weights."""
    equal: Literal["tokens", "seconds", "flops"] = "tokens"
    """What arms have in common: max_tokens as each sets it, or as many as take the baseline's seconds or FLOPs."""
    tune_lr: bool = False
    """Find the lr of each arm first, by tune lr with trials of the same length."""
    tokens: int | None = None
    """Length of those trials, in tokens, as in tune lr."""
    val_tokens: int = 200_000
    """Tokens of the validation split that a run is scored on at its end."""
    level: float = 0.05
    """Chance to find a difference where there is none, over all arms, at the first look."""
    dir: str = "runs/compare"
    """Folder for result.json, figure.png and tuned.yaml."""
    if_exists: IfExists = "resume"
    """resume trains what is missing; overwrite starts anew."""

    def __post_init__(self) -> None:
        for name in ("seeds", "tokens", "val_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"tune.{name} {getattr(self, name)}: must be at least 1")
        if not 0 < self.level < 1:
            raise ValueError(f"tune.level {self.level}: must lie between 0 and 1")
        if self.tokens is not None and not self.tune_lr:
            raise ValueError("tune.tokens is the length of the trials that look for lr; add --tune.tune_lr true")


@dataclass(frozen=True)
class Plan:
    """An arm and what its runs are trained with, as options by dotted name."""

    arm: Arm
    cost: Cost
    options: dict[str, Any]
    remarks: tuple[str, ...] = ()

    def key(self, seed: int, val_tokens: int | None) -> str:
        """What the folder keeps a run under."""
        decides = {**self.arm.identity, "options": self.options, "val_tokens": val_tokens}
        return f"run {digest(decides)} seed {seed}"


def tune_compare(job: Job) -> CompareResult:
    """Train and measure what the folder does not hold, and judge."""
    settings = job.settings
    arms = read_arms(job.stack, settings.arms)
    same_tokens = all(arm.identity["scored"] == arms[0].identity["scored"] for arm in arms)
    unit = math.lcm(WHOLE_TEXT, *(arm.stack["data.context_length"] for arm in arms))
    val_tokens = -(-settings.val_tokens // unit) * unit if same_tokens else None
    if not same_tokens:
        say("arms have other tokens: scored on the whole validation text, so runs kept without them are trained anew")
    _say_power(settings, sum(arm.digest != arms[0].digest for arm in arms))
    plans = [_plan(job, arms[0], arm) for arm in arms]
    runs = _train(job, plans, val_tokens)
    results = [
        ArmResult(
            plan.arm.name,
            _overlay(job.stack, plan),
            plan.options.get("model.optim.lr", plan.arm.stack["model.optim.lr"]),
            plan.options["max_tokens"],
            plan.cost,
            runs[plan.arm.name],
            plan.remarks,
        )
        for plan in plans
    ]
    remarks = []
    found = ["lrs"] * settings.tune_lr + ["lengths"] * (settings.equal == "seconds")
    if found:
        remarks.append(f"p holds for these {' and '.join(found)}: how well they were found is not in it")
    return CompareResult(results, settings.level, tuple(remarks))


def _say_power(settings: CompareConfig, n_arms: int) -> None:
    """Warn of a comparison that can find next to nothing."""
    if settings.seeds < 2 or not n_arms:
        return
    quantile = student_quantile(1 - settings.level / n_arms / 2, settings.seeds - 1)
    if (least := quantile / math.sqrt(settings.seeds)) > HARDLY:
        say(
            f"{settings.seeds} seeds, {n_arms} arms: differences below {least:.0f} x the sd of their pairs stay unfound"
        )


def _plan(job: Job, baseline: Arm, arm: Arm) -> Plan:
    """What the arm's runs are trained with: its length by `equal`, its lr where that is tuned."""
    settings, remarks = job.settings, []
    base, cost = _costs(job, baseline, arm)
    max_tokens = arm.stack["max_tokens"]
    if settings.equal != "tokens":
        ratio = _ratio(settings.equal, base, cost)
        batch_tokens = arm.stack["data.batch_tokens"]
        steps = max(round(baseline.stack["max_tokens"] * ratio / batch_tokens), 1)
        max_tokens = baseline.stack["max_tokens"] if ratio == 1 else steps * batch_tokens
    options: dict[str, Any] = {"max_tokens": max_tokens}
    if max_tokens != arm.stack["max_tokens"]:
        options = {k: v for k, v in horizon(arm.stack, max_tokens).items() if v != arm.stack[k]}
        if "max_tokens" in flatten(arm.overlay):
            remarks.append(f"its own max_tokens {arm.stack['max_tokens']:,} was replaced")
    if "loss" in arm.overlay.get("model", {}):
        remarks.append("FLOPs are the model's: those of its loss are not counted")
    if settings.tune_lr:
        options["model.optim.lr"], remark = _tuned_lr(job, baseline, arm, max_tokens)
        remarks.append(remark)
    if arm is not baseline and arm.digest == baseline.digest:
        remarks.append("changes nothing that training uses: its runs are the baseline's")
    return Plan(arm, cost, options, tuple(remarks))


def _ratio(equal: str, baseline: Cost, arm: Cost) -> float:
    """Tokens of the arm for one of the baseline."""
    if equal == "flops":
        return baseline.flops_per_token / arm.flops_per_token
    ratio = baseline.seconds_per_token / arm.seconds_per_token
    if not math.isfinite(ratio):
        raise ValueError("tune.equal seconds: an arm's steps could not be timed, its loss is not finite from the start")
    return ratio


def _costs(job: Job, baseline: Arm, arm: Arm) -> tuple[Cost, Cost]:
    """Of the baseline and of the arm; the arm's time is that of the baseline by the ratio that they had in turns."""
    bar = job.progress.add_task(f"timing {arm.name}", total=None)
    alone = Cost(**job.measured(f"cost {baseline.digest}", lambda: measure_in_turns([baseline])[0]))
    found = alone
    if arm.digest != baseline.digest:
        key = f"cost {arm.digest} beside {baseline.digest}"
        first, second = (Cost(**cost) for cost in job.measured(key, lambda: measure_in_turns([baseline, arm])))
        found = replace(
            second, seconds_per_token=alone.seconds_per_token * second.seconds_per_token / first.seconds_per_token
        )
    job.progress.remove_task(bar)
    return alone, found


def _tuned_lr(job: Job, baseline: Arm, arm: Arm, max_tokens: int) -> tuple[float, str]:
    """The lr that tune lr finds for runs of this length, and a word on it. All arms have trials of the same length."""
    settings = job.settings
    tokens = settings.tokens or default_tokens(baseline.stack)
    val_tokens = min(settings.val_tokens, LearningRateConfig.val_tokens)
    search = LearningRateConfig(tokens=tokens, val_tokens=val_tokens, lengthen=False)  # as many tokens for every arm
    stack = trial_stack(arm.stack, {"max_tokens": max_tokens}, LR_SEED)
    part = f"lr {digest({**arm.identity, 'max_tokens': max_tokens, 'search': asdict(search)})}"
    say(f"lr of {arm.name}:")
    with naming(arm.name):
        found = tune_learning_rate(replace(job, stack=stack, settings=search, part=part))
    words = f"lr {found.lr:.1e} by tune lr, {found.tokens:,} tokens"
    before = flatten(arm.overlay).get("model.optim.lr")
    return found.lr, words + (f"; its own {before} was replaced" if before is not None else "")


def _train(job: Job, plans: list[Plan], val_tokens: int | None) -> dict[str, list[ArmRun]]:
    """The runs of each arm, by seed. All arms of a seed before the next seed: what is there can be compared."""
    wanted = [(plan, seed) for seed in range(job.settings.seeds) for plan in plans]
    missing = {
        plan.key(seed, val_tokens): plan for plan, seed in wanted if plan.key(seed, val_tokens) not in job.folder
    }
    tokens = sum(plan.options["max_tokens"] for plan in missing.values())
    seconds = sum(plan.options["max_tokens"] * plan.cost.seconds_per_token for plan in missing.values())
    if missing:
        about = f", about {duration(seconds)} and scoring" if math.isfinite(seconds) else ""
        say(f"{len(missing)} runs to train, {short(tokens)} tokens{about}; an interrupted comparison goes on")
    bar = job.progress.add_task("", total=tokens)
    runs: dict[str, list[ArmRun]] = {plan.arm.name: [] for plan in plans}
    done = 0
    for plan, seed in wanted:
        arm, key = plan.arm, plan.key(seed, val_tokens)
        is_new = key not in job.folder
        job.progress.update(bar, description=f"{arm.name}, seed {seed}")
        advance = partial(_advance, job, bar, done)
        measure = partial(train_arm, arm.stack, plan.options, seed, val_tokens, advance)
        with naming(arm.name):
            runs[arm.name].append(from_json(job.measured(key, measure)))
        done += plan.options["max_tokens"] if is_new else 0
    return runs


def _advance(job: Job, bar: TaskID, before: int, tokens: int) -> None:
    job.progress.update(bar, completed=before + tokens)


def _overlay(stack: Stack, plan: Plan) -> dict[str, Any]:
    """What makes a fit of the stack the arm's run: its own settings, and what was found for it."""
    return stack.overlay_to(plan.arm.stack.with_(plan.options))


def identity(stack: Stack, settings: CompareConfig) -> dict[str, Any]:
    """What every run of the folder has in common: the stack and how long the score is. Wrong arms are refused here."""
    check_arms(read_arms(stack, settings.arms))
    return {"val_tokens": settings.val_tokens, **run_identity(stack)}


VERB = Verb("tune compare", CompareConfig, tune_compare, identity)

"""The same sweep for a W&B server: what `wandb sweep FILE` takes, whose agents then call `gpt-lightning fit`."""

from typing import Any

import yaml
from lightning.pytorch.loggers import WandbLogger

from gpt_lightning.run.stack import Stack
from gpt_lightning.tune.sweep.space import Range
from gpt_lightning.tune.sweep.worker import Plan, logs_to_wandb
from gpt_lightning.tune.trials import horizon


def wandb_sweep(plan: Plan, factor: int) -> str:
    """YAML of a sweep by Bayesian search with Hyperband; choices of overlays, which it has no word for, are named."""
    parameters: dict[str, Any] = {}
    left_out = []
    for entry in plan.space.entries:
        if isinstance(entry, Range):
            kind = "log_uniform_values" if entry.log else "uniform"
            kind = f"q_{kind}" if entry.is_whole else kind
            parameters[entry.key] = {"distribution": kind, "min": entry.low, "max": entry.high}
        elif entry.key is not None:
            parameters[entry.key] = {"values": entry.labels}
        else:
            left_out.append(entry.name)
    sweep = {
        "method": "bayes",
        "metric": {"name": "val/loss", "goal": "minimize"},
        "parameters": parameters,
        "early_terminate": {"type": "hyperband", "min_iter": 1, "eta": factor},
        "command": ["gpt-lightning", "fit", "--config", f"{plan.folder}/wandb_stack.yaml", "${args}"],
    }
    note = f"# Left out, for W&B knows no choice of overlays: {', '.join(left_out)}\n" if left_out else ""
    return f"# wandb sweep {plan.folder}/wandb_sweep.yaml\n{note}{yaml.safe_dump(sweep, sort_keys=False)}"


def agents_stack(stack: Stack, tokens: int) -> Stack:
    """What every run of an agent starts from: so long, in a folder of its own, the server as its logger."""
    logger = {"class_path": f"{WandbLogger.__module__}.{WandbLogger.__name__}"}
    named = stack if logs_to_wandb(stack) else stack.with_({"trainer.logger": logger})
    return named.with_({**horizon(stack, tokens), "run_dir": None, "trainer.logger.init_args.offline": False})

"""Initial weights: GPT-2's (Radford et al. 2019, section 2.3), by the facts of each parameter.

Each parameter is drawn from torch's seed and its own name. So models that differ elsewhere start with the same weights
where names and shapes are the same, which makes them comparable with few seeds, and a sharded model, which is made part
by part, starts as one that is made whole.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.facts import Facts
from gpt_lightning.model.parametrization import parametrization


def init_weights(module: nn.Module, facts: Mapping[str, Facts], config: GPTConfig, prefix: str = "") -> None:
    """Draw the weights of the whole model, or of the part named `prefix`.

    facts                                 distribution   std; each x its init_std in model/parametrization.py
    embedding, hidden, readout            normal         init_std
    those that are residual               normal         init_std x residual_init; 1 / sqrt(2 n_layers) in GPT-2
    vector: biases; norms' weights        constant       0; 1
    those that are residual, zero_init    constant       0
    std None                              what its module's constructor gave it

    facts: of the whole model. Raises ValueError naming what is left without a value.
    """
    numbers = parametrization(config)
    own = dict(module.named_buffers())
    for name, parameter in module.named_parameters():
        fact = facts[prefix + name]
        if fact.std is None:
            own[name] = parameter
        else:
            to_zero = config.zero_init and fact.residual
            std, mean = (0.0, 0.0) if to_zero else (fact.std, fact.mean)
            std = std * config.init_std * numbers.roles[fact.role].init_std
            std = std * numbers.residual_init if fact.residual else std
            if std:
                nn.init.normal_(parameter, mean, std, generator=_generator(prefix + name))
            else:
                nn.init.constant_(parameter, mean)
    unset = [prefix + name for name, value in own.items() if value.isnan().any()]
    if unset:
        raise ValueError(
            f"nobody initialised {', '.join(unset)}; give it values in its module's constructor, or a std in "
            "parameter_facts"
        )


def _generator(name: str) -> torch.Generator:
    """Random numbers that follow from torch's seed and a name."""
    digest = hashlib.sha256(f"{torch.initial_seed()} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

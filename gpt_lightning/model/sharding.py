"""Build a GPT, in one piece or sharded over a device mesh (FSDP2), block by block.

Sharded or not, the weights are drawn on the CPU by the same random numbers in the same order, so that a run on one
process and one on many start from equal weights. When sharding, only one block exists whole at a time.
"""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from gpt_lightning.model.gpt import GPT, GPTConfig, init_weights, seeded_generator


def build_sharded(config: GPTConfig, mesh: DeviceMesh | None = None) -> GPT:
    """A GPT with random weights on the CPU; with a mesh, sharded over its "data_parallel" dimension."""
    if mesh is None:
        with torch.device("cpu"):
            return GPT(config)
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    with torch.device("meta"):
        gpt = GPT(config)
    generator = seeded_generator()
    parts: list[nn.Module] = [gpt.wte, gpt.wpe, *gpt.blocks, gpt.ln_f]
    for part in [*parts, gpt.lm_head]:
        if part is None:
            continue
        part.to_empty(device="cpu")
        init_weights(part, config, generator)
        if part in gpt.blocks:
            fully_shard(part, mesh=mesh["data_parallel"])
    fully_shard(gpt, mesh=mesh["data_parallel"])
    register_fsdp_forward_method(gpt, "hidden_states")  # training enters here, not by forward
    return gpt

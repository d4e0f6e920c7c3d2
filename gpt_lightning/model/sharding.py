"""Build a GPT, in one piece or sharded over a device mesh (FSDP2), block by block.

Sharded or not, each weight is drawn on the CPU by random numbers of its own, so that a run on one process and one on
many start from equal weights. When sharding, only one block exists whole at a time.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from gpt_lightning.model.facts import unset_is_nan
from gpt_lightning.model.gpt import GPT, Block, GPTConfig
from gpt_lightning.model.initialization import init_weights


def build_sharded(
    config: GPTConfig, mesh: DeviceMesh | None = None, block: Callable[[GPTConfig], nn.Module] = Block
) -> GPT:
    """A GPT with random weights on the CPU; with a mesh, sharded over its "data_parallel" dimension.

    Raises ValueError naming the parameters that nobody has initialised.
    """
    if mesh is None:
        with torch.device("cpu"):
            return GPT(config, block)
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    with torch.device("meta"):
        gpt = GPT(config, block)
    layers = [f"blocks.{i}" for i in range(config.n_layers)]
    parts = [name for name, part in gpt.named_children() if list(part.parameters())]
    facts = gpt.facts()
    for name in (name for part in parts for name in (layers if part == "blocks" else [part])):
        with torch.device("cpu"), unset_is_nan():
            part = _with_storage(gpt, name)
        init_weights(part, facts, config, f"{name}.")
        if name.startswith("blocks."):
            fully_shard(part, mesh=mesh["data_parallel"])
    fully_shard(gpt, mesh=mesh["data_parallel"])
    register_fsdp_forward_method(gpt, "hidden_states")  # training enters here, not by forward
    if config.value_residual:
        register_fsdp_forward_method(gpt.blocks[0], "first_values")
    return gpt


def is_sharded(gpt: GPT) -> bool:
    """Whether this process holds only its part of each parameter."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in gpt.parameters())


def load_whole_weights(gpt: GPT, state: dict[str, Tensor]) -> None:
    """Copy whole tensors into a model, sharded or not; every rank has them and cuts out its own part."""
    if not is_sharded(gpt):
        gpt.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(gpt, {**state}, options=StateDictOptions(full_state_dict=True))


def _with_storage(gpt: GPT, name: str) -> nn.Module:
    """A part of the model, put in its place as its constructor makes it: what a user's block sets there counts."""
    if name.startswith("blocks."):
        part = gpt.new_block()
        gpt.set_submodule(name, part)
    else:
        part = gpt.get_submodule(name).to_empty(device="cpu")
        assert isinstance(part, nn.Embedding | nn.LayerNorm | nn.RMSNorm | nn.Linear)
        part.reset_parameters()  # moves torch's random numbers on as it does on one process
    return part

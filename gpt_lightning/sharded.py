"""A checkpoint in shards: every rank writes the part that it holds, and any number of ranks reads it back.

    checkpoints/  last.ckpt -> shards-64  best.ckpt -> shards-64  shards-64/{shard-*.safetensors, rest.pt, SHA256SUMS}

For models whose whole state does not fit on one rank. torch.distributed.checkpoint writes the tensors as safetensors,
whose headers are JSON: its own format unpickles `.metadata` and every plain value, so that a foreign checkpoint would
run code. What is not a tensor is in rest.pt, read with `weights_only=True`. SHA256SUMS comes last and makes the folder
a checkpoint (`sha256sum -c` reads it too); then a symbolic link is renamed over the old one. A kill at any moment
leaves the old state or the new one.
"""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gpt_lightning import files

SUMS, REST = "SHA256SUMS", "rest.pt"


def is_sharded(path: Path) -> bool:
    """Whether there is a whole sharded checkpoint at `path`."""
    return (path / SUMS).is_file()


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whose tensors are shards; all ranks call it together, on one file system.

    Raises OSError naming the path when a rank cannot write, with the old checkpoint still whole.
    """
    from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageWriter, save

    tensors, rest = _take_apart(checkpoint)
    folder = path.with_name(_by_rank_zero(lambda: _new_name(path.parent, checkpoint["global_step"])))
    try:
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:  # the same one on all ranks; not an Exception
        reasons = "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in error.failures.items())
        raise OSError(f"could not write {path}: {reasons}; free some disk space") from error
    rank = dist.get_rank()
    sums: list[Any] = [None] * dist.get_world_size()
    own = {file.name: files.sha256(file) for file in folder.glob(f"shard-{rank + 1:05d}-*")}
    if rank == 0:
        with files.replacing(folder / REST) as file:
            torch.save(rest, file)  # type: ignore[arg-type]
            own[REST] = file.sha256
    dist.all_gather_object(sums, own)
    if rank == 0:
        lines = [f"{digest}  {name}" for part in sums for name, digest in part.items()]
        files.write_text(folder / SUMS, "\n".join(lines) + "\n")
        _point(path, folder)
    dist.barrier()


def link(source: Path, target: Path) -> None:
    """Make `target` a second name of the sharded checkpoint `source`."""
    _point(target, source.resolve())


def remove_unused(folder: Path) -> None:
    """Remove the shards in `folder` that no link there names any more."""
    used = {path.resolve() for path in folder.iterdir() if path.is_symlink()}
    for shards in folder.glob("shards-*"):
        if shards.resolve() not in used:
            files.remove(shards)


def verify(path: Path) -> None:
    """Raise ValueError naming each file that is not byte for byte what was saved, is missing, or does not belong."""
    lines = (path / SUMS).read_text(encoding="utf-8").splitlines()
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    present = {file.name for file in path.iterdir()} - {SUMS}
    problems = [f"{name} is missing" for name in expected.keys() - present]
    problems += [f"{name} does not belong to it" for name in present - expected.keys()]
    names = sorted(expected.keys() & present)
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: files.sha256(path / name), names)
    for name, digest in zip(names, found, strict=True):
        if digest != expected[name]:
            problems.append(f"{name}: sha256 {digest[:12]}…, expected {expected[name][:12]}…")
    if problems:
        raise ValueError(f"{path} is damaged: {'; '.join(sorted(problems))}")


def read(path: Path, optimizer: bool = True) -> dict[str, Any]:
    """The whole checkpoint in memory, as a file would hold it; its tensors of the optimizer only where asked for."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    sizes: dict[str, Any] = dict(HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata)
    tensors = {
        key: torch.empty(size.size, dtype=size.properties.dtype)
        for key, size in sizes.items()
        if optimizer or key.startswith("model/")
    }
    read_tensors(tensors, path, together=False)
    checkpoint = read_rest(path)
    names = checkpoint.pop("names")
    checkpoint["state_dict"] = {name: tensors[f"model/{name}"] for name in names}
    for i, groups in enumerate(checkpoint.get("optimizer_states", [])):
        trained = {name for group in groups["param_groups"] for name in group["params"]}
        numbers = {name: number for number, name in enumerate(name for name in names if name in trained)}
        for key in [key for key in tensors if key.startswith(f"optimizer/{i}/")]:
            _, _, what, name = key.split("/")
            groups["state"].setdefault(numbers[name], {})[what] = tensors[key]
        for group in groups["param_groups"]:
            group["params"] = [numbers[name] for name in group["params"]]
    return checkpoint


def read_rest(path: Path) -> dict[str, Any]:
    """All that is not a tensor of the model or the optimizer. Raises ValueError when it holds anything but data."""
    try:
        return torch.load(path / REST, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, with pages of advice to load it unsafely
        raise ValueError(f"{path / REST} holds more than tensors and plain values; it was not loaded") from error


def read_tensors(tensors: dict[str, Tensor], path: Path, together: bool) -> None:
    """Fill `tensors`, whole or sharded in any way; `together` when all ranks call it, each for its own shards."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=not together)


def model_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's state under the names of the files."""
    return {f"model/{name}": value for name, value in state.items()}


def optimizer_tensors(number: int, state: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """The state of an optimizer, by parameter, under the names of the files."""
    return {f"optimizer/{number}/{key}/{name}": v for name, values in state.items() for key, v in values.items()}


def _take_apart(checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What goes into safetensors, and the rest."""
    rest = {**checkpoint, "names": list(checkpoint["state_dict"])}
    tensors = model_tensors(rest.pop("state_dict"))
    for number, state in enumerate(checkpoint.get("optimizer_states", [])):
        tensors |= optimizer_tensors(number, state["state"])
    if "optimizer_states" in rest:
        rest["optimizer_states"] = [{**state, "state": {}} for state in rest["optimizer_states"]]
    assert all(isinstance(value, Tensor) for value in tensors.values())
    return tensors, rest


def _new_name(folder: Path, step: int) -> str:
    names = (f"shards-{step}{ending}" for ending in ["", *(f"-{i}" for i in range(1, 1000))])
    return next(name for name in names if not (folder / name).exists())


def _point(path: Path, folder: Path) -> None:
    """Make `path` a link to the sharded checkpoint beside it, whatever it was before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    if path.is_dir() and not path.is_symlink():  # the run folder was copied by a program that follows links
        os.rename(path, path.with_name(_new_name(path.parent, 0)))
    os.replace(temporary, path)
    files.sync_folder(path.parent)
    path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)  # of a file that was here before
    remove_unused(path.parent)


def _by_rank_zero(value: Callable[[], str]) -> str:
    """What rank 0 finds, on all ranks."""
    found = [value() if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(found)
    return found[0]

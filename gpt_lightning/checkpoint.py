"""Checkpoints that are whole or absent, and loading that never runs code.

A checkpoint is written to a temporary file in its own folder, flushed to the disk, and renamed over the old one; a
kill at any moment leaves the old or the new one. Beside it, `NAME.sha256` holds the digests of the new and of the
previous file, written before the rename, so that whichever of the two is found is known. A flipped bit loads
silently in torch; here it is found before loading. Files are read with `weights_only=True` alone: tensors and plain
values, no code. A checkpoint in shards is a folder (sharded.py). run/ gives all this to Lightning; none of it is
here, so that `generate` starts fast.
"""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from gpt_lightning import files, sharded
from gpt_lightning.data.characters import AnyTokenizer, read_tokenizer, tokenizer_beside
from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.model.gpt import GPT, Block, GPTConfig
from gpt_lightning.model.lora import merged
from gpt_lightning.model.own_block import MakeBlock, block_spec, check_same_block, repeated_block


def write_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint and its digest. Raises OSError naming path and bytes, with the old file still whole."""
    path, n_bytes = Path(path), 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as file:
            try:
                torch.save(checkpoint, file)  # type: ignore[arg-type]
            finally:
                n_bytes = file.n_bytes
            _write_digests(path, file.sha256)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise OSError(
            f"could not write {path} (stopped after {n_bytes} bytes): {error}; free some disk space"
        ) from error
    sharded.remove_unused(path.parent)


def link_checkpoint(source: str | Path, target: str | Path) -> None:
    """Make `target` a second name of the checkpoint `source`; each may be replaced without the other."""
    source, target = Path(source), Path(target)
    if sharded.is_sharded(source):
        sharded.link(source, target)
    else:
        _write_digests(target, _digests(source)[0])
        files.link(source, target)
        sharded.remove_unused(target.parent)


def remove_checkpoint(path: str | Path) -> None:
    """Remove a checkpoint and its digest."""
    Path(path).unlink(missing_ok=True)
    _digest_file(Path(path)).unlink(missing_ok=True)
    sharded.remove_unused(Path(path).parent)


def read_checkpoint(path: str | Path, optimizer: bool = True, mapped: bool = False) -> dict[str, Any]:
    """Contents of a checkpoint on the CPU; of one in shards, those of the optimizer only where asked for.

    mapped: tensors of a file stay in it until they are used, so that many ranks on a machine need no memory of their
    own for it. Raises ValueError when it is damaged or holds anything but data.
    """
    path = Path(path)
    verify_checkpoint(path)
    if sharded.is_sharded(path):
        return sharded.read(path, optimizer)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many kinds, with pages of advice to load it unsafely
        raise ValueError(f"{path} is not a checkpoint of tensors and plain values; it was not loaded") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} has no state_dict; expected a checkpoint written by gpt-lightning")
    return checkpoint


def verify_checkpoint(path: Path) -> None:
    """Raise ValueError unless the file, or each of its shards, is byte for byte what was saved."""
    if sharded.is_sharded(path):
        return sharded.verify(path)
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    expected = _digests(path)
    if not expected:
        raise ValueError(f"{_digest_file(path)} is missing: {path.name} cannot be checked; copy both files together")
    found = files.sha256(path)
    if found not in expected:
        raise ValueError(f"{path} is damaged: sha256 {found[:12]}…, expected {expected[0][:12]}…")


def gpt_config_to_dict(config: GPTConfig) -> dict[str, Any]:
    """The architecture as plain values, which a checkpoint may hold."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}


def gpt_config_from_dict(values: dict[str, Any]) -> GPTConfig:
    """The inverse of `gpt_config_to_dict`. Raises ValueError for values that are no architecture."""
    unknown = sorted(set(values) - {field.name for field in fields(GPTConfig)})
    if unknown:
        raise ValueError(f"unknown architecture settings {', '.join(unknown)}; the checkpoint is from a newer version")
    plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    return GPTConfig(**plain)


def check_same_model(checkpoint: dict[str, Any], config: GPTConfig, block: MakeBlock = Block) -> None:
    """Raise ValueError naming each setting in which the checkpoint's architecture differs from `config` and `block`."""
    if "gpt_config" not in checkpoint:
        raise ValueError("the checkpoint has no gpt_config; expected one written by gpt-lightning")
    here, trained = gpt_config_to_dict(config), gpt_config_to_dict(gpt_config_from_dict(checkpoint["gpt_config"]))
    differing = [
        f"{key} {value} (here {here[key]})"
        for key, value in trained.items()
        if here[key] != value and key not in ("dropout", "init_std", "zero_init")  # no effect on the function
    ]
    if differing:
        raise ValueError(f"the checkpoint has another architecture: {', '.join(differing)}")
    check_same_block(trained_block(checkpoint), block_spec(block))


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint meant by `path`: itself, or a run folder's best one, else its last."""
    path = Path(path)
    if path.is_file() or sharded.is_sharded(path):
        return path
    for name in ("best.ckpt", "last.ckpt"):
        if (path / "checkpoints" / name).exists():
            return path / "checkpoints" / name
    raise ValueError(f"no checkpoint in {path}; expected a run folder with checkpoints/, or a .ckpt file")


def checkpoint_digest(path: str | Path) -> str:
    """SHA-256 of the checkpoint meant by `path`, as it was saved; of one in shards, of their digests."""
    path = find_checkpoint(path)
    return files.sha256(path / sharded.SUMS) if sharded.is_sharded(path) else "".join(_digests(path)[:1])


def find_tokenizer(path: str | Path) -> Path:
    """The tokenizer.json of the run that `path`, a run folder or one of its checkpoints, belongs to."""
    return tokenizer_beside(find_checkpoint(path))


def gpt_state(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of the GPT inside a checkpoint of a GPTModule; with those of LoRA, if any, merged into them."""
    return merged(
        {key.removeprefix("gpt."): value for key, value in checkpoint["state_dict"].items() if key.startswith("gpt.")}
    )


def load_gpt(path: str | Path, block: MakeBlock | str | None = None) -> GPT:
    """The GPT of a run folder or checkpoint, with its weights, in eval mode on the CPU.

    block: that of the run when it was the user's own, or its import path; the checkpoint never imports it by itself.
    """
    return gpt_of(read_checkpoint(find_checkpoint(path), optimizer=False), block)


def gpt_of(checkpoint: dict[str, Any], block: MakeBlock | str | None = None) -> GPT:
    """The GPT in a checkpoint that has been read."""
    if "gpt_config" not in checkpoint:
        raise ValueError("the checkpoint has no gpt_config; expected one written by gpt-lightning")
    make = repeated_block(trained_block(checkpoint), block)
    with torch.device("meta" if make is Block else "cpu"):  # buffers of a user's block are set in its constructor
        gpt = GPT(gpt_config_from_dict(checkpoint["gpt_config"]), make)
    gpt.load_state_dict(gpt_state(checkpoint), assign=True)
    return gpt.requires_grad_().eval()


def trained_block(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """Import path and settings of the user's own block that a checkpoint was trained with; nothing is imported."""
    block = checkpoint.get("block")
    if block is not None and (not isinstance(block, dict) or set(block) != {"class_path", "init_args"}):
        raise ValueError(f"the checkpoint's block is {block!r}; expected its class_path and init_args")
    return block


def load_gpt_weights(gpt: GPT, path: str | Path, tokenizer: AnyTokenizer | None = None) -> int:
    """Copy the weights of a run folder or checkpoint into `gpt`; where that is sharded (FSDP2), all ranks call it.

    tokenizer: of the data; where it has further markers, they begin as the mean of the rows that there are. A head for
    labels stays as it was drawn where the checkpoint has none. Returns how many ids the checkpoint knows.
    Raises ValueError when the architectures differ.
    """
    from gpt_lightning.model.growth import with_more_ids
    from gpt_lightning.model.sharding import is_sharded, load_whole_weights

    path = find_checkpoint(path)
    if is_sharded(gpt) and sharded.is_sharded(path):  # every rank reads its own part
        verify_checkpoint(path)
        check_same_model(sharded.read_rest(path), gpt.config, gpt.block)
        weights = gpt.state_dict()
        named = {f"gpt.{name}": value for name, value in weights.items()}
        sharded.read_tensors(sharded.model_tensors(named), path, together=True)
        gpt.load_state_dict(weights)
        return gpt.config.vocab_size
    checkpoint = read_checkpoint(path, optimizer=False, mapped=True)
    state = gpt_state(checkpoint)
    n_ids, n_known = gpt.config.vocab_size, len(state["wte.weight"])
    if n_known < n_ids and isinstance(tokenizer, Tokenizer) and tokenizer.extends(read_tokenizer(find_tokenizer(path))):
        state = with_more_ids(state, n_ids)
        checkpoint = {**checkpoint, "gpt_config": {**checkpoint["gpt_config"], "vocab_size": n_ids}}
    trained, n_labels = checkpoint.get("gpt_config", {}), gpt.config.n_labels
    if not trained.get("n_labels") and gpt.label_head is not None:
        checkpoint = {**checkpoint, "gpt_config": {**checkpoint["gpt_config"], "n_labels": n_labels}}
        state["label_head.weight"] = gpt.label_head.weight.detach().clone()
    check_same_model(checkpoint, gpt.config, gpt.block)
    load_whole_weights(gpt, state)
    return n_known


def _digest_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _digests(path: Path) -> list[str]:
    file = _digest_file(path)
    return file.read_text(encoding="ascii").split() if file.is_file() else []


def _write_digests(path: Path, new: str) -> None:
    """Let the file at `path` be the one there or the one with the digest `new`, whichever is found."""
    files.write_text(_digest_file(path), "\n".join([new, *_digests(path)[:1]]) + "\n")

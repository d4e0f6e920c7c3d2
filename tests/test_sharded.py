"""Checkpoints in shards: whole or absent, checked before loading, and never run. By two ranks: run/test_distributed."""

import os
import pickle

import pytest
import torch
import torch.distributed as dist

from gpt_lightning import files, sharded
from gpt_lightning.checkpoint import link_checkpoint, read_checkpoint, remove_checkpoint, write_checkpoint

CONTENTS = {
    "state_dict": {"gpt.b": torch.arange(6.0).view(2, 3), "gpt.a": torch.ones(4, dtype=torch.bfloat16)},
    "optimizer_states": [
        {
            "state": {"gpt.a": {"step": torch.tensor(3.0)}, "gpt.b": {"step": torch.tensor(3.0)}},
            "param_groups": [{"params": ["gpt.a"], "lr": 0.1, "betas": (0.9, 0.95)}, {"params": ["gpt.b"], "lr": 0.2}],
        }
    ],
    "global_step": 7,
    "tokens_seen": 70,
}


@pytest.fixture(autouse=True)
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_what_is_written_is_read_as_a_file_would_hold_it(tmp_path):
    path = tmp_path / "last.ckpt"
    sharded.write(CONTENTS, path)
    found = read_checkpoint(path)
    assert list(found["state_dict"]) == ["gpt.b", "gpt.a"] and found["tokens_seen"] == 70
    for name, tensor in CONTENTS["state_dict"].items():
        assert torch.equal(found["state_dict"][name], tensor) and found["state_dict"][name].dtype == tensor.dtype
    (optimizer,) = found["optimizer_states"]
    assert [group["params"] for group in optimizer["param_groups"]] == [[1], [0]], "numbered as the model lists them"
    assert optimizer["param_groups"][0]["betas"] == (0.9, 0.95)
    assert optimizer["state"] == {0: {"step": torch.tensor(3.0)}, 1: {"step": torch.tensor(3.0)}}
    assert read_checkpoint(path, optimizer=False)["optimizer_states"][0]["state"] == {}


def test_a_second_name_costs_no_second_write_and_what_has_no_name_goes(tmp_path):
    best, last = tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    sharded.write(CONTENTS, best)
    link_checkpoint(best, last)
    assert best.resolve() == last.resolve()
    sharded.write({**CONTENTS, "tokens_seen": 80}, last)  # the same step again, as after another start
    assert (read_checkpoint(best)["tokens_seen"], read_checkpoint(last)["tokens_seen"]) == (70, 80)
    assert sorted(path.name for path in tmp_path.glob("shards*")) == ["shards-7", "shards-7-1"]
    write_checkpoint({"state_dict": {}}, last)  # the run goes on as one process
    assert sorted(path.name for path in tmp_path.glob("shards*")) == ["shards-7"]
    remove_checkpoint(best)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]
    sharded.write(CONTENTS, last)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "shards-7"]


@pytest.mark.parametrize(
    "moment", ["torch.distributed.checkpoint.save", "gpt_lightning.files.write_text", "os.replace"]
)
def test_a_kill_at_any_moment_leaves_the_old_checkpoint(tmp_path, monkeypatch, moment):
    path = tmp_path / "last.ckpt"
    sharded.write(CONTENTS, path)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(moment, killed)
    with pytest.raises(KeyboardInterrupt):
        sharded.write({**CONTENTS, "tokens_seen": 80}, path)
    monkeypatch.undo()
    assert read_checkpoint(path)["tokens_seen"] == 70
    sharded.write({**CONTENTS, "tokens_seen": 90}, path)
    assert read_checkpoint(path)["tokens_seen"] == 90
    assert len(list(tmp_path.iterdir())) == 2, "left-overs stay"


@pytest.mark.parametrize("damage", ["flip", "remove", "add"])
def test_damage_is_found_and_the_file_named(tmp_path, damage):
    path = tmp_path / "last.ckpt"
    sharded.write(CONTENTS, path)
    (shard,) = path.glob("shard-*")
    if damage == "flip":
        *most, last = shard.read_bytes()
        shard.write_bytes(bytes([*most, last ^ 1]))
    elif damage == "remove":
        shard.unlink()
    else:
        shard = path / "shard-00002-model-00001-of-00001.safetensors"
        shard.write_bytes(b"")
    with pytest.raises(ValueError, match=f"damaged: {shard.name}"):
        read_checkpoint(path)


class Malicious:
    def __reduce__(self):
        return (os.system, (f"touch {os.environ['MARKER']}",))


@pytest.mark.parametrize("name", [sharded.REST, ".metadata"])
def test_a_malicious_pickle_is_not_run(tmp_path, monkeypatch, name):
    """`.metadata` is what torch's own format would unpickle. An attacker can write digests too."""
    monkeypatch.setenv("MARKER", str(tmp_path / "ran"))
    path = tmp_path / "last.ckpt"
    sharded.write(CONTENTS, path)
    if name == sharded.REST:
        torch.save({"names": Malicious()}, path / name)
    else:
        (path / name).write_bytes(pickle.dumps(Malicious()))
    rows = [f"{files.sha256(file)}  {file.name}" for file in path.iterdir() if file.name != sharded.SUMS]
    (path / sharded.SUMS).write_text("\n".join(rows) + "\n")
    if name == sharded.REST:
        with pytest.raises(ValueError, match="not loaded"):
            read_checkpoint(path)
    else:
        assert read_checkpoint(path)["tokens_seen"] == 70
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Malicious()))
    assert (tmp_path / "ran").exists(), "the pickle does nothing, so the test shows nothing"


def test_a_copy_that_followed_the_links_can_be_written_again(tmp_path):
    path = tmp_path / "last.ckpt"
    sharded.write(CONTENTS, path)
    path.unlink()
    (tmp_path / "shards-7").rename(path)
    assert read_checkpoint(path)["tokens_seen"] == 70
    sharded.write({**CONTENTS, "tokens_seen": 80}, path)
    assert read_checkpoint(path)["tokens_seen"] == 80 and len(list(tmp_path.iterdir())) == 2

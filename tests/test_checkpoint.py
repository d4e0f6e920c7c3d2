"""Checkpoints: whole or absent, checked before loading, and never run."""

import os
import pickle
import resource
import subprocess
import sys

import pytest
import torch

from gpt_lightning import checkpoint, files
from gpt_lightning.checkpoint import (
    check_same_model,
    gpt_config_from_dict,
    gpt_config_to_dict,
    link_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from gpt_lightning.model.gpt import GPTConfig

CONTENTS = {"state_dict": {"gpt.w": torch.arange(1000.0)}, "tokens_seen": 7}


def test_what_is_written_is_read(tmp_path):
    write_checkpoint(CONTENTS, tmp_path / "a.ckpt")
    found = read_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(found["state_dict"]["gpt.w"], CONTENTS["state_dict"]["gpt.w"]) and found["tokens_seen"] == 7


@pytest.mark.parametrize("damage", ["truncate", "flip", "pad"])
def test_damage_is_found_before_loading(tmp_path, damage):
    path = tmp_path / "a.ckpt"
    write_checkpoint(CONTENTS, path)
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        data = data[:-10]
    elif damage == "pad":
        data += b"\0"
    else:
        data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        read_checkpoint(path)


def test_a_kill_between_digest_and_rename_leaves_the_old_checkpoint_valid(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    write_checkpoint(CONTENTS, path)
    replace = os.replace

    def killed(source, target):
        if str(target).endswith(".ckpt"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint({**CONTENTS, "tokens_seen": 8}, path)
    monkeypatch.undo()
    assert read_checkpoint(path)["tokens_seen"] == 7
    write_checkpoint({**CONTENTS, "tokens_seen": 9}, path)
    assert read_checkpoint(path)["tokens_seen"] == 9
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.ckpt", "a.ckpt.sha256"], "left-overs stay"


@pytest.mark.slow
def test_a_full_disk_names_path_and_bytes_and_keeps_the_old_checkpoint(tmp_path):
    path = tmp_path / "a.ckpt"
    write_checkpoint(CONTENTS, path)
    code = (
        "import resource, signal, sys, torch\n"
        "from gpt_lightning.checkpoint import write_checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    write_checkpoint({'state_dict': {'w': torch.zeros(1_000_000)}}, sys.argv[1])\n"
        "except OSError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert str(path) in result.stdout and "bytes" in result.stdout, result.stdout + result.stderr
    assert read_checkpoint(path)["tokens_seen"] == 7
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


class Malicious:
    def __reduce__(self):
        return (os.system, (f"touch {os.environ['MARKER']}",))


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MARKER", str(tmp_path / "ran"))
    path = tmp_path / "a.ckpt"
    write_checkpoint(CONTENTS, path)
    torch.save({"state_dict": Malicious()}, path)

    checkpoint._write_digests(path, files.sha256(path))  # an attacker can write digests too
    with pytest.raises(ValueError, match="not loaded"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Malicious()))
    assert (tmp_path / "ran").exists(), "the pickle does nothing, so the test shows nothing"


def test_a_link_is_one_file_under_two_names_until_one_is_written_again(tmp_path):
    best, last = tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    write_checkpoint({**CONTENTS, "tokens_seen": 1}, last)
    write_checkpoint(CONTENTS, best)
    for _ in range(2):  # a second time too, when both already are one file
        link_checkpoint(best, last)
        assert best.stat().st_ino == last.stat().st_ino and read_checkpoint(last)["tokens_seen"] == 7
    write_checkpoint({**CONTENTS, "tokens_seen": 8}, last)
    assert (read_checkpoint(best)["tokens_seen"], read_checkpoint(last)["tokens_seen"]) == (7, 8)
    assert len(list(tmp_path.iterdir())) == 4, "two checkpoints, two digests"


def test_a_kill_between_digest_and_link_leaves_the_old_checkpoint_valid(tmp_path, monkeypatch):
    best, last = tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    write_checkpoint({**CONTENTS, "tokens_seen": 1}, last)
    write_checkpoint(CONTENTS, best)
    monkeypatch.setattr(files, "link", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        link_checkpoint(best, last)
    monkeypatch.undo()
    assert read_checkpoint(last)["tokens_seen"] == 1
    link_checkpoint(best, last)
    assert read_checkpoint(last)["tokens_seen"] == 7


def test_where_there_are_no_hard_links_the_checkpoint_is_copied(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refused)
    write_checkpoint(CONTENTS, tmp_path / "best.ckpt")
    link_checkpoint(tmp_path / "best.ckpt", tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt")["tokens_seen"] == 7


def test_a_missing_checkpoint_is_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_the_architecture_survives_the_checkpoint():
    config = GPTConfig(n_layers=2, attention_pattern=("dense", "banded"), band_width=4)
    assert gpt_config_from_dict(gpt_config_to_dict(config)) == config


def test_another_architecture_is_refused_by_name():
    saved = {"gpt_config": gpt_config_to_dict(GPTConfig(n_layers=2))}
    with pytest.raises(ValueError, match=r"n_layers 2 \(here 3\)"):
        check_same_model(saved, GPTConfig(n_layers=3))

"""A block of one's own through the whole house: YAML and flags, fit, resume, generate, export; and nothing imported
that the user has not named."""

import sys

import pytest
import torch
import yaml

import gpt_lightning as gl
from gpt_lightning.checkpoint import read_checkpoint, write_checkpoint
from gpt_lightning.cli import main
from tests.fixtures import arguments, write_text

MINE = """
from pathlib import Path
from gpt_lightning.model.gpt import Block

Path("imported").touch()


class MyBlock(Block):
    def __init__(self, config, scale: float = 1.0, kinds: list[str] | None = None):
        super().__init__(config)
        self.residual_multiplier *= scale


class Other(MyBlock):
    pass
"""
OPTIONS = {"data.corpus": "text.txt", "run_dir": "run", "max_tokens": 512}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with mine.py and a text in it."""
    (tmp_path / "mine.py").write_text(MINE)
    write_text(tmp_path / "text.txt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("mine", None)
    yield tmp_path
    sys.modules.pop("mine", None)


def fit(*more: str, **options) -> list[str]:
    return ["fit", *more, *arguments({**OPTIONS, **options})]


def forget(folder) -> None:
    """As in a new process: the module is no longer imported."""
    sys.modules.pop("mine", None)
    (folder / "imported").unlink(missing_ok=True)


def assert_refused(command: list[str], capfd, *words: str) -> None:
    capfd.readouterr()
    code = main(command)
    error = capfd.readouterr().err
    assert code == 2 and error.count("\n") == 1, error
    for word in words:
        assert word in error, error


def assert_not_imported(folder) -> None:
    assert "mine" not in sys.modules and not (folder / "imported").exists()


@pytest.mark.slow
def test_a_block_of_ones_own_from_yaml_is_trained_resumed_and_generates(folder, capfd):
    (folder / "my.yaml").write_text(
        yaml.safe_dump({"model": {"block": {"class_path": "mine.MyBlock", "init_args": {"scale": 0.5}}}})
    )
    assert main(fit("--config=my.yaml")) == 0
    checkpoint = read_checkpoint("run/checkpoints/last.ckpt")
    assert checkpoint["block"] == {"class_path": "mine.MyBlock", "init_args": {"scale": 0.5, "kinds": None}}
    assert yaml.safe_load((folder / "run" / "config.yaml").read_text())["model"]["block"]["init_args"]["scale"] == 0.5

    forget(folder)
    resume = ["fit", "--config=run/config.yaml", "--if_exists=resume", "--max_tokens=768"]
    assert main(resume) == 0 and read_checkpoint("run/checkpoints/last.ckpt")["tokens_seen"] == 768
    assert_refused([*resume, "--model.block=mine.Other"], capfd, "mine.MyBlock (scale 0.5", "here it is mine.Other")
    assert_refused([*resume, "--model.block.scale=0.25"], capfd, "scale 0.5", "scale 0.25")
    assert_refused([*resume, "--model.block=gpt_lightning.model.gpt.Block"], capfd, "mine.MyBlock", "the built-in one")

    forget(folder)
    generate = ["generate", "--run=run", "--prompt=the ", "--max_new_tokens=4"]
    assert_refused(generate, capfd, "trained with block mine.MyBlock; repeat --model.block mine.MyBlock")
    assert_refused([*generate, "--model.block=mine.Other"], capfd, "mine.MyBlock", "here it is mine.Other")
    assert_refused(["export", "--run=run", "--output=out"], capfd, "has the block mine.MyBlock")
    assert_not_imported(folder)
    capfd.readouterr()
    assert main([*generate, "--model.block", "mine.MyBlock"]) == 0
    assert capfd.readouterr().out.startswith("the ")
    import mine

    for block in ("mine.MyBlock", mine.MyBlock):
        assert gl.load("run", block=block).gpt.blocks[0].residual_multiplier == 0.5  # as it was trained
    assert main(["validate", "--config=run/config.yaml"]) == 0


@pytest.mark.slow
def test_flags_name_a_block_and_the_weights_are_carried_over(folder, capfd):
    assert main(fit("--model.block=mine.MyBlock", "--model.block.scale=0.5")) == 0
    again = {"run_dir": "again", "model.init_from": "run"}
    assert main(fit("--model.block=mine.MyBlock", "--model.block.scale=0.5", **again)) == 0
    assert_refused(fit(**{**again, "run_dir": "third"}), capfd, "mine.MyBlock", "here it is the built-in one")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.block=mine.MyBlock", "--model.block.scael=1"], ["scael"]),
        (["--model.block=mine.MyBlock", "--model.block.scale=much"], ["scale", "much"]),
        (["--model.block=mine.MyBlok"], ["module 'mine' has no attribute 'MyBlok'"]),
        (["--model.block=nowhere.MyBlock"], ["No module named 'nowhere'"]),
        (["--model.block=mine.Path"], ["to be a subclass of <class 'Module'>"]),
        (["--model.block=broken.MyBlock"], ["broken.py, line 2: NameError: name 'nn' is not defined"]),
        (["--model.loss=broken.MyBlock"], ["broken.py, line 2: NameError: name 'nn' is not defined"]),
    ],
    ids=str,
)
def test_a_mistake_in_the_block_is_one_line(flags, words, folder, capfd):
    (folder / "broken.py").write_text("\nclass MyBlock(nn.Module): ...\n")
    assert_refused(fit(*flags), capfd, *words)
    assert not (folder / "run").exists()


@pytest.mark.slow
def test_a_class_path_in_a_checkpoint_imports_nothing(folder, capfd):
    """What a checkpoint names is text: neither os.system nor a module with consequences is touched."""
    assert main(fit()) == 0
    path = folder / "run" / "checkpoints" / "best.ckpt"
    last = folder / "run" / "checkpoints" / "last.ckpt"
    for class_path, settings in (("mine.MyBlock", {}), ("os.system", {"command": "touch imported"})):
        checkpoint = {**read_checkpoint(path), "block": {"class_path": class_path, "init_args": settings}}
        for file in (path, last):
            file.unlink()
            write_checkpoint(checkpoint, file)
        with pytest.raises(ValueError, match=f"trained with block {class_path}; repeat --model.block {class_path}"):
            gl.load("run")
        for command in (
            ["generate", "--run=run"],
            ["export", "--run=run", "--output=out"],
            ["fit", *arguments({**OPTIONS, "if_exists": "resume", "max_tokens": 1024})],
            ["fit", *arguments({**OPTIONS, "run_dir": "new", "model.init_from": "run"})],
            ["validate", *arguments(OPTIONS)],
        ):
            assert_refused(command, capfd, class_path)
        assert_not_imported(folder)


def test_a_block_that_is_no_path_and_settings_is_refused(folder, capfd):
    write_checkpoint({"state_dict": {}, "gpt_config": {}, "block": ["x"]}, folder / "a.ckpt")
    (folder / "tokenizer.json").write_text("{}")
    assert_refused(["export", "--run=a.ckpt", "--output=out"], capfd, "expected its class_path and init_args")
    assert torch.load(folder / "a.ckpt", weights_only=True)["block"] == ["x"]

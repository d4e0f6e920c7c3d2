"""A state is written once: where the last checkpoint is the best one, it is the same file under a second name."""

import warnings
from pathlib import Path

import pytest

import gpt_lightning as gl
from gpt_lightning import files
from gpt_lightning.checkpoint import read_checkpoint
from tests.fixtures import TINY, write_text

OPTIONS = {**TINY, "data.corpus": "text.txt", "run_dir": "run", "max_tokens": 512, "val_interval_tokens": 128}
BEST, LAST = Path("run/checkpoints/best.ckpt"), Path("run/checkpoints/last.ckpt")


@pytest.fixture(autouse=True)
def n_bytes(tmp_path, monkeypatch) -> list[int]:
    """Sizes of all writes to checkpoints, in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt")
    sizes: list[int] = []
    write = files.HashingFile.write

    def counted(self, data):
        sizes.append(write(self, data))
        return sizes[-1]

    monkeypatch.setattr(files.HashingFile, "write", counted)
    return sizes


def test_four_validations_that_are_each_the_best_write_four_checkpoints(n_bytes):
    gl.run([], OPTIONS)
    assert BEST.stat().st_ino == LAST.stat().st_ino
    assert 4 <= sum(n_bytes) / BEST.stat().st_size < 4.5, "each state is written once, and little beside it"
    for path in (BEST, LAST):
        assert read_checkpoint(path)["tokens_seen"] == 512  # with a digest of its own


def test_a_validation_that_is_not_the_best_writes_a_last_checkpoint_of_its_own(n_bytes):
    gl.run(
        [], {**OPTIONS, "model.optim.lr": 1e-30}
    )  # the loss stands still: only the first is better than those before
    assert BEST.stat().st_ino != LAST.stat().st_ino
    assert 4 <= sum(n_bytes) / BEST.stat().st_size < 4.5
    assert (read_checkpoint(BEST)["tokens_seen"], read_checkpoint(LAST)["tokens_seen"]) == (128, 512)


@pytest.mark.slow
def test_a_run_goes_on_from_a_linked_checkpoint_and_leaves_the_best_one_whole():
    gl.run([], OPTIONS)
    gl.run(
        [],
        {
            **OPTIONS,
            "max_tokens": 640,
            "if_exists": "resume",
            "model.optim.lr": 1e-30,
            "model.schedule.name": "constant",
        },
    )
    assert read_checkpoint(LAST)["tokens_seen"] == 640
    assert read_checkpoint(BEST)["tokens_seen"] in (512, 640)


def test_a_run_whose_folder_was_moved_still_knows_its_best_checkpoint():
    gl.run([], OPTIONS)
    Path("run").rename("moved")
    worse = {"max_tokens": 640, "if_exists": "resume", "model.optim.lr": 10.0, "model.schedule.name": "constant"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gl.run([], {**OPTIONS, **worse, "run_dir": "moved"})
    folder = Path("moved/checkpoints")
    assert read_checkpoint(folder / "last.ckpt")["tokens_seen"] == 640
    assert read_checkpoint(folder / "best.ckpt")["tokens_seen"] == 512

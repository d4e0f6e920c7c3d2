"""No step is cut short when a run goes on with another number of micro-steps per step, also while the batch grows."""

import pytest

import gpt_lightning as gl
from gpt_lightning.callbacks.steps import begins_step, ends_step, micro_steps_done
from gpt_lightning.report.metrics_csv import read_metrics
from tests.fixtures import TINY, write_text


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt")
    return tmp_path


class Run:
    """What the functions read of a Trainer."""

    accumulate_grad_batches = 4


def test_where_a_step_begins_and_ends_by_hand():
    assert [i for i in range(12) if begins_step(Run, i)] == [0, 4, 8]
    assert [i for i in range(12) if ends_step(Run, i)] == [3, 7, 11]


def test_micro_steps_after_some_tokens_by_hand():
    for tokens, micro_step, batch, ramp, done in [
        (3072, 128, 1024, False, 24),
        (3072, 256, 1024, False, 12),
        (3072, 128, 2048, False, 32),  # a larger batch: the nearest whole one
        (96, 32, 256, True, 3),
        (96, 64, 256, True, 1),  # a micro-step and a half: the ramp goes on from any
    ]:
        assert micro_steps_done(tokens, micro_step, batch, ramp) == done


def rows(column: str, run: str = "run") -> list[int]:
    """Tokens at which metrics.csv has a value."""
    table = read_metrics(run)
    return list(table["tokens"][table[column].notna()])


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch_size", [4, 16, 32])
def test_a_run_goes_on_with_another_micro_batch_after_an_odd_number_of_steps(micro_batch_size):
    options = {**TINY, "data.corpus": "text.txt", "data.context_length": 32, "data.batch_tokens": 1024}
    options |= {"data.micro_batch_size": 8, "val_interval_tokens": 2048, "model.gpt.dropout": 0.0}
    options["model.schedule.name"] = "constant"
    gl.run([], {**options, "run_dir": "run", "max_tokens": 3072})
    again = {**options, "if_exists": "resume", "data.micro_batch_size": micro_batch_size}
    gl.run([], {**again, "run_dir": "run", "max_tokens": 6144})
    gl.run([], {**options, "run_dir": "whole", "max_tokens": 6144})
    assert rows("train/loss") == [1024, 2048, 3072, 4096, 5120, 6144]
    assert rows("val/loss") == [2048, 3072, 4096, 6144]
    moved, whole = read_metrics("run"), read_metrics("whole")
    for column in ("train/loss", "train/grad_norm", "train/lr"):
        assert list(moved[column].dropna()) == pytest.approx(list(whole[column].dropna()), rel=1e-5), column


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", [96, 320, 768])
def test_a_run_goes_on_with_another_micro_batch_while_the_batch_grows(max_tokens):
    """Micro-steps of 32 tokens, then of 16; the batch is 32, 64, 128, 256 tokens as in tests of the ramp."""
    options = {**TINY, "data.corpus": "text.txt", "data.batch_tokens": 256, "model.gpt.dropout": 0.0}
    options |= {"batch_ramp.start_batch_tokens": 32, "batch_ramp.ramp_tokens": 1024, "val_interval_tokens": 512}
    options["model.schedule.name"] = "constant"
    gl.run([], {**options, "run_dir": "run", "max_tokens": max_tokens})
    again = {**options, "if_exists": "resume", "data.micro_batch_size": 1}
    gl.run([], {**again, "run_dir": "run", "max_tokens": 1536})
    gl.run([], {**options, "run_dir": "whole", "max_tokens": 1536})
    assert rows("train/loss") == rows("train/loss", "whole")
    assert {*rows("val/loss")} == {*rows("val/loss", "whole"), max_tokens}
    moved, whole = read_metrics("run"), read_metrics("whole")
    for column in ("train/loss", "train/grad_norm", "train/lr"):
        assert list(moved[column].dropna()) == pytest.approx(list(whole[column].dropna()), rel=1e-5), column

"""A run ends by its tokens: with a whole step, one last validation, and no step more when it is started again."""

import pytest
from lightning.pytorch.tuner import Tuner

import gpt_lightning as gl
from gpt_lightning.report.metrics_csv import read_metrics
from tests.fixtures import TINY, build

pytestmark = pytest.mark.usefixtures("folder")


def test_it_ends_with_the_step_in_which_the_horizon_lies():
    result = gl.run([], {**TINY, "data.corpus": "text.txt", "run_dir": "run", "max_tokens": 90})
    assert (result["tokens"], result["step"]) == (128, 2)  # steps of 64; the third of four micro-steps passes 90
    table = read_metrics("run")
    assert list(table["tokens"][table["val/loss"].notna()]) == [128]
    assert list(table["tokens"][table["train/loss"].notna()]) == [64, 128]


def test_the_last_step_is_logged_whatever_the_interval():
    gl.run([], {**TINY, "data.corpus": "text.txt", "run_dir": "run", "max_tokens": 320, "trainer.log_every_n_steps": 3})
    table = read_metrics("run")
    assert list(table["step"][table["train/loss"].notna()]) == [3, 5]


def test_a_finished_run_is_not_trained_further():
    options = {"data.corpus": "text.txt", "run_dir": "run", "max_tokens": 128}
    gl.run([], {**TINY, **options})
    again = build({**options, "if_exists": "resume"})
    again.trainer.fit(again.module, again.data, ckpt_path="run/checkpoints/last.ckpt", weights_only=True)
    assert (again.module.tokens_seen, again.trainer.global_step) == (128, 2)


@pytest.mark.slow
@pytest.mark.parametrize("ramp_tokens", [0, 512])
def test_lightnings_own_learning_rate_finder_runs_and_leaves_the_run_as_it_was(ramp_tokens):
    ramp = {"batch_ramp.ramp_tokens": ramp_tokens, "batch_ramp.start_batch_tokens": 32}
    built = build({"data.corpus": "text.txt", "run_dir": "run", **ramp})
    finder = Tuner(built.trainer).lr_find(
        built.module, datamodule=built.data, num_training=12, early_stop_threshold=None, update_attr=False
    )
    assert len(finder.results["lr"]) == 12
    assert built.module.tokens_seen == 0 and built.trainer.accumulate_grad_batches == 2

"""Every config runs: laid under configs/debug.yaml, on a small text, for its two steps."""

import os
import re
import time
from pathlib import Path

import pytest
import yaml

import gpt_lightning as gl
from gpt_lightning.data.batches import micro_step_tokens
from gpt_lightning.model.config import GPTConfig
from gpt_lightning.model.gpt3 import GPT3_ROWS
from gpt_lightning.tune.compare import costs
from tests.fixtures import write_text
from tests.run.test_distributed import STRATEGIES

CONFIGS = Path(__file__).parents[1] / "configs"
ALL = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))
ELSEWHERE = ("trainer", "task", "sweep")  # several processes; tuning verbs
QUICK = (Path("debug.yaml"), Path("quickstart.yaml"))
SINGLE = [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in ALL if n.parts[0] not in ELSEWHERE]
SMALL = {"data.corpus": "text.txt", "data.prepare.tokenizer": "bytes", "trainer.accelerator": "cpu"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    write_text(tmp_path / "text.txt")
    return tmp_path


@pytest.mark.parametrize("name", SINGLE, ids=str)
def test_runs_a_step_and_the_run_runs_again_from_its_config(folder, name):
    result = gl.run([CONFIGS / name, CONFIGS / "debug.yaml"], SMALL)
    assert result["step"] == 2 and result["tokens"] == 512
    found = {path.name for path in (folder / "runs" / "debug").iterdir()} - {".lock"}
    assert found == {"config.yaml", "metrics.csv", "samples.txt", "summary.json", "tokenizer.json", "checkpoints"}
    again = gl.run([folder / "runs" / "debug" / "config.yaml"], {"run_dir": "again", "trainer.logger": False})
    assert again["val/loss"] == result["val/loss"]


def test_those_for_several_processes_are_run_by_test_distributed():
    run_there = {strategy["config"].relative_to(CONFIGS) for strategy in STRATEGIES.values() if "config" in strategy}
    assert run_there == {name for name in ALL if name.parts[0] == "trainer"}


def test_the_quickstart_has_the_modern_structure():
    quickstart, modern = (
        yaml.safe_load((CONFIGS / name).read_text()) for name in ("quickstart.yaml", "model/modern-4x192.yaml")
    )
    assert quickstart["model"]["gpt"] == modern["model"]["gpt"]


def test_the_ablation_starts_from_gpt3_in_all_that_modern_changes():
    ablation, modern = (
        yaml.safe_load((CONFIGS / name).read_text())["model"]["gpt"]
        for name in ("task/ablation.yaml", "model/modern-4x192.yaml")
    )
    changed = set(modern) - {"n_layers", "n_heads", "d_model"}
    assert ablation == {name: getattr(GPTConfig(), name) for name in changed}


@pytest.mark.slow
def test_every_arm_of_the_ablation_trains_and_changes_something(folder, monkeypatch):
    """An arm whose runs equal the baseline's would be an option that does nothing. Its steps are not timed here."""
    monkeypatch.setattr(costs, "measure", lambda stack: costs.Cost(1e-6, None, 1, 1.0))
    configs = [CONFIGS / "quickstart.yaml", CONFIGS / "task" / "ablation.yaml", CONFIGS / "debug.yaml"]
    modern = yaml.safe_load((CONFIGS / "model" / "modern-4x192.yaml").read_text())["model"]["gpt"]
    arms = yaml.safe_load((CONFIGS / "task" / "ablation.yaml").read_text())["tune"]["arms"]
    small = {key: value for key, value in modern.items() if key not in ("n_layers", "n_heads", "d_model")}
    arms["modern"] = {"model": {"gpt": small}}
    arms["modern_lr_ratios"][0] = arms["modern"]
    arms["banded"]["model"]["gpt"]["band_width"] = 8  # the context is 64
    arms["z_loss"]["model"]["loss"]["init_args"]["z_loss"] = 0.1  # two steps do not show less in float32
    options = {**SMALL, "tune.arms": arms, "tune.seeds": 1, "tune.val_tokens": 512, "tune.dir": "ablation"}
    result = gl.run(configs, options | {"model.gpt.init_std": 0.2}, verb="tune compare")
    equal = [name for name, found in result["comparisons"].items() if not any(found["differences"])]
    assert len(result["comparisons"]) == len(arms) and equal == []


def test_wandb_works_offline_and_shows_config_curves_samples_and_group(folder):
    where = {"trainer.logger.init_args.save_dir": str(folder / "runs")}  # wandb keeps to its first working directory
    options = {**SMALL, **where, "trainer.logger.init_args.group": "a-group"}
    gl.run([CONFIGS / "quickstart.yaml", CONFIGS / "logger" / "wandb.yaml", CONFIGS / "debug.yaml"], options)
    (path,) = (folder / "runs" / "wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60  # W&B's own process may still be writing when the run has ended
    while b"val/bits_per_byte" not in (data := path.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    for word in (b"a-group", b"d_model", b"val/bits_per_byte", b"train/loss", b"sample"):
        assert word in data, word


@pytest.mark.slow
def test_tensorboard_has_curves_over_tokens_and_samples(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    gl.run([CONFIGS / "quickstart.yaml", CONFIGS / "logger" / "tensorboard.yaml", CONFIGS / "debug.yaml"], SMALL)
    (folder_of_run,) = (folder / "runs" / "tensorboard").iterdir()
    events = EventAccumulator(str(folder_of_run)).Reload()
    assert [event.step for event in events.Scalars("val/loss")] == [256, 512]
    assert "sample/text_summary" in events.Tags()["tensors"]


@pytest.mark.parametrize("row", GPT3_ROWS, ids=lambda row: row.name)
def test_gpt3_configs_have_the_papers_numbers(row):
    text = (CONFIGS / "model" / f"gpt3-{row.name}.yaml").read_text()
    config = yaml.safe_load(text)
    data = config["data"]
    assert config["model"]["optim"]["lr"] == row.lr
    assert data["batch_tokens"] == pytest.approx(row.batch_tokens, rel=0.05)
    (printed,) = re.findall(r"([\d.]+) PF-days", text)
    assert float(printed) == row.petaflop_days
    unit = micro_step_tokens(data["micro_batch_size"], data["context_length"], 8)
    assert data["batch_tokens"] % unit == 0, "does not divide over 8 devices"


@pytest.mark.parametrize("name", ALL, ids=str)
def test_the_header_says_what_it_is_for(name):
    first = (CONFIGS / name).read_text().splitlines()[0]
    assert first.startswith("# ") and os.linesep not in first and len(first) > 40

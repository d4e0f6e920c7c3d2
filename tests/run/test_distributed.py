"""Two processes (gloo, CPU) are one: same samples per step, same loss, and checkpoints that move between them."""

import csv
from pathlib import Path

import pytest

from tests.fixtures import fit_in_process, write_text

OPTIONS = {"data.corpus": "text.txt", "model.gpt.dropout": 0.0, "max_tokens": 512, "data.batch_tokens": 128}
STRATEGIES = {
    "one": {},
    "ddp": {"trainer.strategy": "ddp", "trainer.devices": 2},
    "fsdp2": {
        "trainer.strategy": '{"class_path": "lightning.pytorch.strategies.ModelParallelStrategy", "init_args": '
        '{"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": false}}',
        "trainer.devices": 2,
    },
}


def fit(folder: Path, strategy: str, **options) -> dict[str, list[float]]:
    """Train in `folder`; the columns of metrics.csv, by name."""
    result = fit_in_process(folder, {**OPTIONS, **STRATEGIES[strategy], "run_dir": "run", **options})
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Warning" not in result.stderr, result.stderr
    with (folder / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, tuple[Path, dict[str, list[float]]]]:
    found = {}
    for strategy in STRATEGIES:
        folder = tmp_path_factory.mktemp(strategy)
        write_text(folder / "text.txt")
        found[strategy] = folder, fit(folder, strategy)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_see_the_losses_of_one(runs, strategy):
    one, two = runs["one"][1], runs[strategy][1]
    for name in ("train/loss", "train/bits_per_byte", "train/grad_norm", "val/loss", "val/bits_per_byte"):
        assert two[name] == pytest.approx(one[name], rel=1e-5), name
    assert two["train/lr"] == one["train/lr"] and two["tokens"] == one["tokens"]
    assert len(one["train/loss"]) == 4 and one["train/loss"][-1] < one["train/loss"][0]


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), [("ddp", "one"), ("fsdp2", "one"), ("one", "fsdp2"), ("fsdp2", "ddp")])
def test_a_checkpoint_of_one_strategy_goes_on_under_another(runs, tmp_path, source, target):
    import shutil

    reference = tmp_path / "reference"
    moved = tmp_path / "moved"
    for folder, origin in ((reference, "one"), (moved, source)):
        shutil.copytree(runs[origin][0], folder)
    longer = {"max_tokens": 768, "if_exists": "resume", "model.schedule.name": "constant"}
    expected, found = fit(reference, "one", **longer), fit(moved, target, **longer)
    assert found["step"] == expected["step"]
    assert found["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-5)
    assert found["val/loss"] == pytest.approx(expected["val/loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "block"), [("ddp", "Block"), ("fsdp2", "Block"), ("fsdp2", "GroupedBlock"), ("fsdp2", "GatedBlock")]
)
def test_muon_and_mup_see_the_losses_of_one_process_on_two(tmp_path, strategy, block):
    """Muon gathers a sharded matrix before its parts are made orthogonal; muP weighs the clipped norm by role."""
    options = {"model.optim.name": "muon", "model.gpt.parametrization": "mup", "model.gpt.base_d_model": 8}
    options |= {"model.block": f"tests.blocks.{block}"}
    found = {}
    for name in ("one", strategy):
        folder = tmp_path / name
        folder.mkdir()
        write_text(folder / "text.txt")
        found[name] = fit(folder, name, **options)
    for column in ("train/loss", "train/grad_norm", "val/loss"):
        assert found[strategy][column] == pytest.approx(found["one"][column], rel=1e-5), column
    assert found["one"]["train/loss"][-1] < found["one"]["train/loss"][0]

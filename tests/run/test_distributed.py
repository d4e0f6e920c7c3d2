"""Two processes (gloo, CPU) are one: same samples per step, same loss, and checkpoints that move between them."""

import csv
import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_lightning.checkpoint import load_gpt, read_checkpoint
from gpt_lightning.cli import main
from gpt_lightning.run.folder import RunDir
from tests import forked
from tests.fixtures import arguments, assert_equal, error_lines, fit_in_process, write_text

OPTIONS = {"data.corpus": "text.txt", "model.gpt.dropout": 0.0, "max_tokens": 512, "data.batch_tokens": 128}
CONFIGS = Path(__file__).parents[2] / "configs" / "trainer"
FSDP2 = {
    "config": CONFIGS / "fsdp2.yaml",
    "trainer.devices": 2,
    "trainer.strategy.init_args.data_parallel_size": 2,
}
STRATEGIES = {
    "one": {},
    "ddp": {"config": CONFIGS / "ddp.yaml", "trainer.devices": 2},
    "fsdp2": FSDP2,
    "sharded": {**FSDP2, "trainer.strategy.init_args.save_distributed_checkpoint": "true"},
}


def fit(folder: Path, strategy: str, **options) -> dict[str, list[float]]:
    """Train in `folder`; the columns of metrics.csv, by name."""
    result = fit_in_process(folder, {**OPTIONS, **STRATEGIES[strategy], "run_dir": "run", **options})
    assert result.returncode == 0, result.stdout + result.stderr
    strange = [line for line in error_lines(result.stderr) if " val loss " not in line]
    assert not strange, strange  # neither warnings nor advice
    with (folder / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}
    return {**columns, "train/tokens": [float(row["tokens"]) for row in rows if row["train/loss"]]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Callable[[str], tuple[Path, dict[str, list[float]]]]:
    """Folder and metrics of a run under a strategy, made when it is first asked for."""

    @functools.cache
    def run(strategy: str) -> tuple[Path, dict[str, list[float]]]:
        folder = tmp_path_factory.mktemp(strategy)
        write_text(folder / "text.txt")
        return folder, fit(folder, strategy)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_see_the_losses_of_one(runs, strategy):
    one, two = runs("one")[1], runs(strategy)[1]
    for name in ("train/loss", "train/bits_per_byte", "train/grad_norm", "val/loss", "val/bits_per_byte"):
        assert two[name] == pytest.approx(one[name], rel=1e-5), name
    assert two["train/lr"] == one["train/lr"] and two["tokens"] == one["tokens"]
    assert len(one["train/loss"]) == 4 and one["train/loss"][-1] < one["train/loss"][0]


LONGER = {"max_tokens": 768, "if_exists": "resume", "model.schedule.name": "constant"}


@pytest.fixture(scope="module")
def unmoved(runs, tmp_path_factory) -> dict[str, list[float]]:
    """One process, going on as one process."""
    folder = tmp_path_factory.mktemp("unmoved") / "copy"
    shutil.copytree(runs("one")[0], folder, symlinks=True)
    return fit(folder, "one", **LONGER)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "target"),
    [("ddp", "one"), ("fsdp2", "one"), ("one", "fsdp2"), ("fsdp2", "ddp")]
    + [("sharded", "one"), ("one", "sharded"), ("sharded", "sharded")],
)
def test_a_checkpoint_of_one_strategy_goes_on_under_another(runs, unmoved, tmp_path, source, target):
    shutil.copytree(runs(source)[0], tmp_path / "moved", symlinks=True)
    expected, found = unmoved, fit(tmp_path / "moved", target, **LONGER)
    assert found["step"] == expected["step"]
    assert found["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-5)
    assert found["val/loss"] == pytest.approx(expected["val/loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "legs", "steps"),
    [
        # the batch is 4 micro-steps of one process, 2 of two; the legs end after 3, 4, 7 and 9 steps
        ({}, (384, 512, 896, 1152), [128] * 9),
        # micro-steps of 64 tokens on two processes, 4 in a full batch; 1 + 3 tokens / 512 of them in a step
        (
            {"data.batch_tokens": 256, "batch_ramp.start_batch_tokens": 64, "batch_ramp.ramp_tokens": 512},
            (64, 256, 768, 1024),
            [64, 64, 64, 64, 128, 128, 256, 256],
        ),
    ],
    ids=["constant", "ramp"],
)
def test_a_run_that_moves_between_strategies_is_the_run_that_does_not(tmp_path, options, legs, steps):
    warmup = {"model.schedule.name": "constant", "model.schedule.warmup_tokens": 2000}  # lr tells the tokens
    options = {**options, **warmup, "val_interval_tokens": 512}
    for name in ("moved", "whole"):
        (tmp_path / name).mkdir()
        write_text(tmp_path / name / "text.txt")
    expected = fit(tmp_path / "whole", "one", **options, max_tokens=legs[-1])
    for strategy, max_tokens in zip(("fsdp2", "ddp", "sharded", "one"), legs, strict=True):
        found = fit(tmp_path / "moved", strategy, **options, max_tokens=max_tokens, if_exists="resume")
    assert found["train/tokens"] == expected["train/tokens"] == [sum(steps[: i + 1]) for i in range(len(steps))]
    for column in ("train/loss", "train/bits_per_byte", "train/grad_norm", "train/lr"):
        assert found[column] == pytest.approx(expected[column], rel=1e-5), column
    assert found["val/loss"][-1] == pytest.approx(expected["val/loss"][-1], rel=1e-5)


@pytest.mark.slow
def test_shards_put_together_are_the_gathered_checkpoint_bit_for_bit(runs):
    folders = {strategy: runs(strategy)[0] / "run" for strategy in ("sharded", "fsdp2")}
    names = [path.name for path in (folders["sharded"] / "checkpoints" / "best.ckpt").resolve().iterdir()]
    assert sorted(name.split("-")[0] for name in names) == ["SHA256SUMS", "rest.pt", "shard", "shard"]
    found, expected = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in folders.values())
    assert found.keys() == expected.keys()
    assert_equal(found["state_dict"], expected["state_dict"])
    moments = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (found, expected)]
    assert moments[0].keys() == moments[1].keys() and len(moments[0]) == len(found["state_dict"])
    for number, values in moments[1].items():
        assert_equal({key: moments[0][number][key] for key in values}, values)
    assert_equal(*(dict(load_gpt(folder).state_dict()) for folder in folders.values()))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["fsdp2", "sharded"])
def test_a_new_run_under_fsdp2_starts_from_the_weights_of_another(runs, tmp_path, source):
    source_folder, source_columns = runs(source)
    found = {}
    for strategy in ("one", "fsdp2"):
        (tmp_path / strategy).mkdir()
        write_text(tmp_path / strategy / "text.txt")
        found[strategy] = fit(tmp_path / strategy, strategy, **{"model.init_from": source_folder / "run"})
    for column in ("train/loss", "train/grad_norm", "val/loss"):
        assert found["fsdp2"][column] == pytest.approx(found["one"][column], rel=1e-5), column
    assert found["fsdp2"]["train/loss"][0] < source_columns["train/loss"][-1], "it starts where the other ended"


@pytest.mark.slow
def test_every_verb_reads_a_run_in_shards_on_one_process_or_two(runs, tmp_path, capfd):
    """The gathered run has the same weights; on two processes no sequence is scored twice or left out."""
    folder, gathered = runs("sharded")[0], runs("fsdp2")[0]
    written: dict[str, dict] = {strategy: {} for strategy in ("one", "sharded")}
    for strategy, outputs in written.items():
        options = {**OPTIONS, **STRATEGIES[strategy], "run_dir": "run"}
        for verb in ("validate", "test", "predict"):
            done = forked.run([verb, *arguments(options)], folder, options.get("trainer.devices", 1))
            assert done.returncode == 0 and error_lines(done.stderr) == [], done.stderr
            outputs[verb] = done.stdout
        rows = (folder / "run" / "predictions.csv").read_text().splitlines()[1:]
        outputs["losses"] = [float(row.split(",")[1]) for row in rows]
    assert "val/loss" in written["one"]["validate"] and len(written["one"]["losses"]) > 8
    one, two = (outputs.pop("losses") for outputs in written.values())
    assert two == pytest.approx(one, rel=1e-5) and written["sharded"] == written["one"]
    outputs = []
    for path in (folder / "run", gathered / "run"):
        assert main(["generate", f"--run={path}", "--prompt=the ", "--max_new_tokens=8"]) == 0
        outputs.append(capfd.readouterr().out)
        assert main(["export", f"--run={path}", f"--output={tmp_path / path.parent.name}"]) == 0
        capfd.readouterr()
        outputs.append((tmp_path / path.parent.name / "model.safetensors").read_bytes())
    assert outputs[:2] == outputs[2:]


@pytest.mark.slow
def test_a_damaged_shard_is_named_and_its_checkpoint_passed_over(runs, tmp_path):
    shutil.copytree(runs("sharded")[0] / "run", tmp_path / "run", symlinks=True)
    checkpoints = tmp_path / "run" / "checkpoints"
    last = checkpoints / "last.ckpt"
    shutil.copytree(last.resolve(), checkpoints / "shards-9")
    last.unlink()
    last.symlink_to("shards-9")  # the newest one, and no longer the same as the best one
    shard = next(last.glob("shard-00002-*"))
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    with pytest.warns(UserWarning, match=rf"last\.ckpt is damaged: {shard.name}: sha256"):
        assert RunDir(tmp_path / "run").resume_checkpoint() == checkpoints / "best.ckpt"


MODERN = {"positions": "rotary", "norm": "rms", "norm_place": "both", "qk_norm": True, "mlp": "swiglu"}
MODERN |= {"n_kv_heads": 1, "parallel": True, "logit_softcap": 3.0, "zero_init": True, "value_residual": True}
MODELS = {name: {"model.block": f"tests.blocks.{name}"} for name in ("Block", "GroupedBlock", "GatedBlock")}
MODELS["modern"] = {f"model.gpt.{name}": value for name, value in MODERN.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "model"),
    [*(("ddp", name) for name in ("Block", "modern")), *(("fsdp2", name) for name in MODELS)],
)
def test_muon_and_mup_see_the_losses_of_one_process_on_two(tmp_path, strategy, model):
    """Muon gathers a sharded matrix before its parts are made orthogonal; muP weighs the clipped norm by role."""
    options = {"model.optim.name": "muon", "model.gpt.parametrization": "mup", "model.gpt.base_d_model": 8}
    options |= MODELS[model]
    found = {}
    for name in ("one", strategy):
        folder = tmp_path / name
        folder.mkdir()
        write_text(folder / "text.txt")
        found[name] = fit(folder, name, **options)
    for column in ("train/loss", "train/grad_norm", "val/loss"):
        assert found[strategy][column] == pytest.approx(found["one"][column], rel=1e-5), column
    assert found["one"]["train/loss"][-1] < found["one"]["train/loss"][0]

"""The verb `tune batch`: knee, choice and branches against hand calculations, and a whole call on a tiny stack."""

import json
import math

import pytest
import yaml

import gpt_lightning as gl
from gpt_lightning.cli import main
from gpt_lightning.tune.batch.branches import compare_branches, trunk_tokens
from gpt_lightning.tune.batch.choice import choose_batch
from gpt_lightning.tune.batch.micro_batch import MicroBatch, knee, measure_micro_batches
from tests.fixtures import TINY, arguments


def size(n: int, seconds: float, update: float = 0.0, peak: int = 10**9) -> MicroBatch:
    return MicroBatch(n, seconds, update, peak)


def test_the_knee_is_the_smallest_size_within_3_percent_of_the_best_throughput():
    assert knee([size(1, 1.0), size(2, 1.2), size(4, 2.0), size(8, 3.9), size(16, 7.9)]).micro_batch_size == 4
    assert knee([size(1, 1.0), size(2, 1.2), size(4, 2.0), size(8, 3.8)]).micro_batch_size == 8


def test_sizes_go_up_until_the_gpu_is_full_or_the_cpu_gains_nothing_or_memory_would_end():
    fits = measure_micro_batches(lambda n: size(n, n) if n <= 8 else None, limit=None)
    assert [one.micro_batch_size for one in fits] == [1, 2, 4, 8]
    flat = measure_micro_batches(lambda n: size(n, max(n / 4, 1.0)), limit=10**12)
    assert [one.micro_batch_size for one in flat] == [1, 2, 4, 8, 16]
    full = measure_micro_batches(lambda n: size(n, 1.0, peak=n * 10**9), limit=10 * 10**9)
    assert [one.micro_batch_size for one in full] == [1, 2, 4, 8]
    with pytest.raises(ValueError, match="not even a micro-batch of one"):
        measure_micro_batches(lambda n: None)


def test_the_choice_has_the_least_time_to_the_same_loss():
    """By hand: (1 + B / 1000) x seconds per token; a step takes 1 s per 100 tokens and 2 s for its update."""
    now, best = choose_batch([size(1, 1.0, update=2.0)], 1000.0, 100, devices=1, batch_tokens=800)
    times = {n: (n + 2) / (100 * n) * (1 + n / 10) for n in (2, 4, 8, 16, 32)}
    assert best.batch_tokens == 400 and min(times, key=lambda n: times[n]) == 4
    assert now.batch_tokens == 800 and now.relative_time == pytest.approx(times[8] / times[4])
    assert (best.relative_time, best.accumulation) == (1.0, 4)


def test_without_an_update_to_pay_for_the_smallest_batch_near_the_present_one_is_best():
    _, best = choose_batch([size(1, 1.0), size(2, 2.0)], 1000.0, 100, devices=1, batch_tokens=800)
    assert best.batch_tokens == 200
    _, unlimited = choose_batch([size(1, 1.0, 0.1)], math.inf, 100, devices=2, batch_tokens=800)
    assert unlimited.batch_tokens == 3200, "with no noise the largest batch costs nothing"


def test_branches_compare_pairwise_and_recover_within_their_scatter():
    losses = {1: [5.0, 4.0, 3.0, 2.9, 2.8, 2.7, 2.6, 2.5, 2.4]}
    losses[2] = [loss + 0.005 for loss in losses[1]]
    losses[4] = [loss + 0.03 * (-1) ** i for i, loss in enumerate(losses[1])]
    losses[8] = [loss + 0.2 for loss in losses[1]]
    losses[16] = [5.0, math.nan]  # it diverged
    found = {branch.factor: branch for branch in compare_branches(losses)}
    assert {factor: branch.recovers for factor, branch in found.items()} == {
        1: True,
        2: True,
        4: None,
        8: False,
        16: False,
    }
    with pytest.raises(ValueError, match="run itself diverges"):
        compare_branches({1: [5.0, math.inf], 2: [5.0, 4.0]})
    assert found[8].difference == pytest.approx(0.2) and found[8].standard_error < 1e-9
    assert trunk_tokens(1000, 100) == 1600 and trunk_tokens(1600, 100) == 1600


def tune(*options: str) -> int:
    size = {"model.gpt.n_layers": 1, "max_tokens": 100_000, "data.batch_tokens": 64}
    flags = arguments({"data.corpus": "text.txt", **size})
    return main(["tune", "batch", *flags, "--tune.tokens=9216", *options])


@pytest.mark.slow
def test_the_verb_writes_its_folder_resumes_and_its_overlay_is_accepted_by_fit(folder, capsys, monkeypatch):
    monkeypatch.setattr("gpt_lightning.tune.batch.micro_batch.LARGEST", 4)
    assert tune("--tune.branches=true") == 0
    printed = capsys.readouterr()
    assert "arning" not in printed.err and "weights_only" not in printed.err, printed.err
    assert printed.out.strip().splitlines()[-1].startswith("recommendation: batch_tokens ")
    result = json.loads((folder / "runs" / "batch" / "result.json").read_text())
    assert len(result["branches"]) == 4 and result["branches"][0]["difference"] == 0
    assert all(len(branch["losses"]) == 18 for branch in result["branches"])
    starts = [branch["losses"][0] for branch in result["branches"]]
    assert starts == pytest.approx([starts[0]] * 4), "they leave the same point"
    ratio = result["batch_tokens"] / 64
    assert result["lr"] == pytest.approx(0.01 * math.sqrt(ratio), rel=0.01)
    assert result["betas"] == pytest.approx([0.9, 0.95**ratio], abs=1e-6)
    assert result["weight_decay"] == pytest.approx(0.1 * math.sqrt(ratio), rel=1e-5)
    low, high = result["critical_batch_tokens_90"]
    assert low <= result["critical_batch_tokens"] <= high

    journal = (folder / "runs" / "batch" / "measured.jsonl").read_text()
    assert tune("--tune.branches=true") == 0
    assert (folder / "runs" / "batch" / "measured.jsonl").read_text() == journal, "measured again"

    flags = {**TINY, "data.corpus": "text.txt", "max_tokens": 256, "run_dir": "run"}
    for key in ("model.optim.lr", "data.batch_tokens", "data.micro_batch_size"):
        del flags[key]
    gl.run(["runs/batch/tuned.yaml"], flags)
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert config["data"]["batch_tokens"] == result["batch_tokens"]
    assert config["model"]["optim"]["betas"] == result["betas"]


def test_too_few_steps_are_one_line(folder, capsys):
    assert main(["tune", "batch", *arguments({"data.corpus": "text.txt"}), "--tune.tokens=0"]) == 2
    assert "tokens 0" in capsys.readouterr().err

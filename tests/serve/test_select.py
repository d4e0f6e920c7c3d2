"""`report select`: the best of runs, by a score of its own, and what its folder says and does."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import gpt_lightning as gl
from gpt_lightning.checkpoint import read_checkpoint
from gpt_lightning.cli import main
from gpt_lightning.run import fit
from tests.fixtures import TINY, run_in

OPTIONS = {**TINY, "data.corpus": "texts", "data.prepare.val_fraction": 0.3, "data.prepare.test_fraction": 0.3}
LRS = {"slow": 1e-4, "good": 1e-2, "middle": 2e-3}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs of three learning rates, on a folder of texts so that each split has some."""
    folder = tmp_path_factory.mktemp("select")
    (folder / "texts").mkdir()
    for i in range(12):
        words = [f"{'abcdefgh'[(i * j + j // 7) % 8]}{j * i % 13}" for j in range(400)]
        (folder / "texts" / f"{i}.txt").write_text(" ".join(words))
    for name, lr in LRS.items():
        own = {"run_dir": f"runs/{name}", "model.optim.lr": lr, "trainer.limit_val_batches": 2}
        run_in(folder, {**OPTIONS, **own})
    return folder


@pytest.fixture
def runs(made, tmp_path, monkeypatch):
    """A copy of them to work in."""
    shutil.copytree(made, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return Path("runs")


def test_the_best_is_laid_out_and_its_card_has_the_numbers_of_a_fresh_evaluation(runs, capsys):
    assert main(["report", "select", "runs", "--output", "best"]) == 0
    printed = capsys.readouterr()
    assert "arning:" not in printed.err and printed.out.startswith("runs/")
    selected = json.loads(Path("best/selected.json").read_text())
    assert selected["run"] == "runs/good" and selected["split"] == "test" and selected["n_candidates"] == 3
    assert [Path(one["run"]).name for one in selected["finalists"]] == ["good", "middle", "slow"]

    card = Path("best/README.md").read_text()
    fresh = fit.run(["--config=best/config.yaml"], "test")
    for name in ("test/loss", "test/bits_per_byte"):
        assert selected["scores"][name] == pytest.approx(fresh[name], rel=1e-6)
        (shown,) = re.findall(rf"^\| {name} \| ([\d.]+) \|$", card, flags=re.MULTILINE)
        assert float(shown) == pytest.approx(fresh[name], abs=1e-6)
    for words in ("3 runs that kept a checkpoint, of 3", "1,024 tokens", "lr 0.01", 'gl.load("best")', "AutoModel"):
        assert words in card, words

    prompt = {"max_new_tokens": 8, "temperature": 0}
    assert gl.load("best").generate("a1 ", **prompt) == gl.load("runs/good").generate("a1 ", **prompt)
    assert gl.load("best/huggingface").generate("a1 ", **prompt) == gl.load("runs/good").generate("a1 ", **prompt)
    weights, whole = (read_checkpoint(Path(name, "checkpoints/best.ckpt")) for name in ("best", "runs/good"))
    assert "optimizer_states" not in weights and whole["optimizer_states"]
    assert all(torch.equal(value, whole["state_dict"][key]) for key, value in weights["state_dict"].items())


def test_what_a_run_says_of_itself_does_not_decide(runs):
    metrics = runs / "slow" / "metrics.csv"
    header, *rows = metrics.read_text().splitlines()
    place = header.split(",").index("val/bits_per_byte")
    cells = [row.split(",") for row in rows]
    for row in cells:
        row[place] = row[place] and "0.5"
    metrics.write_text("\n".join([header, *(",".join(row) for row in cells)]) + "\n")
    assert main(["report", "select", "runs", "--output", "best"]) == 0
    selected = json.loads(Path("best/selected.json").read_text())
    assert selected["run"] == "runs/good"
    assert {one["run"]: one["recorded"] for one in selected["finalists"]}["runs/slow"] == 0.5


def test_runs_without_a_checkpoint_are_left_out_and_it_is_said(runs, capsys):
    shutil.rmtree(runs / "good" / "checkpoints")
    assert main(["report", "select", "runs", "--output", "best", "--metric", "val/loss"]) == 0
    assert "1 of 3 runs kept no checkpoint or have no val/loss" in capsys.readouterr().out
    assert json.loads(Path("best/selected.json").read_text())["run"] == "runs/middle"


def test_without_a_test_split_the_card_says_what_the_score_is(folder, capsys):
    gl.run([], {**TINY, "data.corpus": "text.txt", "run_dir": "runs/a"})
    assert main(["report", "select", "--output", "best"]) == 0
    assert "no test split" in capsys.readouterr().out
    assert "this is the split that the run was chosen on" in Path("best/README.md").read_text()


def test_nothing_to_choose_from_and_a_folder_that_is_there_are_one_line(runs, capsys, monkeypatch):
    Path("best").mkdir()
    assert main(["report", "select", "runs", "--output", "best"]) == 2
    for name in LRS:
        shutil.rmtree(runs / name / "checkpoints")
    assert main(["report", "select", "runs", "--output", "other"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: best is already there; choose another --output"
    assert lines[-1] == "error: of 3 runs none has both a checkpoint and val/bits_per_byte in its metrics.csv"
    assert not list(Path("best").iterdir()) and not Path("other").exists()
    assert yaml.safe_load((runs / "good" / "config.yaml").read_text())["run_dir"] == "runs/good"


def test_runs_on_different_texts_are_not_compared_however_alike_and_far_behind(folder, monkeypatch, capsys):
    text = (folder / "text.txt").read_text()
    (folder / "other.txt").write_text(text[:-100] + text[-100:].swapcase())
    for name in ("text.txt", "other.txt"):
        gl.run([], {**TINY, "data.corpus": name, "run_dir": f"runs/{name[0]}"})
    monkeypatch.setattr("gpt_lightning.serve.select.N_FINALISTS", 1)
    assert main(["report", "select", "--output", "best"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "have different validation splits, so val/bits_per_byte does not say which is better" in last
    assert not Path("best").exists()


def test_runs_of_two_vocabularies_compare_in_bits_per_byte_alone(folder, capsys):
    for size in (260, 300):
        own = {"data.prepare.vocab_size": size, "data.corpus": "text.txt", "run_dir": f"runs/{size}"}
        gl.run([], {**TINY, "data.prepare.tokenizer": None, **own})
    assert main(["report", "select", "--output", "other", "--metric", "val/loss"]) == 2
    assert (
        capsys.readouterr().err.splitlines()[-1].endswith("--metric val/bits_per_byte for runs of several vocabularies")
    )
    assert main(["report", "select", "--output", "best"]) == 0


def test_the_card_of_a_run_with_a_block_of_its_own_says_how_to_load_it(folder):
    gl.run([], {**TINY, "data.corpus": "text.txt", "run_dir": "runs/a", "model.block": "tests.blocks.ParallelBlock"})
    assert main(["report", "select", "--output", "best"]) == 0
    (load,) = [line for line in Path("best/README.md").read_text().splitlines() if "gl.load" in line]
    assert load.startswith('print(gl.load("best", block="tests.blocks.ParallelBlock").generate(')
    assert eval(load.removeprefix("print(")[:-1], {"gl": gl})

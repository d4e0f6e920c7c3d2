"""The verb `tune compare` on a tiny stack: what it trains, keeps, refuses and says."""

import json
import math
from pathlib import Path

import pytest
import yaml

import gpt_lightning as gl
import gpt_lightning.tune.compare.costs as costs
import gpt_lightning.tune.compare.runs as runs
import gpt_lightning.tune.compare.verb as verb
from gpt_lightning.cli import main
from gpt_lightning.run.stack import flatten, read_stack
from gpt_lightning.tune.compare.arms import check_arms, read_arms
from gpt_lightning.tune.compare.costs import Cost
from gpt_lightning.tune.compare.verb import CompareConfig
from tests.fixtures import TINY, arguments, write_text

OPTIONS = {"data.corpus": "text.txt", "max_tokens": 512, "model.gpt.dropout": 0.0}
SMALL = {"model": {"optim": {"lr": 1e-4}}}
WIDE = {"model": {"gpt": {"d_model": 32}}}


@pytest.fixture
def trained(monkeypatch) -> list[tuple[float, int, int]]:
    """The runs that are trained from now on, as (lr, max_tokens, seed); steps are not timed but priced by width."""
    runs = []
    train_arm = verb.train_arm

    def counting(stack, options, seed, *others):
        runs.append((stack["model.optim.lr"], options["max_tokens"], seed))
        return train_arm(stack, options, seed, *others)

    def priced(stack) -> Cost:
        width = stack["model.gpt.d_model"]
        return Cost(1e-6 * width, 1000 * width, width, 10.0 * width)

    monkeypatch.setattr(verb, "train_arm", counting)
    monkeypatch.setattr(costs, "measure", priced)
    return runs


def tune(arms: dict, *options: str) -> int:
    return main(["tune", "compare", *arguments(OPTIONS), f"--tune.arms={json.dumps(arms)}", *options])


def result() -> dict:
    return json.loads(Path("runs/compare/result.json").read_text())


@pytest.mark.slow
def test_an_arm_or_a_seed_more_trains_only_what_is_missing(folder, trained, capsys):
    assert tune({"small": SMALL}, "--tune.seeds=2") == 0
    assert trained == [(0.01, 512, 0), (1e-4, 512, 0), (0.01, 512, 1), (1e-4, 512, 1)]
    first = result()
    trained.clear()
    assert tune({"small": SMALL}, "--tune.seeds=2") == 0 and trained == [] and result() == first
    assert tune({"small": SMALL, "large": {"model.optim.lr": 0.02}}, "--tune.seeds=2") == 0
    assert trained == [(0.02, 512, 0), (0.02, 512, 1)]
    assert result()["arms"]["small"]["scores"] == first["arms"]["small"]["scores"]
    trained.clear()
    assert tune({"small": SMALL}, "--tune.seeds=3") == 0
    assert trained == [(0.01, 512, 2), (1e-4, 512, 2)]
    trained.clear()
    journal = Path("runs/compare/measured.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]))  # interrupted in the last run
    assert tune({"small": SMALL}, "--tune.seeds=3") == 0
    assert trained == [(1e-4, 512, 2)]
    assert (
        json.loads(lines[-1])["value"]["val_loss"]
        == json.loads(journal.read_text().splitlines()[-1])["value"]["val_loss"]
    )
    assert tune({"small": SMALL}, "--max_tokens=256") == 2, "another stack in the same folder"
    assert "stack.max_tokens 512 (now 256)" in capsys.readouterr().err


@pytest.mark.slow
def test_its_files_and_words(folder, trained, capsys):
    Path("small.yaml").write_text("model: {optim: {lr: 1e-4}}\nrun_dir: runs/elsewhere\n")
    Path("arms.yaml").write_text(
        "tune: {arms: {small: [small.yaml, {max_tokens: 256}], same: {run_dir: x}}, seeds: 3}\n"
    )
    assert main(["tune", "compare", *arguments(OPTIONS), "--config=arms.yaml"]) == 0
    printed = capsys.readouterr()
    found = result()
    assert "arning" not in printed.err, printed.err
    assert printed.out.splitlines()[-1] == "recommendation: keep the baseline: no arm ends lower here"
    assert (
        "small: higher here by " in printed.out
        and "after 256 tokens (512 of the baseline) at 0.50 x the" in printed.out
    )
    assert "same: changes nothing that training uses: its runs are the baseline's" in printed.out
    assert "same: no difference here after 512 tokens" in printed.out
    assert len(trained) == 6 and found["unit"] == "bits per byte" and found["winner"] is None
    assert yaml.safe_load(Path("runs/compare/tuned.yaml").read_text()) == {}
    run = found["arms"]["baseline"]["runs"][0]
    assert [point[0] for point in run["curve"]] == [64 * i for i in range(1, 9)]
    assert run["curve"][0][1] > run["curve"][-1][1] and run["seconds"] > 0 and run["tokens"] == 512
    assert run["bits_per_byte"] == pytest.approx(run["val_loss"] / math.log(2), rel=0.05)  # bytes, but for the ends
    assert Path("runs/compare/figure.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_winners_overlay_is_accepted_by_fit_and_the_python_call_gives_its_numbers(folder, trained):
    flags = {**TINY, **OPTIONS, "model.optim.lr": 1e-4, "tune.arms": {"large": {"model": {"optim": {"lr": 0.02}}}}}
    found = gl.run([], {**flags, "tune.seeds": 3}, verb="tune compare")
    assert found["winner"] == "large" and found["comparisons"]["large"]["kind"] == "lower"
    assert found["comparisons"]["large"]["test"]["p"] < 0.05 and found["dir"] == "runs/compare"
    flags = {**TINY, **OPTIONS, "run_dir": "run"}
    del flags["model.optim.lr"]
    gl.run(["runs/compare/tuned.yaml"], flags)
    assert yaml.safe_load(Path("run/config.yaml").read_text())["model"]["optim"]["lr"] == 0.02


def test_an_arms_overlay_makes_its_stack_of_the_common_one_whatever_its_settings_are(folder):
    """Settings that are mappings are replaced whole, and a class keeps what an earlier overlay gave it."""
    Path("ratios.yaml").write_text("model: {optim: {lr_ratios: {embedding: 10, vector: 6}}}\n")
    smooth = {"model": {"loss": {"class_path": "CrossEntropy", "init_args": {"label_smoothing": 0.1}}}}
    z_loss = {"model": {"loss": {"class_path": "CrossEntropy", "init_args": {"z_loss": 1e-4}}}}
    flags = arguments({**OPTIONS, "model.optim.lr_ratios": {"embedding": 3}})
    stack, _ = read_stack(flags, "tune compare")
    given = {
        "ratios": "ratios.yaml",
        "none": ["ratios.yaml", {"model": {"optim": {"lr_ratios": {}}}}],
        "loss": [smooth, z_loss],
        "dotted": {"model": {"optim": {"lr": 0.5}}, "model.gpt.d_model": 32, "model.optim.betas": [0.5, 0.6]},
        "mixture": {"data": {"corpus": {"text.txt": 0.5, "other.txt": 0.5}, "val_corpus": "text.txt"}},
    }
    write_text(Path("other.txt"), 1000)
    stack = stack.with_({"data.val_corpus": "text.txt"})
    for arm in read_arms(stack, given)[1:]:
        assert stack.over(arm.overlay).to_dict() == arm.stack.to_dict() != stack.to_dict(), arm.name
        assert flatten(arm.overlay).keys() <= flatten(arm.stack.to_dict()).keys()
    assert arm.overlay == {"data": {"corpus": {"text.txt": 0.5, "other.txt": 0.5}}}


def test_arms_that_are_scored_on_other_texts_are_refused_and_other_tokens_of_one_text_are_not(folder):
    Path("other.txt").write_text(Path("text.txt").read_text()[::-1])
    stack, _ = read_stack(arguments(OPTIONS), "tune compare")
    with pytest.raises(ValueError, match="arm b: its validation text is not the baseline's.*set data.val_corpus for"):
        check_arms(read_arms(stack, {"a": SMALL, "b": {"data": {"corpus": "other.txt"}}}))
    tokens = {"data": {"prepare": {"tokenizer": None, "vocab_size": 300}}}
    _, arm = arms = read_arms(stack, {"tokens": tokens})
    check_arms(arms)
    assert arm.stack["data.prepare.vocab_size"] == 300


@pytest.mark.slow
def test_an_arm_that_diverges_is_a_result(folder, trained, capsys):
    boom = {"model.optim.lr": 1e30, "trainer.gradient_clip_val": None}
    assert tune({"boom": boom, "small": SMALL}, "--tune.seeds=2") == 0
    printed = capsys.readouterr()
    assert "boom: no mean to compare: 2 of 2 runs diverged (loss no longer finite), 0 of the baseline" in printed.out
    assert "small: " in printed.out and "nan" not in printed.out + printed.err
    found = result()["arms"]["boom"]
    assert found["scores"] == [None, None] and found["runs"][0]["curve"] == []
    assert tune({"baseline": boom, "small": SMALL}, "--tune.seeds=2") == 0
    printed = capsys.readouterr().out
    assert "small: no mean to compare: 0 of 2 runs diverged (loss no longer finite), 2 of the baseline" in printed
    assert "recommendation: compare with a baseline that trains" in printed


@pytest.mark.slow
def test_equal_seconds_and_flops_scale_the_tokens(folder, trained):
    """An arm twice as wide, here at twice the time and FLOPs per token; the baseline's runs stay as they were."""
    warm = "--model.schedule.warmup_tokens=64"
    assert tune({"wide": WIDE}, "--tune.seeds=1", warm) == 0
    assert [tokens for _, tokens, _ in trained] == [512, 512]
    for equal in ("seconds", "flops"):
        trained.clear()
        assert tune({"wide": WIDE}, "--tune.seeds=1", f"--tune.equal={equal}", warm) == 0
        assert [tokens for _, tokens, _ in trained] == ([256] if equal == "seconds" else [])
        found = result()["arms"]
        assert found["wide"]["max_tokens"] == found["wide"]["runs"][0]["tokens"] == 256
        schedule = {"warmup_tokens": 32}
        assert found["wide"]["overlay"] == {"model": {**WIDE["model"], "schedule": schedule}, "max_tokens": 256}


@pytest.mark.slow
def test_arms_of_other_context_lengths_are_scored_on_the_same_text(folder, trained, monkeypatch):
    read = []
    monkeypatch.setattr(verb, "WHOLE_TEXT", 1)
    monkeypatch.setattr(runs, "score", lambda run, tokens, size: read.append((tokens, size)) or {"val/loss": 1.0})
    other = {"data": {"context_length": 24, "batch_tokens": 48}}
    assert tune({"other": other}, "--tune.seeds=1", "--tune.val_tokens=100") == 0
    assert read == [(144, 1), (144, 2)]  # of contexts of 16 and 24


def test_few_seeds_of_many_arms_are_said_to_find_little(capsys):
    verb._say_power(CompareConfig(seeds=5), 3)
    assert capsys.readouterr().out == ""
    verb._say_power(CompareConfig(seeds=3), 22)
    assert "3 seeds, 22 arms: differences below 12 x the sd of their pairs stay unfound" in capsys.readouterr().out


@pytest.mark.slow
def test_the_lr_of_each_arm_is_tuned_with_trials_of_the_same_length(folder, trained, capsys, monkeypatch):
    searched = []

    def search(job):
        searched.append((job.stack["model.gpt.d_model"], job.settings.tokens))
        lr = 0.03 if job.stack["model.gpt.d_model"] == 16 else 0.02
        return type("Found", (), {"lr": job.measured("lr", lambda: lr), "tokens": 99})

    monkeypatch.setattr(verb, "tune_learning_rate", search)
    assert tune({"wide": WIDE}, "--tune.seeds=1", "--tune.tune_lr=true", "--tune.tokens=1280") == 0
    assert searched == [(16, 1280), (32, 1280)]
    found = result()["arms"]
    assert (found["baseline"]["lr"], found["wide"]["lr"]) == (0.03, 0.02)
    assert found["wide"]["overlay"] == {"model": {**WIDE["model"], "optim": {"lr": 0.02}}}
    assert yaml.safe_load(Path("runs/compare/tuned.yaml").read_text()) == {"model": {"optim": {"lr": 0.03}}}
    assert "wide: lr 2.0e-02 by tune lr, 99 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        ({}, "tune.arms has no arm to compare"),
        ({"baseline": SMALL}, "tune.arms has no arm to compare"),
        ({"a": "nowhere.yaml"}, "arm a: no file 'nowhere.yaml'; expected a YAML file"),
        ({"a": "broken.yaml"}, "arm a: broken.yaml is no YAML: "),
        ({"a": 3}, "arm a: 3: expected a YAML file"),
        (
            {"a": {"model": {"optim": {"lrr": 1}}}},
            "arm a: Group 'model' does not accept option 'optim.lrr'; did you mean",
        ),
        ({"a": {"model": 3}}, "arm a: model is 3; expected a mapping"),
        ({"a": {"modle": {}}}, "arm a: modle is no setting of a run"),
        ({"a": {"tune": {"seeds": 2}}}, "arm a: tune is no setting of a run"),
        ({"a": {"model": {"gpt": {"context_length": 8}}}}, "arm a: model.gpt.context_length follows from data.context"),
        ({"a": SMALL, "b": {"model.gpt.n_heads": 3}}, "arm b: d_model 16 is not divisible by n_heads 3"),
        ({"a": {"data.batch_tokens": 33}}, "arm a: batch_tokens is 33; expected a multiple"),
        ({"a": {"data": {"corpus": "nowhere.txt"}}}, "arm a: "),
        ({"a": {"data": {"seed": 1}}}, "arm a: data.seed is the same for all arms"),
        ({"a": {"seed_everything": 1}}, "arm a: seed_everything is the same for all arms"),
        ({"a": {"data": {"fim_rate": 0.5}}}, "arm a: fim_rate 0.5: the tokenizer has no <|fim_prefix|>"),
        ({"a": {"model.loss.token_weights": {500: 2.0}}}, "arm a: token_weights has the id 500"),
        ({"a": {"model.block": "nowhere.Block"}}, "arm a: "),
    ],
)
def test_a_mistake_is_one_line_that_names_the_arm_and_nothing_is_written(folder, trained, capsys, arms, words):
    Path("broken.yaml").write_text("model: {optim: {lr: 1e-3}\n")
    assert tune(arms) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {words}"), error
    assert trained == [] and not Path("runs").exists()


@pytest.mark.parametrize("option", ["seeds=0", "val_tokens=0", "level=1", "equal=steps", "tokens=5"])
def test_settings_that_mean_nothing_are_refused(folder, capsys, option):
    assert tune({"a": SMALL}, f"--tune.{option}") == 2
    assert f"tune.{option.split('=')[0]}" in capsys.readouterr().err.strip().splitlines()[-1]
